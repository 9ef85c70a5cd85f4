"""The real engine process and its client: training, comparing and stopping across the pipe, and what a death leaves behind."""

import os
import signal
import subprocess
import sys
from multiprocessing.connection import Pipe
from pathlib import Path

import psutil
import pytest

from deepdoctor.comparison import Comparison
from deepdoctor.config import DatasetConfig, ModelConfig, SamplingConfig
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.protocol import Compare, Export, Finetune, Load, Stop
from deepdoctor.errors import EngineError, ModelError, RunError, Stopped
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.across import QUESTION, begin, held, log_of, training
from tests.engine.tiny import until

pytestmark = pytest.mark.timeout(60)
LONG = SamplingConfig(temperature=0, max_new_tokens=300)
ENDLESS = 100_000


def test_it_loads_and_says_what(client: EngineClient, endless: Path) -> None:
    assert client.state.model is not None
    assert client.state.model.name == str(endless)
    assert client.state.message == "Ready"


def test_it_trains_then_compares_without_a_reload(client: EngineClient, run: Run) -> None:
    pid = client.pid
    assert run.state == "finished"
    assert tiny.losses(run)
    *_, made = client.follow(client.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY)))
    assert isinstance(made, Comparison)
    assert made.finished
    assert made.proof is not None
    assert made.proof.problems() == []
    assert client.pid == pid


def test_snapshots_stream(client: EngineClient, run: Run) -> None:
    *snapshots, last = client.follow(client.compare(Compare(QUESTION, run.id, sampling=LONG)))
    assert len(snapshots) >= 1
    lengths = [each.base.tokens for each in [*snapshots, last] if isinstance(each, Comparison)]
    assert lengths == sorted(lengths)
    assert isinstance(last, Comparison)
    assert last.id


def test_stop_ends_a_comparison_and_keeps_the_text(client: EngineClient, run: Run) -> None:
    number = client.compare(Compare(QUESTION, run.id, sampling=LONG))
    events = client.follow(number)
    first = next(events)
    client.stop(number)
    *_, last = events
    assert isinstance(first, Comparison)
    assert isinstance(last, Comparison)
    assert last.tuned.finish_reason == "stopped"
    assert first.tuned.tokens <= last.tuned.tokens < 300
    assert last.tuned.text.startswith(first.tuned.text.rstrip("\ufffd"))


def test_leaving_the_iterator_stops_the_work(client: EngineClient, run: Run) -> None:
    events = client.follow(client.compare(Compare(QUESTION, run.id, sampling=LONG)))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert until(lambda: client.state.phase == "ready")
    from deepdoctor.comparison import Comparisons

    [newest] = Comparisons(client.data_dir).list(1)
    assert newest.tuned.finish_reason == "stopped"
    assert newest.tuned.tokens < 300


def test_a_question_asked_while_training_waits_with_a_word(client: EngineClient, run: Run, dataset: DatasetConfig) -> None:
    busy = begin(client, dataset, max_steps=ENDLESS, checkpoint_steps=ENDLESS)
    assert training(busy)
    assert client.state.phase == "busy"
    assert client.state.run == busy.id
    events = client.follow(client.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY)))
    assert next(events) == f"Waiting: the engine is training {busy.name}."
    client.stop_training()
    *_, made = events
    assert isinstance(made, Comparison)
    assert made.finished
    assert busy.state == "stopped"


def test_a_waiting_question_can_be_taken_back(client: EngineClient, run: Run, dataset: DatasetConfig) -> None:
    busy = begin(client, dataset, max_steps=ENDLESS, checkpoint_steps=ENDLESS)
    assert training(busy)
    number = client.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY))
    events = client.follow(number)
    next(events)
    client.stop(number)
    with pytest.raises(Stopped):
        list(events)
    assert busy.state == "running"
    client.stop_training()
    assert until(lambda: busy.state == "stopped")
    assert until(lambda: client.state.phase == "ready")


def test_training_stops_within_a_step_and_resumes(client: EngineClient, dataset: DatasetConfig) -> None:
    busy = begin(client, dataset, max_steps=400, checkpoint_steps=1000, warmup_steps=0)
    assert training(busy, 3)
    client.stop_training()
    asked_at = busy.status["step"]
    assert until(lambda: busy.state == "stopped")
    stopped_at = busy.status["step"]
    assert busy.checkpoints() == [stopped_at]
    assert asked_at <= stopped_at <= asked_at + 3, "the step under way, and at most what ran while we looked"
    client.finetune(busy.id, resume=True)
    assert training(busy, stopped_at + 1)
    assert busy.status["resumed"] is True
    client.stop_training()
    assert until(lambda: busy.state == "stopped")
    assert sorted(tiny.losses(busy)) == list(range(1, busy.status["step"] + 1))


