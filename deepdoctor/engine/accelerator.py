"""The device that computes, its memory, and what must be imported before all else: Unsloth patches other libraries as they are imported.

Whatever imports transformers, peft or trl imports this module first. UNSLOTH=off in the environment does without Unsloth.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


def _import_unsloth() -> bool:
    if not torch.cuda.is_available() or find_spec("unsloth") is None or os.environ.get("UNSLOTH") == "off":
        return False
    # by default it writes compiled trainers into the working directory, and tells its makers that it was started
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(tempfile.gettempdir()) / f"deepdoctor-unsloth-{os.getuid()}"))
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else it says false: rows would be encoded on one core
    import unsloth  # noqa: F401

    return True


HAS_UNSLOTH = _import_unsloth()


def device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def devices() -> int:
    """How many processes can train on this machine, each with a device of its own: GPUs, or on a CPU cores."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1 if torch.backends.mps.is_available() else os.cpu_count() or 1


def prepare(most_gib: float | None) -> None:
    """Set up CUDA for this process: at most so much memory, and attention without cuDNN, which builds a plan for each new length."""
    if not torch.cuda.is_available():
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, most_gib * GIB / total) if most_gib else 1.0)


@contextmanager
def attention_by(kernels: str) -> Iterator[None]:
    """Within this, attention is computed by "cudnn" where it can, or without it by "pytorch"."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(kernels == "cudnn")
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@dataclass(frozen=True)
class Card:
    """What the device says about the numbers that fit it: "cuda", "mps" or "cpu", bytes that the model may use, its own 16-bit numbers."""

    kind: str
    memory: int
    half: torch.dtype = torch.bfloat16


def card(most_gib: float | None = None) -> Card:
    """The device's card, with at most so many GiB of its memory."""
    return Card(device().type, total_bytes(most_gib), half())


def half(supports_bfloat16: Callable[..., bool] | None = None) -> torch.dtype:
    """The 16-bit numbers that the GPU computes in itself: float16 on one that would only emulate bfloat16, such as a T4."""
    supports_bfloat16 = supports_bfloat16 or torch.cuda.is_bf16_supported
    return torch.bfloat16 if supports_bfloat16(including_emulation=False) else torch.float16


def total_bytes(most_gib: float | None = None) -> int:
    """Memory that the model may use: the GPU's, or of it as much as is allowed; on a CPU the machine's."""
    if not torch.cuda.is_available():
        return psutil.virtual_memory().total
    total = torch.cuda.mem_get_info()[1]
    return min(total, int(most_gib * GIB)) if most_gib else total


def free_bytes(most_gib: float | None = None) -> int:
    """Memory that could still be allocated: of the GPU, what the allocator holds unused included; without one of the machine."""
    if not torch.cuda.is_available():
        return available_bytes()
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return min(free, total_bytes(most_gib) - torch.cuda.memory_allocated())


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Memory of the machine that is free or can be freed; in a container with a limit no more than its limit leaves."""
    available = psutil.virtual_memory().available
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit
        return available
    return min(available, limit - used + int(stat.get("inactive_file", 0)))
