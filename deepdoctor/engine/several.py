"""Training by several processes, a GPU each: started with `accelerate launch`, watched from here, and spoken to through the run's folder.

The processes are those of `deepdoctor.engine.worker`. In `workers/` of the run's folder lie what they are to do (job.json), what they print
(output.log), the wish that they stop (stop), and why they failed (error.json).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

import deepdoctor
from deepdoctor.engine.ahead import Ahead
from deepdoctor.errors import EngineError
from deepdoctor.files import write_json
from deepdoctor.processes import this_process
from deepdoctor.runs import Run

LAUNCHER = "accelerate.commands.launch"
WORKER = "deepdoctor.engine.worker"
LOOK_EVERY = 0.1
LINES_TOLD = 5
# seconds that processes have to end by themselves when they are told to
TO_END = 10.0


def workers_folder(run: Run) -> Path:
    """Where a run's processes and this one leave word for each other."""
    return run.path / "workers"


def train_on_several(run: Run, ahead: Ahead, should_stop: Callable[[], bool], resume: bool = False) -> None:
    """Train a run by as many processes as its recipe has devices, as `finetune` does in one; returns when they have ended.

    ahead: the model that they load, each for itself, and how they compute, which is decided once for all. `should_stop` is asked several
    times a second; the processes save a checkpoint and end within a step. Where this process dies, so do they, in the same way. Raises
    EngineError, in the words of the process that failed.
    """
    folder = workers_folder(run)
    shutil.rmtree(folder, ignore_errors=True)
    run.claim()
    run.set_status(message=f"Starting {run.finetune.devices} processes")
    assert ahead.decision
    job = {"model": ahead.model.model_dump(), "decision": ahead.decision.to_dict(), "resume": resume, "began": ahead.began}
    write_json(folder / "job.json", {**job, "cuda": torch.cuda.is_available(), "engine": this_process()})
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(
            launch_command(run),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(run.finetune.devices),
            start_new_session=True,  # Ctrl-C is for this process, which asks them to stop
        )
    try:
        while process.poll() is None:
            if should_stop():
                (folder / "stop").touch()
            time.sleep(LOOK_EVERY)
    except (Exception, KeyboardInterrupt):
        end(process)
        raise
    finally:
        _await_orphans(process, run)
    if process.returncode:
        raise EngineError(why_failed(folder, process.returncode))


def launch_command(run: Run) -> list[str]:
    """The command that trains a run by several processes. On a CPU too the launcher's name for them is --multi_gpu."""
    processes = ["--num_processes", str(run.finetune.devices), "--num_machines", "1", "--gpu_ids", "all", "--main_process_port", "0"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the trainer decides
    return [sys.executable, "-m", LAUNCHER, "--multi_gpu", *processes, *plain, "--module", WORKER, str(run.path.resolve())]


def _environment(devices: int) -> dict[str, str]:
    """This process's own, without places in another group of processes; cores are shared out, and this package is found."""
    found = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    path = os.pathsep.join([str(Path(deepdoctor.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = str(max(1, (os.cpu_count() or 1) // devices))
    alone = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # nothing leaves this machine
    return {"OMP_NUM_THREADS": threads, **alone, **found, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def why_failed(folder: Path, code: int) -> str:
    """Why processes ended that should not have: as the first of them that failed told it, else their last lines."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((folder / "error.json").read_text(encoding="utf-8"))["message"])
    lines = (folder / "output.log").read_text(encoding="utf-8", errors="replace").splitlines()
    last = "\n".join([line for line in lines if line.strip()][-LINES_TOLD:])
    how = f"were killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"The training processes {how}; see workers/output.log in the run's folder. Their last lines:\n{last}"


def end(process: "subprocess.Popen[Any]", wait: float = TO_END) -> None:
    """End a launcher and its processes: asked first, and after so many seconds killed; returns when they no longer run."""
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        left = psutil.wait_procs(family, timeout=wait)[1]
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()  # before psutil does: it would keep the exit code to itself
        psutil.wait_procs(left, timeout=TO_END)
    process.wait()


def _await_orphans(process: "subprocess.Popen[Any]", run: Run) -> None:
    """Where the launcher died and its processes have not ended yet, wait until they have: they see it, and save."""
    while process.poll() is not None and run.status["process"] != this_process() and run.is_claimed():
        time.sleep(LOOK_EVERY)