def test_a_run_asked_for_twice_is_stopped_once(client: EngineClient, dataset: DatasetConfig) -> None:
    busy = begin(client, dataset, max_steps=ENDLESS, checkpoint_steps=ENDLESS)
    assert training(busy)
    client._post(Finetune(busy.id))
    client.stop_training()
    assert until(lambda: client.state.phase == "ready")
    assert busy.status["message"] == f"Stopped at step {busy.status['step']}"
    assert "Stopped before it began" not in busy.log_tail()


def test_a_run_stopped_before_it_began_does_not_train(client: EngineClient, dataset: DatasetConfig) -> None:
    queued = client.runs.create(client.model, dataset, tiny.recipe(max_steps=ENDLESS))
    with held(client):
        client.finetune(queued.id)
        client.stop_training()
    assert until(lambda: queued.state == "stopped")
    assert queued.status["step"] == 0
    assert until(lambda: client.state.phase == "ready")


def test_errors_cross_the_pipe_as_they_are(client: EngineClient, run: Run) -> None:
    with pytest.raises(RunError, match="no run"):
        list(client.follow(client.compare(Compare(QUESTION, "20200101-000000-abcd"))))
    with pytest.raises(ModelError, match="/no/such/model could not be loaded"):
        client.load(ModelConfig(name="/no/such/model"))
    assert until(lambda: client.state.phase == "ready")
    assert list(client.follow(client.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY))))


def test_an_export_tells_its_steps_and_ends_with_its_folder(client: EngineClient, run: Run) -> None:
    *said, folder = client.export(Export(run.id))
    assert "Writing the adapter" in said
    assert isinstance(folder, Path)
    assert (folder / "merged" / "model.safetensors").exists()


def test_kill_mid_run_marks_it_and_it_resumes(client: EngineClient, run: Run, dataset: DatasetConfig) -> None:
    busy = begin(client, dataset, max_steps=20, checkpoint_steps=1, checkpoints_kept=2)
    assert training(busy, 4)
    events = client.follow(client.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY)))
    next(events)
    old = client.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    with pytest.raises(EngineError, match="killed by signal 9"):
        list(events)
    assert until(lambda: client.pid != old)
    assert busy.state == "interrupted"
    assert "killed by signal 9" in busy.status["message"]
    assert until(lambda: client.state.phase == "ready"), log_of(client)
    client.finetune(busy.id, resume=True)
    assert until(lambda: busy.state == "finished"), log_of(client)
    assert busy.status["step"] == 20
    assert list(tiny.losses(busy)) == list(range(1, 21))


def start_alone(folder: Path) -> tuple[subprocess.Popen[bytes], object]:
    """The engine process without a client: our end of its pipe."""
    ours, theirs = Pipe()
    folder.mkdir(parents=True, exist_ok=True)
    with theirs, (folder / "engine.log").open("wb") as log:
        command = [sys.executable, "-m", "deepdoctor.engine.process", str(theirs.fileno()), str(folder)]
        return subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=log, stderr=log), ours


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "training"])
def test_when_the_page_is_gone_the_engine_ends_and_the_run_can_be_resumed(
    tmp_path: Path, endless: Path, dataset: DatasetConfig, busy: bool
) -> None:
    from deepdoctor.runs import Runs

    process, ours = start_alone(tmp_path)
    for nothing in (0, 7):
        ours.send((0, Stop(nothing)))  # type: ignore[attr-defined]
    run = Runs(tmp_path).create(ModelConfig(name=str(endless)), dataset, tiny.recipe(max_steps=ENDLESS, checkpoint_steps=5))
    ours.send((1, Load(ModelConfig(name=str(endless)))))  # type: ignore[attr-defined]
    while ours.recv().kind != "done":  # type: ignore[attr-defined]
        pass
    if busy:
        ours.send((2, Finetune(run.id)))  # type: ignore[attr-defined]
        assert training(run, 6)
    ours.close()  # type: ignore[attr-defined]
    assert process.wait(timeout=30) == 0
    if busy:
        assert Runs(tmp_path).lost() == [run]
        assert run.checkpoints()
        assert tiny.open_session(tmp_path, endless).finetune(run.id, resume=True, should_stop=tiny.StopAfter(1)).state == "stopped"


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with EngineClient(tmp_path / "data", ModelConfig(name="/no/such/model")) as client:
        assert until(lambda: client.state.phase == "failed")
        assert "/no/such/model could not be loaded" in client.state.message
        assert "Choose another model under Model at the top of the page" in client.state.message


def test_the_page_killed_takes_the_engine_with_it(tmp_path: Path, endless: Path) -> None:
    """kill -9 of the page: nothing but the closed pipe tells the engine."""
    code = (
        "import sys, time; from pathlib import Path; from deepdoctor.config import ModelConfig;"
        "from deepdoctor.engine.client import EngineClient;"
        f"c = EngineClient(Path({str(tmp_path / 'data')!r}), ModelConfig(name={str(endless)!r})); c.start();"
        "print(c.pid, flush=True); time.sleep(600)"
    )
    page = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert page.stdout is not None
    engine = psutil.Process(int(page.stdout.readline()))
    page.kill()
    page.wait()
    page.stdout.close()
    assert until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
