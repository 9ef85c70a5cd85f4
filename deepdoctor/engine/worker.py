"""One of several processes that train a run together: `python -m deepdoctor.engine.worker RUN`, started by `accelerate launch`.

Each sees its own GPU alone, as if there were no others, and does what `finetune` does in one process; the library exchanges the gradients.
The first process writes the run, the others only read it.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from deepdoctor.config import FinetuneConfig, ModelConfig
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import DeepDoctorError, is_disk_full, is_out_of_memory, print_trace, told
from deepdoctor.files import write_json
from deepdoctor.processes import Named, is_alive
from deepdoctor.runs import Run, Runs

# seconds in which a process whose engine is gone ends its step and saves
LONGEST_ALONE = 300
ENGINE_GONE = "The engine process ended while it was training. Resume continues from the last checkpoint."


@dataclass(frozen=True)
class ReadRun(Run):
    """A run as processes after the first see it: nothing that they do is written, probed or logged."""

    writes: ClassVar[bool] = False

    @property
    def finetune(self) -> FinetuneConfig:
        """The recipe without what one process does for all."""
        return super().finetune.changed(wandb="off", probe_steps=0)

    def set_status(self, **changes: Any) -> None:
        """Nothing."""

    def append_metric(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def append_probe(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def keep(self, name: str, value: Any) -> None:
        """Nothing."""

    def log(self, line: str) -> None:
        """Nothing."""


def take_place(cuda: bool) -> int:
    """Let this process see its own GPU alone, before anything looks at them, and return its place among the processes.

    Libraries that take the first GPU they see, and Unsloth's kernels, then need not know of the others.
    """
    local, rank = int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"])
    if cuda:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local].strip() if visible else str(local)
        os.environ["LOCAL_RANK"] = "0"
        if folder := os.environ.get("UNSLOTH_COMPILE_LOCATION"):  # two processes must not write the same files
            os.environ["UNSLOTH_COMPILE_LOCATION"] = f"{folder}-{local}"
    return rank


def of_machine(info: ModelInfo, processes: int, cuda: bool) -> ModelInfo:
    """The model as a plan for all processes sees it: each has measured a GPU of its own, or its share of the CPU's cores."""
    return replace(info, devices=processes, flops=info.flops * (1 if cuda else processes))


def train(run: Run, job: dict[str, Any], stop: Path, engine_waits: Callable[[], bool]) -> None:
    """Load the model and train the run beside the other processes, until the first sees that `stop` is there or nobody waits."""
    import torch
    from torch import distributed

    from deepdoctor.engine.ahead import Ahead
    from deepdoctor.engine.finetune import finetune
    from deepdoctor.engine.model import load
    from deepdoctor.planner import Decision

    # among several processes accelerate calls the CPU cpu:0, a place from which torch cannot restore an optimizer
    torch.serialization.register_package(0, lambda _stored: None, lambda stored, place: stored if place == "cpu:0" else None)
    ahead = Ahead(ModelConfig.of(job["model"]), decision=Decision.of(job["decision"]), began=job["began"])
    loaded = load(ahead.model, run.path.parents[1])
    if not engine_waits():  # it died meanwhile, and another process may have resumed the run
        return
    loaded.info = of_machine(loaded.info, int(os.environ["WORLD_SIZE"]), job["cuda"])

    def should_stop() -> bool:
        wanted = engine_waits() and not stop.exists()
        said = torch.tensor([not wanted], dtype=torch.uint8, device=loaded.device)
        distributed.broadcast(said, src=0)
        return bool(said.item())

    finetune(loaded, run, should_stop, job["resume"], Runs(run.path.parents[1]).free_bytes(), ahead)
    distributed.barrier()
    distributed.destroy_process_group()


def in_words(error: Exception) -> str:
    """What went wrong, for the user."""
    if isinstance(error, DeepDoctorError) or is_out_of_memory(error) or is_disk_full(error):
        return str(told(error, "training"))
    return f"{type(error).__name__}: {error}. Details are in workers/output.log in the run's folder."


class Watch:
    """Looks whether somebody still waits for this process: the engine, and the launcher that started it.

    One that waits for others which are gone would hold its GPU for hours; so a process that nobody wants ends in any case after a while.
    """

    def __init__(self, engine: Named) -> None:
        self.engine, self.launcher = engine, os.getppid()
        threading.Thread(target=self._end_late, name="watch", daemon=True).start()

    def __call__(self) -> bool:
        """Whether engine and launcher are there."""
        return is_alive(self.engine) and os.getppid() == self.launcher

    def _end_late(self) -> None:
        while self():
            time.sleep(1)
        time.sleep(LONGEST_ALONE)
        os._exit(1)


def main() -> None:
    """Do the job that lies in the run's folder; what goes wrong is written beside it. The first to fail is the one to be told of."""
    path = Path(sys.argv[-1])
    folder = path / "workers"
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    rank, watched = take_place(job["cuda"]), Watch(job["engine"])
    run = ReadRun(path) if rank else Run(path)
    try:
        if watched():
            train(run, job, folder / "stop", watched)
    except Exception as error:
        print_trace()
        if not (folder / "error.json").exists():
            write_json(folder / "error.json", {"message": in_words(error), "process": rank})
        sys.stderr.flush()
        os._exit(1)  # the others wait for this one, and what is left of it would wait for them
    if run.state == "stopped" and not watched():
        run.set_status(state="interrupted", message=ENGINE_GONE)
        run.log(f"Interrupted: {ENGINE_GONE}")


if __name__ == "__main__":
    main()
