"""The push form's handler, with the real client against a loopback Hub: what arrives, what is told meanwhile, and what is refused."""

import threading
from pathlib import Path

import pytest

from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.download import fetch_model
from deepdoctor.errors import RunError
from deepdoctor.publish import suggested_repo
from deepdoctor.runs import Run, Runs
from deepdoctor.ui.components import overheard
from deepdoctor.ui.context import Context
from deepdoctor.ui.push_events import PushEvents, published
from tests.loopback_hub import LoopbackHub
from tests.made_export import export_of
from tests.ui.fakes import RECIPE, FakeEngine, fake_context, fake_run

BASE = "unsloth/DeepSeek-R1-Distill-Llama-8B"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return fake_context(tmp_path / "data")


@pytest.fixture
def run(context: Context) -> Run:
    """A finished run of nano."""
    made = fake_run(context.settings.data_dir)
    made.set_status(rows=9)
    return made


@pytest.fixture
def token(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The app's token: doctor's, who also writes for clinic."""
    made = loopback_hub.add_user("doctor", "clinic")
    monkeypatch.setenv("HF_TOKEN", made)
    return made


def pushed(context: Context, run: Run, repo: str, private: bool = True, merged: bool = True, overwrite: bool = False) -> list[str]:
    return list(PushEvents(context).push({"open": run.id, "compare": []}, repo, private, merged, overwrite))


def feed_export(context: Context, run: Run, merged: bool = True) -> None:
    """Let the engine write an export for the next push."""
    assert isinstance(context.engine, FakeEngine)
    folder = export_of(run, context.settings.data_dir / "fresh" / run.id, merged)
    context.engine.feed_export(["Writing the adapter", "Writing the tokenizer", folder])


def exports_of(context: Context) -> int:
    assert isinstance(context.engine, FakeEngine)
    return len(context.engine.exported)


def test_pushed_from_the_page_and_pulled_again(loopback_hub: LoopbackHub, token: str, context: Context, run: Run) -> None:
    feed_export(context, run)
    said = pushed(context, run, " clinic/nano-medical ")
    words = "\n".join(said)
    for part in (
        "Waiting for the engine",
        "Writing the tokenizer",
        "Writing the model card",
        "Uploading the adapter to clinic/nano-medical",
    ):
        assert part in words
    for name in ("clinic/nano-medical", "clinic/nano-medical-merged"):
        assert f'<a href="{loopback_hub.url}/{name}"' in said[-1]
        assert loopback_hub.repos["model", name].private
    assert "Only its owner can see it" in said[-1]
    made = context.settings.data_dir / "fresh" / run.id
    for name, folder in (("clinic/nano-medical", "adapter"), ("clinic/nano-medical-merged", "merged")):
        pulled = fetch_model(name, None, lambda _words, _fraction: None, token)
        weights = next(file.name for file in (made / folder).glob("*.safetensors"))
        assert (pulled / weights).read_bytes() == (made / folder / weights).read_bytes()


@pytest.mark.usefixtures("token")
def test_only_the_adapter_and_for_all_to_see_if_asked_for(loopback_hub: LoopbackHub, context: Context, run: Run) -> None:
    feed_export(context, run, merged=False)
    said = pushed(context, run, "doctor/nano-medical", private=False, merged=False)
    assert "Everybody can see it" in said[-1]
    assert loopback_hub.repos.keys() == {("model", "doctor/nano-medical")}
    assert not loopback_hub.repos["model", "doctor/nano-medical"].private
    assert isinstance(context.engine, FakeEngine)
    assert [each.merged for each in context.engine.exported] == [False]


@pytest.mark.parametrize(
    ("repo", "given", "words"),
    [
        ("", "hf_doctor_write", "cannot be a repository&#x27;s name"),
        ("doctor/<b>", "hf_doctor_write", "Expected owner/name"),
        ("somebody/nano", "hf_doctor_write", "Choose among: doctor, clinic"),
        ("doctor/nano", "hf_wrong", "does not know this token"),
        ("doctor/nano", "", "make one at https://huggingface.co/settings/tokens, set HF_TOKEN to it"),
    ],
)
def test_a_bad_destination_is_told_before_anything_is_exported(
    repo: str, given: str, words: str, loopback_hub: LoopbackHub, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback_hub.add_user("doctor", "clinic")
    if given:
        monkeypatch.setenv("HF_TOKEN", given)
    last = pushed(context, fake_run(context.settings.data_dir), repo)[-1]
    assert words in last
    assert 'class="dd-note bad"' in last
    assert "<b>" not in last
    assert exports_of(context) == 0
    assert not loopback_hub.repos


@pytest.mark.usefixtures("token")
def test_a_taken_repository_is_left_alone_unless_told(loopback_hub: LoopbackHub, context: Context, run: Run) -> None:
    loopback_hub.add_repo("doctor/nano", {"notes.txt": b"mine"}, private=True)
    feed_export(context, run)
    assert "doctor/nano has other content already" in pushed(context, run, "doctor/nano")[-1]
    assert loopback_hub.files("doctor/nano") == {"notes.txt": b"mine"}
    feed_export(context, run)
    assert "Published at" in pushed(context, run, "doctor/nano", overwrite=True)[-1]
    assert "notes.txt" not in loopback_hub.files("doctor/nano")


@pytest.mark.usefixtures("token")
def test_an_export_that_fails_says_why_and_nothing_is_made(loopback_hub: LoopbackHub, context: Context, run: Run) -> None:
    assert isinstance(context.engine, FakeEngine)
    context.engine.feed_export(["Writing the adapter", RunError("The disk is full.")])
    assert "The disk is full." in pushed(context, run, "doctor/nano")[-1]
    assert not loopback_hub.repos


def test_a_run_must_be_open(context: Context) -> None:
    assert "Open a run first" in list(PushEvents(context).push({"open": "", "compare": []}, "doctor/nano", True, True, False))[-1]


def test_what_is_said_comes_while_the_work_goes_on() -> None:
    heard = threading.Event()

    def work(say: object) -> str:
        assert callable(say)
        say("begun")
        assert heard.wait(10), "nobody heard it in time"
        return "made"

    lines = overheard(work)
    assert next(lines) == "begun"
    heard.set()
    with pytest.raises(StopIteration) as ended:
        next(lines)
    assert ended.value.value == "made"


@pytest.mark.parametrize(
    ("base", "start"),
    [
        (BASE, "jane/Llama-DeepSeek-R1-Distill-8B-medical-"),
        ("unsloth/DeepSeek-R1-Distill-Llama-8B-unsloth-bnb-4bit", "jane/Llama-DeepSeek-R1-Distill-8B-medical-"),
        ("meta-llama/Llama-3.2-1B", "jane/Llama-3.2-1B-medical-"),
        ("unsloth/Meta-Llama-3.1-8B", "jane/Llama-3.1-8B-medical-"),
        ("Qwen/Qwen3-4B", "jane/Qwen3-4B-medical-"),
        ("nano", "jane/nano-medical-"),
        ("/models/--my model..", "jane/my-model-medical-"),
    ],
)
@pytest.mark.usefixtures("token")
def test_the_suggested_name_will_do(base: str, start: str, tmp_path: Path, context: Context) -> None:
    run = Runs(tmp_path / "data").create(ModelConfig(name=base), DatasetConfig(), RECIPE)
    name = suggested_repo(run, "jane")
    assert name == start + run.id[-4:]
    said = pushed(context, run, suggested_repo(run, "clinic"))[-1]
    assert "has no adapter yet" in said, "the name was accepted"


def test_addresses_stay_text() -> None:
    assert "<img" not in published(["https://x/<img src=x>"], True)
