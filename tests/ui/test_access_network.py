"""The gate at the page's endpoints on a network, with and without a login; and what the app says of it at the start."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import app
from deepdoctor.comparison import Comparisons
from deepdoctor.config import Settings
from deepdoctor.ui.page import build_app, launch_options
from tests.conftest import free_port
from tests.studies.prepared import prepared
from tests.ui.fakes import close, fake_comparison, fake_context, fake_run, in_event_loop
from tests.ui.space_page import handler_name
from tests.ui.visitors import GATED, REFUSED, Visitor

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def on_a_network(data_dir: Path, login: str = "") -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """The page as it is with HOST=0.0.0.0, though only this machine reaches it: its address; each handler's event, and its inputs."""
    settings = Settings(host="0.0.0.0", data_dir=data_dir, login=login)
    context = replace(fake_context(data_dir), settings=settings)

    def launched() -> Any:
        page = build_app(context)
        auth = settings.credentials if login else None
        page.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, auth=auth, **launch_options())
        return page

    page = in_event_loop(launched)
    try:
        yield page.local_url, {handler_name(each.fn): (key, len(each.inputs)) for key, each in page.fns.items() if each.fn is not None}
    finally:
        close(page)


def test_a_network_without_a_login_is_closed_both_ways(tmp_path: Path) -> None:
    with on_a_network(tmp_path) as (url, events):
        visitor = Visitor(url)
        for handler in GATED:
            event, inputs = events[handler]
            direct = visitor.post("run/predict", {"data": [None] * inputs, "fn_index": event, "session_hash": visitor.session})
            assert REFUSED in direct.text, handler
            assert REFUSED in visitor.ask(event, [None] * inputs), handler
        assert "LOGIN=name:password" in visitor.ask(events["AccessEvents.told"][0], [])


@pytest.mark.parametrize("login", ["", "alice:secret"])
def test_on_a_network_without_a_login_judged_pairs_are_named_to_nobody(tmp_path: Path, login: str) -> None:
    study = prepared(tmp_path, 2)
    asked = study.questions()[0].question
    saved = Comparisons(tmp_path).save(fake_comparison(question=asked, base="x</think>Base said so."))
    run = fake_run(tmp_path, "judged")
    with on_a_network(tmp_path, login) as (url, events):
        cookies = httpx.post(f"{url}login", data={"username": "alice", "password": "secret"}).cookies if login else {}
        visitor = Visitor(url, dict(cookies))
        reopened = visitor.ask(events["Handlers.reopen"][0], [], {"comparison": saved.id})
        assert ("Base said so" in reopened) is bool(login)
        assert ("You may not open this comparison" in reopened) is not bool(login)
        visitor.ask(events["Handlers.refresh"][0], [None, None, [], None])
        event, inputs = events["Handlers.answers"]
        given = [asked, run.id, "final", [], "article", 0.6, 0.95, 0, 0.0, 1.0, 1200, 3407]
        assert len(given) == inputs, "else the question would be refused for that"
        answer = visitor.ask(event, given)
        assert ("You may not ask this question" in answer) is not bool(login)


def test_with_a_login_only_those_who_gave_it_come_in(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "guarded")
    with on_a_network(tmp_path, "alice:secret") as (url, events):
        stranger = Visitor(url)
        body = {"data": [None], "fn_index": events["RunsEvents.pick"][0], "session_hash": stranger.session, "event_data": {"open": run.id}}
        assert stranger.post("queue/join", body).status_code == 401
        assert httpx.get(f"{url}config").status_code == 401
        assert httpx.post(f"{url}login", data={"username": "alice", "password": "wrong"}).status_code == 400
        cookies = httpx.post(f"{url}login", data={"username": "alice", "password": "secret"}).cookies
        known = Visitor(url, dict(cookies))
        known.ask(events["RunsEvents.pick"][0], [None], {"open": run.id})
        assert "Renamed to mine" in known.ask(events["RunsEvents.rename"][0], [None, "mine"])
        assert "AccessEvents.told" not in events, "there is nothing to tell"


def test_the_app_says_at_the_start_how_to_open_what_is_closed(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "app.py", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    assert "DeepDoctor is at http://127.0.0.1:" in said[0]
    assert "start it with LOGIN=name:password" in said[1]


def test_raters_need_no_password_and_the_rest_of_the_app_does(tmp_path: Path) -> None:
    study = prepared(tmp_path, 2)
    rater = study.join("Ada", "Urology", 3)
    command = [sys.executable, "-u", "app.py", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path)]
    environment = {**os.environ, "LOGIN": "alice:secret", "GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().partition(" at ")[2].split()[0]
        pages = {path: httpx.get(f"{url}{path}", timeout=30) for path in ("/", "/config", "/gradio_api/info", f"/judge/{study.id}")}
        trial = httpx.get(f"{url}/judge/{study.id}/{rater.token}", timeout=30)
        given = {"token": "a" * 24, "name": "Ben", "specialty": "Urology", "years": "1"}
        joined = httpx.post(f"{url}/judge/{study.id}", data=given, timeout=30)
        cookies = httpx.post(f"{url}/login", data={"username": "alice", "password": "secret"}, timeout=30).cookies
        known = {path: httpx.get(f"{url}{path}", cookies=cookies, timeout=30) for path in ("/", "/config")}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    assert (pages[f"/judge/{study.id}"].status_code, trial.status_code, joined.status_code) == (200, 200, 303)
    assert "You will read" in pages[f"/judge/{study.id}"].text
    assert (pages["/config"].status_code, pages["/gradio_api/info"].status_code) == (401, 401)
    for words in ("dd-studies", "dd-history", study.id):
        assert words not in pages["/"].text
    assert "dd-studies" in known["/"].text
    assert known["/config"].status_code == 200
    assert [each.name for each in study.raters()] == ["Ada", "Ben"]


def test_the_app_does_not_start_with_a_password_on_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPACE_ID", "alice/deepdoctor")
    monkeypatch.setenv("LOGIN", "alice:secret")
    assert app.main(["--port", "0", "--data-dir", str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    assert "LOGIN is not used on a Space" in said
    assert "secret" not in said
