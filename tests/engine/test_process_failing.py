"""What an engine process does when memory or the disk runs out or CUDA breaks while it works: everybody is told, and it answers again."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepdoctor.config import ModelConfig
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.protocol import Export, Finetune, Stop
from deepdoctor.errors import EngineError
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.across import Listener, adapted_run, log_of, request, training
from tests.engine.full_disk import needs_limits, no_room
from tests.engine.tiny import until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, endless: Path) -> Iterator[EngineClient]:
    """A client of an engine process that fails when it is told to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        program = (sys.executable, "-m", "tests.engine.failing_process")
        with EngineClient(tmp_path_factory.mktemp("failing") / "data", ModelConfig(name=str(endless)), program) as started:
            assert ready(started), log_of(started)
            yield started


@pytest.fixture(scope="module")
def adapted(failing: EngineClient, endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a random adapter."""
    return adapted_run(failing, endless, tmp_path_factory.mktemp("adapted"))


def ready(client: EngineClient) -> bool:
    return until(lambda: client.state.phase == "ready", 60)


def fail(client: EngineClient, how: str) -> None:
    (client.data_dir / "fail").write_text(how)


def two_being_written(client: EngineClient, run: Run) -> list[Listener]:
    asked = [Listener(client, request(run, seed, most=480 - seed)) for seed in (1, 2)]
    assert until(lambda: all(each.snapshots for each in asked)), log_of(client)
    return asked


def test_when_memory_runs_out_all_are_told_and_the_next_is_answered(failing: EngineClient, adapted: Run) -> None:
    asked, pid = two_being_written(failing, adapted), failing.pid
    fail(failing, "step")
    for each in asked:
        assert isinstance(each.join().error, EngineError)
        assert str(each.error).startswith("Out of memory while answering. Shorten the question, lower the longest answer")
    assert ready(failing)
    assert Listener(failing, request(adapted, 3, most=5)).join().last.finished
    steps = (failing.data_dir / "steps").read_text().split()
    assert steps.count("none") == 2, "the cache is made by the first step, and again after it was given back"
    assert steps[-5:] == ["none", "held", "held", "held", "held"]
    assert failing.pid == pid


def test_an_export_without_memory_is_told_as_an_export(failing: EngineClient, adapted: Run) -> None:
    fail(failing, "export")
    with pytest.raises(EngineError, match=r"Out of memory while exporting\. Export without the merged model"):
        list(failing.export(Export(adapted.id)))
    assert ready(failing)
    assert Listener(failing, request(adapted, 3, most=5)).join().last.finished


@needs_limits
def test_a_full_disk_is_told_and_the_engine_stays(failing: EngineClient, adapted: Run) -> None:
    pid = failing.pid
    run = failing.runs.create(failing.model, adapted.dataset, tiny.recipe(max_steps=2000))
    failing.finetune(run.id)
    assert training(run)
    number = failing.compare(request(adapted, 1, most=5))
    with no_room(failing):
        with pytest.raises(EngineError, match=r"The disk that holds runs is full\. Free some space, then try again\."):
            list(failing.follow(number))
        assert ready(failing)
        assert f"{run.name}: The disk that holds runs is full. Free some space, then resume the run." in failing.state.trouble
        assert run.state == "running"
    assert until(lambda: run.state == "failed"), log_of(failing)
    assert run.status["message"] == "The disk that holds runs is full. Free some space, then resume the run."
    assert until(lambda: not failing.state.trouble)
    assert Listener(failing, request(adapted, 3, most=5)).join().last.finished
    assert failing.pid == pid


@needs_limits
def test_a_run_stopped_before_it_began_is_told_so_once_there_is_room(failing: EngineClient, adapted: Run) -> None:
    first, second = (failing.runs.create(failing.model, adapted.dataset, tiny.recipe(max_steps=2000)) for _ in range(2))
    failing._post(Finetune(first.id))
    assert training(first)
    number = failing._post(Finetune(second.id))
    with no_room(failing):
        failing._send(0, Stop(number))
        assert until(lambda: second.name in failing.state.trouble)
    assert until(lambda: second.state == "stopped"), log_of(failing)


def test_when_cuda_breaks_all_are_told_and_a_new_process_answers(failing: EngineClient, adapted: Run) -> None:
    asked, pid = two_being_written(failing, adapted), failing.pid
    fail(failing, "cuda")
    for each in asked:
        assert isinstance(each.join().error, EngineError)
        assert "illegal memory access" in str(each.error)
    assert until(lambda: failing.pid != pid)
    assert ready(failing), log_of(failing)
    assert "only a new process mends" in log_of(failing)
    assert Listener(failing, request(adapted, 3, most=5)).join().last.finished
