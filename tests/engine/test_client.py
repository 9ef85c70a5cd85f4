"""The page's end of the engine: what comes out of `follow`, what a death looks like, and that nothing is left behind."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from deepdoctor.comparison import Comparison
from deepdoctor.config import DatasetConfig, ModelConfig, preset
from deepdoctor.engine.client import RESTARTS_PER_MINUTE, EngineClient
from deepdoctor.engine.protocol import LONGEST_QUESTION, Compare, Export
from deepdoctor.errors import ConfigError, EngineError, ModelError
from deepdoctor.runs import Run
from deepdoctor.studies.study import Study
from tests.engine.full_disk import RefusedRuns
from tests.studies.prepared import created

FAKE = Path(__file__).with_name("fake_process.py")
ROOT = FAKE.parents[2]
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineClient]:
    """A client, not started, whose engine process is the fake one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = EngineClient(tmp_path / "data", ModelConfig(name="fake"), program=(sys.executable, str(FAKE)))
    yield made
    made.close()


def until(true: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something becomes true in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not true():
        time.sleep(0.01)
    return true()


def ready(client: EngineClient) -> bool:
    return until(lambda: client.state.phase == "ready")


def requested(client: EngineClient, words: str) -> bool:
    """Whether the engine process has received that request."""
    file = client.data_dir / "requests"
    return file.exists() and words in file.read_text()


def ask(client: EngineClient, question: str) -> list[Comparison | str]:
    return list(client.follow(client.compare(Compare(question, "run"))))


def new_run(client: EngineClient) -> Run:
    return client.runs.create(ModelConfig(), DatasetConfig(), preset("quick"))


def test_start_returns_at_once_and_the_model_loads_behind(client: EngineClient) -> None:
    assert client.pid is None
    begun = time.monotonic()
    client.start()
    assert time.monotonic() - begun < 1
    assert client.state.phase == "starting"
    assert ready(client)
    assert client.state.message == "Loaded fake"
    assert client.pid


def test_a_comparison_is_followed_to_its_end(client: EngineClient) -> None:
    client.start()
    waiting, snapshot, last = ask(client, "hello")
    assert waiting == "Waiting: the engine is answering."
    assert isinstance(snapshot, Comparison)
    assert not snapshot.finished
    assert isinstance(last, Comparison)
    assert last.finished


def test_two_viewers_each_get_their_own_answer(client: EngineClient) -> None:
    client.start()
    numbers = [client.compare(Compare(f"hello {name}", "run")) for name in ("a", "b")]
    answers = [list(client.follow(number))[-1] for number in reversed(numbers)]
    assert [answer.question for answer in answers if isinstance(answer, Comparison)] == ["hello b", "hello a"]


def test_an_error_is_raised_as_it_was_and_the_next_question_is_answered(client: EngineClient) -> None:
    client.start()
    with pytest.raises(ConfigError, match="not to my taste") as caught:
        ask(client, "refuse")
    assert caught.value.field == "question"
    assert len(ask(client, "hello")) == 3


def test_stop_ends_a_comparison_and_keeps_what_was_written(client: EngineClient) -> None:
    client.start()
    number = client.compare(Compare("wait", "run"))
    events = client.follow(number)
    assert next(events)
    assert next(events)
    client.stop(number)
    last = list(events)[-1]
    assert isinstance(last, Comparison)
    assert last.base.finish_reason == "stopped"
    assert last.base.text == "thought"


def test_leaving_a_comparison_stops_the_work(client: EngineClient) -> None:
    client.start()
    events = client.follow(client.compare(Compare("wait", "run")))
    assert next(events)
    assert next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(ask(client, "hello")) == 3


def test_a_comparison_is_followed_once(client: EngineClient) -> None:
    client.start()
    number = client.compare(Compare("hello", "run"))
    assert list(client.follow(number))
    with pytest.raises(EngineError, match="no longer known"):
        next(client.follow(number))


def test_an_engine_that_was_not_started_says_so(client: EngineClient) -> None:
    with pytest.raises(EngineError, match="not been started"):
        client.compare(Compare("hello", "run"))


def test_what_could_not_be_handed_in_does_not_seem_to_wait(client: EngineClient) -> None:
    run, study = new_run(client), created(client.data_dir, 2)
    with pytest.raises(EngineError, match="not been started"):
        client.finetune(run.id)
    with pytest.raises(EngineError, match="not been started"):
        client.prepare(study.id)
    for left in (run, study):
        assert (left.state, left.status["message"]) == ("interrupted", "The engine has not been started.")


@pytest.mark.parametrize(("question", "how"), [("kill", "killed by signal 9"), ("exit 3", "ended with code 3")])
def test_a_death_is_told_and_a_new_engine_answers(client: EngineClient, question: str, how: str) -> None:
    client.start()
    ready(client)
    first = client.pid
    with pytest.raises(EngineError, match=f"{how}.*A new one is starting"):
        ask(client, question)
    assert until(lambda: client.pid != first)
    assert ready(client)
    assert len(ask(client, "hello")) == 3


def test_a_death_leaves_a_training_run_interrupted_and_resumable(client: EngineClient) -> None:
    client.start()
    run = new_run(client)
    run.set_status(state="running", step=9)
    with pytest.raises(EngineError):
        ask(client, "kill")
    assert run.state == "interrupted"
    assert "killed by signal 9" in run.status["message"]
    assert ready(client)
    client.finetune(run.id, resume=True)
    assert run.state == "queued"


def test_everybody_who_waits_hears_of_a_death(client: EngineClient) -> None:
    client.start()
    numbers = [client.compare(Compare(question, "run")) for question in ("kill", "hello", "hello")]
    heard: list[str] = []

    def listen(number: int) -> None:
        with pytest.raises(EngineError, match="killed") as caught:
            list(client.follow(number))
        heard.append(str(caught.value))

    listeners = [threading.Thread(target=listen, args=(number,)) for number in numbers]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        listener.join(timeout=20)
    assert len(heard) == 3


def test_an_engine_that_keeps_dying_is_given_up(client: EngineClient) -> None:
    client.start()
    ready(client)
    (client.data_dir / "broken").touch()
    with pytest.raises(EngineError):
        ask(client, "kill")
    assert until(lambda: "keeps dying" in client.state.message)
    assert client.state.phase == "dead"
    assert RESTARTS_PER_MINUTE == 3
    with pytest.raises(EngineError):
        ask(client, "hello")


def test_runs_of_an_earlier_app_are_marked_at_the_start(client: EngineClient) -> None:
    run = new_run(client)
    run.set_status(state="running")
    client.start()
    assert run.state == "interrupted"
    assert "restarted" in run.status["message"]


def test_a_death_on_a_full_disk_is_survived_and_told_once_there_is_room(client: EngineClient) -> None:
    client.start()
    assert ready(client)
    first = client.pid
    run = new_run(client)
    run.set_status(state="running")
    client.runs = runs = RefusedRuns(client.data_dir)
    with pytest.raises(EngineError, match=r"killed by signal 9.*A new one is starting"):
        ask(client, "kill")
    assert until(lambda: client.pid != first)
    assert ready(client)
    assert len(ask(client, "hello")) == 3
    assert run.state == "running"
    runs.full.unlink()
    assert until(lambda: run.state == "interrupted")
    assert "killed by signal 9" in run.status["message"]


def test_a_start_on_a_full_disk_is_survived_and_told_once_there_is_room(client: EngineClient) -> None:
    run = new_run(client)
    run.set_status(state="running")
    client.runs = runs = RefusedRuns(client.data_dir)
    client.start()
    assert ready(client)
    assert run.state == "running"
    runs.full.unlink()
    assert until(lambda: run.state == "interrupted")
    assert "restarted" in run.status["message"]


def test_without_room_for_its_log_an_engine_starts(client: EngineClient) -> None:
    (client.data_dir / "engine.log").mkdir(parents=True)
    client.start()
    assert ready(client)


def test_only_one_run_trains_at_a_time(client: EngineClient) -> None:
    client.start()
    first, second = new_run(client), new_run(client)
    second.set_status(state="stopped")
    client.finetune(first.id)
    assert until(lambda: requested(client, f"Finetune {first.id}"))
    with pytest.raises(EngineError, match="is training already"):
        client.finetune(second.id, resume=True)
    assert second.state == "stopped"


def test_a_new_run_that_is_refused_does_not_seem_to_wait(client: EngineClient) -> None:
    client.start()
    refused, newest = sorted((new_run(client) for _ in range(2)), key=lambda run: run.id)
    with pytest.raises(EngineError, match="is training already"):
        client.finetune(refused.id)
    assert refused.state == "interrupted"
    assert "is training already" in refused.status["message"]
    client.finetune(newest.id)
    assert newest.state == "queued"


def test_a_run_is_resumed_once_however_often_that_is_asked(client: EngineClient) -> None:
    client.start()
    run = new_run(client)
    run.set_status(state="stopped")
    client.finetune(run.id, resume=True)
    with pytest.raises(EngineError, match="is training already"):
        client.finetune(run.id, resume=True)
    assert run.state == "queued"


def claimed(client: EngineClient) -> Study:
    """A study whose answers are being prepared, by a process that lives: this one."""
    study = created(client.data_dir, 2)
    study.claim()
    return study


def test_a_study_is_handed_in_and_can_be_stopped(client: EngineClient) -> None:
    client.start()
    study = created(client.data_dir, 2)
    study.set_status(state="interrupted", message="Stopped")
    client.prepare(study.id)
    assert (study.state, study.status["message"]) == ("preparing", "Waiting for the engine")
    assert until(lambda: requested(client, f"Prepare {study.id}"))
    client.stop_preparing(study.id)
    assert until(lambda: requested(client, "Stop"))


def test_stopping_a_study_that_another_program_prepares_is_refused_and_one_that_nobody_does_is_let_go(client: EngineClient) -> None:
    client.start()
    assert ready(client)
    study = claimed(client)
    with pytest.raises(EngineError, match="prepared by another program"):
        client.stop_preparing(study.id)
    assert study.state == "preparing"
    study.set_status(process=None)
    client.stop_preparing(study.id)
    assert study.state == "interrupted"
    study.set_status(state="open")
    client.stop_preparing(study.id)
    assert study.state == "open"


def test_only_one_study_is_prepared_at_a_time(client: EngineClient) -> None:
    client.start()
    first, second = claimed(client), created(client.data_dir, 2)
    with pytest.raises(EngineError, match=f"answers of {first.name} are being prepared"):
        client.prepare(second.id)
    assert second.state == "interrupted", "it does not seem to wait"
    assert f"answers of {first.name} are being prepared" in second.status["message"]
    client.prepare(first.id)
    assert until(lambda: requested(client, f"Prepare {first.id}"))


def test_a_death_leaves_a_study_interrupted(client: EngineClient) -> None:
    client.start()
    study = created(client.data_dir, 2)
    with pytest.raises(EngineError):
        ask(client, "kill")
    assert study.state == "interrupted"
    assert "killed by signal 9" in study.status["message"]
    assert ready(client)
    client.prepare(study.id)
    assert study.state == "preparing"


def test_studies_of_an_earlier_app_are_marked_at_the_start(client: EngineClient) -> None:
    lost, open_ = created(client.data_dir, 2), created(client.data_dir, 2)
    open_.set_status(state="open")
    client.start()
    assert (lost.state, open_.state) == ("interrupted", "open")
    assert "restarted" in lost.status["message"]


def test_an_export_ends_with_its_folder(client: EngineClient) -> None:
    client.start()
    assert list(client.export(Export("some-run"))) == ["Writing the adapter", client.data_dir / "exports" / "some-run"]


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(client: EngineClient) -> None:
    client.start()
    with pytest.raises(ModelError, match="no model called missing"):
        client.load(ModelConfig(name="missing"))
    assert client.model.name == "fake"
    client.load(ModelConfig(name="another"))
    assert client.model.name == "another"
    assert until(lambda: client.state.message == "Loaded another")


def test_the_chosen_model_comes_back_after_a_death(client: EngineClient) -> None:
    client.start()
    assert ready(client)
    client.load(ModelConfig(name="another"))
    with pytest.raises(EngineError):
        ask(client, "kill")
    assert until(lambda: client.state.message == "Loaded another")


def test_while_a_model_comes_no_other_and_no_work_for_the_former_is_taken(client: EngineClient) -> None:
    client.start()
    assert ready(client)
    assert client.pid
    run, study = new_run(client), created(client.data_dir, 2)
    for left in (run, study):
        left.set_status(state="interrupted")
    os.kill(client.pid, signal.SIGSTOP)
    coming = threading.Thread(target=client.load, args=[ModelConfig(name="another")])
    coming.start()
    assert until(lambda: client.loading == "another")
    for work in (lambda: client.load(ModelConfig(name="third")), lambda: client.finetune(run.id), lambda: client.prepare(study.id)):
        with pytest.raises(EngineError, match="another is being loaded"):
            work()
    os.kill(client.pid, signal.SIGCONT)
    coming.join(timeout=20)
    assert (client.model.name, client.loading, run.state, study.state) == ("another", "", "interrupted", "interrupted")
    client.finetune(run.id)


def test_while_a_question_does_not_go_through_to_the_engine_the_page_still_answers(client: EngineClient) -> None:
    client.start()
    assert ready(client)
    assert client.pid
    os.kill(client.pid, signal.SIGSTOP)
    asked = [threading.Thread(target=client.compare, args=[Compare("\U0001fa7a" * LONGEST_QUESTION, "run")]) for _ in range(2)]
    for each in asked:
        each.start()
    assert not until(lambda: not any(each.is_alive() for each in asked), 0.2)
    new_run(client)
    with ThreadPoolExecutor(1) as page:
        refused = page.submit(client.load, ModelConfig(name="another"))
        wait([refused], timeout=5)
        told = refused.exception() if refused.done() else None
        os.kill(client.pid, signal.SIGCONT)
    assert isinstance(told, EngineError)
    for each in asked:
        each.join(timeout=20)


def test_what_works_with_the_loaded_model_keeps_it(client: EngineClient) -> None:
    client.start()
    assert ready(client)
    run = new_run(client)
    with pytest.raises(EngineError, match=f"Run {run.name} is training"):
        client.load(ModelConfig(name="another"))
    run.set_status(state="finished")
    study = claimed(client)
    with pytest.raises(EngineError, match=f"answers of {study.name} are being prepared"):
        client.load(ModelConfig(name="another"))
    study.set_status(state="open")
    client.load(ModelConfig(name="another"))
    assert client.model.name == "another"


def test_closing_lets_the_engine_end_by_itself_and_soon(client: EngineClient) -> None:
    client.start()
    ready(client)
    begun = time.monotonic()
    client.close()
    assert (client.data_dir / "ended").exists()
    assert time.monotonic() - begun < 3
    assert client.state.phase == "dead"
