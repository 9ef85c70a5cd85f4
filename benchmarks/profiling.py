"""What steps spend their time on: tables of PyTorch's profiler, by kernels of the GPU and by operations on the CPU."""

import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from deepdoctor.files import write_text
from deepdoctor.runs import Run

ARITHMETIC = ("mm", "bmm", "addmm", "baddbmm", "scaled_dot_product", "linear")


class Profiled:
    """Tells a clock of every step of a run; with a file, three steps in the middle are profiled and the tables written there."""

    def __init__(self, file: Path | None, clock: Any) -> None:
        self.file, self.clock = file, clock

    def __enter__(self) -> "Profiled":
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profiler = profile(activities=[ProfilerActivity.CPU, *cuda], schedule=schedule(wait=8, warmup=2, active=3, repeat=1))
        if self.file:
            self.profiler.start()
        return self

    def steps_of(self, run: Run) -> Callable[[], bool]:
        """What the engine is to ask whether to stop that run. It never does; it is asked after steps and within probes."""
        last = 0

        def asked() -> bool:
            nonlocal last
            if (step := run.status.get("step", 0)) > last:
                last = step
                self.clock.tick()
                if self.file:
                    self.profiler.step()
            return False

        return asked

    def __exit__(self, *_error: object) -> None:
        if self.file:
            self.profiler.stop()
            write_text(self.file, tables(self.profiler, self.clock.ends))


def tables(profiler: Any, ends: list[float]) -> str:
    """What three steps spent their time on: by kernels of the GPU, and by operations on the CPU."""
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type.name == "CUDA" and not event.key.startswith(("ProfilerStep", "Optimizer."))]
    gpu = sum(event.self_device_time_total for event in kernels) / 3e3
    cpu = sum(event.self_cpu_time_total for event in events) / 3e3
    counted = sum(event.self_cpu_time_total for event in events if any(word in event.key for word in ARITHMETIC)) / 3e3
    steps = statistics.median(after - before for before, after in pairwise(ends)) * 1e3
    head = (
        f"A step takes {steps:.0f} ms (median, unprofiled steps among them). In the profiled ones, per step: GPU kernels {gpu:.0f} ms, CPU "
    )
    head += f"{cpu:.0f} ms on all threads, of which matrix products and attention {counted:.0f} ms ({counted / cpu:.0%}).\n\n"
    order = ["self_cpu_time_total", *(["self_cuda_time_total"] if gpu else [])]
    return head + "\n".join(events.table(sort_by=by, row_limit=28, max_name_column_width=70) for by in order)


class Sampled:
    """Looks a hundred times a second at where the thread that made it stands, and tells in which functions it was for how long.

    A look counts for the seconds since the one before, because whatever does not let another thread run delays it.
    """

    EVERY = 0.01

    def __init__(self) -> None:
        self._thread, self._over, self.seen = threading.get_ident(), threading.Event(), Counter[str]()

    def __enter__(self) -> "Sampled":
        self._looked = time.perf_counter()
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(self.EVERY):
            frame, functions = sys._current_frames().get(self._thread), set()
            now = time.perf_counter()
            while frame is not None:
                functions.add(f"{Path(frame.f_code.co_filename).parent.name}/{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")
                frame = frame.f_back
            self.seen.update(dict.fromkeys(functions, now - self._looked))
            self._looked = now

    def table(self, least: float = 0.15) -> str:
        """Seconds within each function, callees included, the longest first."""
        return "\n".join(f"{seconds:7.2f} s  {name}" for name, seconds in self.seen.most_common() if seconds >= least)
