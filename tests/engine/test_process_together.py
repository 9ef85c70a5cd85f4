"""Several requests to one engine process: comparisons written together, and those that wait while a study is prepared."""

import os
import shutil
import signal

import pytest

from deepdoctor.config import DatasetConfig, SamplingConfig
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.protocol import Compare, Finetune, Prepare
from deepdoctor.errors import Stopped
from deepdoctor.files import read_rows
from deepdoctor.runs import Run
from deepdoctor.studies.study import Study
from tests.engine import tiny
from tests.engine.across import QUESTION, Listener, begin, log_of, request, texts, training
from tests.engine.tiny import until
from tests.studies.prepared import created

pytestmark = pytest.mark.timeout(60)


def study_of(client: EngineClient, run: Run, questions: int, most: int = 300) -> Study:
    """A study of that run without answers, each of which becomes so many tokens long."""
    sampling = SamplingConfig(temperature=0.8, max_new_tokens=most)
    return created(client.data_dir, questions, run=run.id, sampling=sampling.model_dump())


def answers_in(study: Study) -> list[tuple[str, int]]:
    """Question and seed of every row of answers, repeated ones too."""
    return [(row["question"], row["seed"]) for row in read_rows(study.path / "answers.jsonl")[0]]


def test_two_questions_at_once_are_written_together_and_both_are_right(client: EngineClient, run: Run) -> None:
    first, second = Listener(client, request(run, 1)), Listener(client, request(run, 2))
    first.join(), second.join()
    ends = [each.snapshots[-1][0] for each in (first, second)]
    for each in (first, second):
        assert len(each.snapshots) >= 2
        assert each.snapshots[0][0] < min(ends), "each had written something before either ended"
        assert each.last.finished
        assert each.last.proof is not None
        assert each.last.proof.problems() == []
        assert each.last.rows_at_once == 4
    for seed, together in ((1, first.last), (2, second.last)):
        alone = Listener(client, request(run, seed)).join().last
        assert alone.rows_at_once == 2
        assert texts(alone) == texts(together)
    assert texts(first.last) != texts(second.last)


def test_stopping_one_leaves_the_other(client: EngineClient, run: Run) -> None:
    first, second = Listener(client, request(run, 1)), Listener(client, request(run, 2))
    assert until(lambda: bool(first.snapshots and second.snapshots))
    client.stop(first.number)
    stopped, whole = first.join().last, second.join().last
    assert (stopped.base.finish_reason, stopped.tuned.finish_reason) == ("stopped", "stopped")
    assert "stopped" not in (whole.base.finish_reason, whole.tuned.finish_reason)
    assert stopped.tuned.tokens < 300
    assert first.snapshots[-1][0] < second.snapshots[-1][0]
    alone = Listener(client, request(run, 2)).join().last
    assert texts(alone) == texts(whole)


def test_a_question_that_finds_no_room_is_told_its_place(client: EngineClient, run: Run) -> None:
    """Eight are written at once; the ninth is next, the tenth behind it, and one that waits can be taken back."""
    endless = Compare(QUESTION, run.id, sampling=SamplingConfig(temperature=0, max_new_tokens=400))
    listeners = [Listener(client, endless if number < 8 else request(run, number, most=5)) for number in range(11)]
    assert until(lambda: bool(listeners[-1].words))
    client.stop(listeners[9].number)
    assert isinstance(listeners[9].join().error, Stopped)
    assert not listeners[9].snapshots
    assert until(lambda: len(listeners[10].words) == 2)
    client.stop(listeners[0].number)
    ended = [each.join() for each in listeners]
    full = "Waiting: as many comparisons as fit are being written; "
    assert [each.words for each in ended[:8]] == [[]] * 8
    assert ended[8].words == [f"{full}this one is next."]
    assert ended[10].words == [f"{full}2 wait before this one.", f"{full}1 waits before this one.", f"{full}this one is next."]
    assert [each.last.tuned.finish_reason for each in ended if each.snapshots] == ["stopped", *["length"] * 9]


def test_a_question_asked_while_a_study_is_prepared_waits_with_a_word(client: EngineClient, run: Run) -> None:
    study = study_of(client, run, 200)
    client.prepare(study.id)
    assert until(lambda: client.state.study == study.id)
    assert client.state.doing == f"preparing {study.name}"
    asked = Listener(client, request(run, most=10))
    assert until(lambda: bool(asked.words))
    assert asked.words == [f"Waiting: the engine is preparing {study.name}."]
    assert study.state == "preparing"
    client.stop_preparing(study.id)
    assert asked.join().last.finished
    assert study.state == "interrupted"
    assert client.state.study == ""


def test_a_study_that_waits_can_be_taken_back_and_another_is_prepared(client: EngineClient, run: Run) -> None:
    writing = Listener(client, request(run, 2))
    assert until(lambda: bool(writing.snapshots))
    study, other = study_of(client, run, 2), study_of(client, run, 2, most=5)
    client.prepare(study.id)
    client.prepare(other.id)
    client.stop_preparing(study.id)
    assert until(lambda: study.state == "interrupted")
    assert study.status["message"] == "Stopped before it began"
    assert writing.join().last.tuned.finish_reason != "stopped", "whoever was being written is written on"
    assert answers_in(study) == []
    assert until(lambda: other.state == "open"), other.status["message"]


def test_what_waits_and_whose_folder_goes_leaves_the_engine_and_the_run_that_trains(
    client: EngineClient, run: Run, dataset: DatasetConfig
) -> None:
    busy, pid = begin(client, dataset, max_steps=100_000, checkpoint_steps=100_000), client.pid
    assert training(busy)
    gone, begun, untrained = study_of(client, run, 2), study_of(client, run, 2), client.runs.create(client.model, dataset, tiny.recipe())
    waiting = [client._post(request) for request in (Prepare(gone.id), Finetune(untrained.id), Prepare(begun.id))]
    for each in (gone, untrained, begun):
        shutil.rmtree(each.path)
    for number in waiting[:2]:
        client.stop(number)
    asked = Listener(client, request(run, most=5))
    assert until(lambda: bool(asked.words))
    assert busy.state == "running"
    client.stop_training()
    assert asked.join().last.finished
    assert (busy.state, client.pid) == ("stopped", pid)


def test_kill_while_a_study_is_prepared_marks_it_and_it_goes_on(client: EngineClient, run: Run) -> None:
    study = study_of(client, run, 24, most=100)
    client.prepare(study.id)
    assert until(lambda: study.status["done"] >= 8), log_of(client)
    old = client.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    assert until(lambda: study.state == "interrupted")
    assert "killed by signal 9" in study.status["message"]
    before = answers_in(study)
    assert 8 <= len(before) < 24
    assert until(lambda: client.pid != old and client.state.phase == "ready"), log_of(client)
    client.prepare(study.id)
    assert until(lambda: study.state == "open"), log_of(client)
    after = answers_in(study)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == study.status["done"] == 24
