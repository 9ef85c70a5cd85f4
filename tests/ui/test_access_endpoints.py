"""The gate at the page's endpoints: posted to directly on a Space by anonymous, another user, forgers and the owner."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepdoctor.access import OAUTH
from deepdoctor.comparison import Comparisons
from deepdoctor.runs import Run, Runs
from tests.studies.prepared import prepared
from tests.ui.fakes import fake_comparison, fake_run
from tests.ui.visitors import GATED, REFUSED, SECRET, Visitor, cookie_of

ROOT = Path(__file__).resolve().parents[2]
# All that only reads, draws, or asks a question. What is new on the page belongs here or to GATED; if in doubt, to GATED.
OPEN = {
    *("page.current_engine_line", "page.refreshed_engine_line", "page.select_linked_tab", "AccessEvents.told"),
    *("ModelEvents.current", "ModelEvents.follow", "ModelEvents.takes"),
    *("LoginButton._check_login_status", "Handlers.saved", "dataset_tab._parts_for", "dataset_tab._wire_rows.<locals>.<lambda>"),
    # reads the bundled rows, the usual Hub dataset and uploads for everyone, other Hub datasets for those who may train
    "DatasetEvents.load",
    *("DatasetEvents.use_columns", "DatasetEvents.show_source", "DatasetEvents.show_fate", "DatasetEvents.new_tokenizer"),
    *("DatasetEvents.first_page", "DatasetEvents.earlier", "DatasetEvents.later", "DatasetEvents.open_row"),
    *("DatasetEvents.show_row", "DatasetEvents.show_checks"),
    *("TrainEvents.use_preset", "TrainEvents.config_text", "TrainEvents.load_config", "TrainEvents.review", "TrainEvents.model_known"),
    *("TrainEvents.tick", "TrainEvents.draw", "TrainEvents.step_through"),
    *("compare_tab.build.<locals>.<lambda>", "compare_events.toggle_reference"),
    *("Handlers.answers", "Handlers.ready", "Handlers.stop", "Handlers.refresh", "Handlers.refresh_if_new"),
    *("Handlers.steps_of", "Handlers.also_of"),
    *("Handlers.reopen", "Handlers.open_linked"),
    *("RunsEvents.refresh", "RunsEvents.pick", "RunsEvents.keep"),
    *("studies_tab._file_part", "studies_events.put_away"),
}


@dataclass(frozen=True)
class Space:
    """A page that believes it is alice's Space, with carol as a trainer."""

    url: str
    data_dir: Path
    handlers: dict[int, str]
    inputs: dict[int, int]

    def event(self, handler: str) -> int:
        """The id of the first event with that handler."""
        return next(key for key, name in self.handlers.items() if name == handler)

    def visitor(self, cookie: str = "") -> Visitor:
        """A fresh tab, logged in by that cookie."""
        return Visitor(self.url, {"session": cookie} if cookie else {})

    def tried(self, visitor: Visitor, handler: str) -> str:
        """What came back from calling a handler with nothing given: the gate comes before all else."""
        event = self.event(handler)
        return visitor.ask(event, [None] * self.inputs[event])

    def shown(self, event: int) -> list[Any]:
        """What the inputs of an event hold when the page is opened."""
        config = httpx.get(f"{self.url}config").json()
        values = {each["id"]: each["props"].get("value") for each in config["components"]}
        (inputs,) = (each["inputs"] for each in config["dependencies"] if each["id"] == event)
        return [values[key] for key in inputs]

    def opened(self, visitor: Visitor, run: Run) -> Visitor:
        """The visitor, after opening a run on the runs tab."""
        assert run.name in visitor.ask(self.event("RunsEvents.pick"), [None], {"open": run.id})
        return visitor


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """The page in its own process, with a Space's environment."""
    data_dir = tmp_path_factory.mktemp("space")
    environment = {
        **os.environ,
        **dict.fromkeys(OAUTH, "openid profile"),
        "OPENID_PROVIDER_URL": "https://huggingface.invalid",
        "OAUTH_CLIENT_SECRET": SECRET,
        "SYSTEM": "spaces",
        "SPACE_ID": "alice/deepdoctor",
        "SPACE_AUTHOR_NAME": "alice",
        "SPACE_HOST": "alice-deepdoctor.hf.space",
        "TRAINERS": "carol",
        "GRADIO_TEMP_DIR": str(data_dir / "uploads"),
    }
    command = [sys.executable, "-m", "tests.ui.space_page", str(data_dir)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        told = json.loads(next((line for line in process.stdout if line.startswith("{")), "{}"))
        yield Space(told["url"], data_dir, *({int(key): each for key, each in told[name].items()} for name in ("handlers", "inputs")))
        process.stdin.close()


STRANGERS = {
    "anonymous": "",
    "another user": cookie_of("bob"),
    "a forger": cookie_of("alice", secret="guessed"),
    "a forger who trusts in an empty secret": cookie_of("alice", secret=""),
    "the owner, whose login has expired": cookie_of("alice", expires_in=-1),
}


def test_every_handler_of_the_page_is_known_to_be_open_or_gated(space: Space) -> None:
    assert set(space.handlers.values()) == OPEN | GATED


@pytest.mark.parametrize("cookie", STRANGERS.values(), ids=STRANGERS.keys())
def test_strangers_are_refused_by_every_gated_handler(space: Space, cookie: str) -> None:
    before = fingerprint(space.data_dir)
    visitor = space.visitor(cookie)
    for handler in sorted(GATED):
        answer = space.tried(visitor, handler)
        assert REFUSED in answer, handler
        assert "alice or carol" in answer, handler
    assert fingerprint(space.data_dir) == before


@pytest.mark.parametrize("name", ["alice", "carol"])
def test_owner_and_trainer_pass_every_gate(space: Space, name: str) -> None:
    visitor = space.visitor(cookie_of(name))
    assert {handler for handler in GATED if REFUSED in space.tried(visitor, handler)} == set()


def test_no_other_way_in_carries_a_name(space: Space) -> None:
    run = fake_run(space.data_dir, "not theirs")
    visitor, event = space.opened(space.visitor(), run), space.event("RunsEvents.rename")
    profile = {"sub": "alice", "name": "Alice", "preferred_username": "alice", "profile": "", "picture": "", "username": "alice"}
    assert REFUSED in visitor.ask(event, [None, "theirs"], oauth_token="alice")
    assert "Renamed" not in visitor.ask(event, [None, "theirs", profile])
    visitor.cookies.update({"access-token-unsecure": "alice", "username": "alice"})
    assert REFUSED in visitor.ask(event, [None, "theirs"])
    assert visitor.post("run/predict", {"data": [None, "theirs"], "fn_index": event}).status_code == 404
    assert run.name == "not theirs"


def test_files_of_the_app_and_its_data_cannot_be_fetched(space: Space) -> None:
    run = fake_run(space.data_dir, "kept")
    for file in (run.path / "config.json", run.path / "adapter" / "adapter_model.safetensors", ROOT / "app.py", Path("/etc/hostname")):
        assert file.exists()
        assert httpx.get(f"{space.url}gradio_api/file={file}").status_code == 403


def test_the_owner_does_what_a_stranger_with_the_run_open_cannot(space: Space) -> None:
    run = fake_run(space.data_dir, "the one")
    rename, delete, export = (space.event(f"RunsEvents.{name}") for name in ("rename", "delete", "export"))
    stranger = space.opened(space.visitor(cookie_of("bob")), run)
    owner = space.opened(space.visitor(cookie_of("alice")), run)
    assert REFUSED in stranger.ask(rename, [None, "mine now"])
    assert run.name == "the one"
    assert "Renamed to two" in owner.ask(rename, [None, "two"])
    assert run.name == "two"
    assert REFUSED in stranger.ask(export, [None, False, False])
    assert "Written to" in owner.ask(export, [None, False, False])
    assert REFUSED in stranger.ask(delete, [None])
    assert run.path.exists()
    owner.ask(delete, [None])
    assert not run.path.exists()


def test_training_is_stopped_and_resumed_by_the_owner_only(space: Space) -> None:
    run = fake_run(space.data_dir, "long one", "running")
    stop, resume = space.event("TrainEvents.stop"), space.event("RunsEvents.resume")
    assert REFUSED in space.visitor().ask(stop, [])
    assert "Stopping long one" in space.visitor(cookie_of("carol")).ask(stop, [])
    run.set_status(state="stopped")
    assert REFUSED in space.opened(space.visitor(), run).ask(resume, [None])
    assert "Resuming long one" in space.opened(space.visitor(cookie_of("alice")), run).ask(resume, [None])


def test_a_run_is_started_by_the_owner_only(space: Space) -> None:
    event = space.event("TrainEvents.start")
    dataset, preset, _name, *form = space.shown(event)
    given, before = [dataset, preset, "mine", *form], len(Runs(space.data_dir).list())
    assert REFUSED in space.visitor(cookie_of("bob")).ask(event, given)
    assert len(Runs(space.data_dir).list()) == before
    assert "Started mine" in space.visitor(cookie_of("alice")).ask(event, given)
    started = Runs(space.data_dir).active()
    assert started
    started.set_status(state="stopped")


def test_everyone_previews_and_asks_but_reads_only_open_rows(space: Space) -> None:
    load = space.event("DatasetEvents.load")
    hub: list[Any] = ["hub", None, "", "alice/private-cases", "", "train", "", 5]
    stranger = space.visitor()
    assert "500 rows loaded" in stranger.ask(load, ["bundled", None, "", "", "", "", "", 500])
    assert "You may not load another Hub dataset" in stranger.ask(load, hub)
    assert REFUSED not in space.visitor(cookie_of("alice")).ask(load, hub)
    assert "cannot be named" in stranger.ask(load, ["file", None, "/etc/hostname", "", "", "", "", 500])
    run = fake_run(space.data_dir, "comparable")
    stranger.ask(space.event("Handlers.refresh"), [None, None, [], None])
    event = space.event("Handlers.answers")
    answer = stranger.ask(event, ["Why?", run.id, "final", *space.shown(event)[3:]])
    assert "What changed" in answer


@pytest.mark.parametrize("name", ["", "bob", "alice"], ids=["anonymous", "another user", "the owner"])
def test_the_pairs_of_a_judged_question_are_named_to_nobody_who_could_be_its_rater(space: Space, name: str) -> None:
    study, run = prepared(space.data_dir, 2), fake_run(space.data_dir, "judged")
    asked = study.questions()[0].question
    saved = Comparisons(space.data_dir).save(fake_comparison(run=run.id, question=asked, base="x</think>Base said so."))
    for step in (0, 20):
        run.append_probe({"step": step, "question": asked, "reasoning": "", "response": f"Probed at {step}.", "closed": True})
    visitor = space.visitor(cookie_of(name) if name else "")
    visitor.ask(space.event("Handlers.refresh"), [None, None, [], None])
    event = space.event("Handlers.answers")
    try:
        allowed = name == "alice"
        assert (REFUSED in visitor.ask(event, [asked, run.id, "final", *space.shown(event)[3:]])) is not allowed
        assert (saved.id in visitor.ask(space.event("Handlers.saved"), [])) is allowed
        assert ("Base said so" in visitor.ask(space.event("Handlers.reopen"), [], {"comparison": saved.id})) is allowed
        assert ("Base said so" in visitor.ask(space.event("Handlers.open_linked"), [], query=f"?comparison={saved.id}")) is allowed
        for handler in ("TrainEvents.tick", "TrainEvents.draw"):
            assert ("Probed at" in visitor.ask(space.event(handler), [None, "none", 1])) is allowed
        assert ("Probed at 0" in visitor.ask(space.event("TrainEvents.step_through"), [None, 0])) is allowed
        config = httpx.get(f"{space.url}config", cookies=visitor.cookies).text
        assert saved.id not in config
        study.close()
        assert "Base said so" in visitor.ask(space.event("Handlers.reopen"), [], {"comparison": saved.id})
    finally:
        study.close()


def test_what_strangers_upload_is_shown_but_not_kept(space: Space) -> None:
    load = space.event("DatasetEvents.load")
    rows = json.dumps([{"Question": "Why?", "Complex_CoT": "Because.", "Response": "So."}]).encode()
    for name, kept in (("bob", False), ("alice", True)):
        visitor = space.visitor(cookie_of(name))
        (path,) = httpx.post(f"{space.url}gradio_api/upload", files={"files": (f"{name}.json", rows)}, cookies=visitor.cookies).json()
        upload = {"path": path, "orig_name": f"{name}.json", "meta": {"_type": "gradio.FileData"}}
        assert "1 row loaded" in visitor.ask(load, ["file", upload, "", "", "", "", "", 500])
        assert bool(list((space.data_dir / "uploads").glob(f"*-{name}.json"))) is kept


def test_the_page_tells_each_visitor_what_is_open_to_them(space: Space) -> None:
    told = space.event("AccessEvents.told")
    assert "Log in as alice or carol" in space.visitor().ask(told, [])
    assert "You are bob" in space.visitor(cookie_of("bob")).ask(told, [])
    assert "Logged in as alice" in space.visitor(cookie_of("alice")).ask(told, [])
    config = httpx.get(f"{space.url}config").json()
    shown = [str(each["props"].get("value", "")) for each in config["components"]]
    assert "Sign in with Hugging Face" in shown
    assert any("studies and all that raters say on this Space are lost when it restarts" in each for each in shown), (
        "nothing is mounted here"
    )


def fingerprint(folder: Path) -> dict[str, int]:
    """Files of a folder and when they were last written, the page's own uploads aside."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in files if "uploads" not in path.parts}
