"""What the device says of itself: numbers that it does not only emulate, and memory within a container's limit."""

from deepdoctor.engine.accelerator import GIB, attention_by, available_bytes, card, free_bytes, half

from pathlib import Path

import psutil
import pytest
import torch


@pytest.mark.parametrize(("itself", "expected"), [(True, torch.bfloat16), (False, torch.float16)], ids=["L4", "T4"])
def test_bfloat16_that_is_only_emulated_does_not_count(itself: bool, expected: torch.dtype) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or itself

    assert half(supported) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_the_memory_is_the_machines() -> None:
    assert card().memory == psutil.virtual_memory().total
    assert 0 < free_bytes() <= card().memory


@pytest.mark.parametrize(("kernels", "on"), [("cudnn", True), ("pytorch", False)])
def test_attention_is_computed_as_planned_and_afterwards_as_before(kernels: str, on: bool) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with attention_by(kernels):
        assert torch.backends.cuda.cudnn_sdp_enabled() is on
    assert torch.backends.cuda.cudnn_sdp_enabled() is before


def limited(folder: Path, most: str, used: int, cache: int) -> Path:
    """What the kernel says about a container of that limit, of which so much is used, files that it could forget included."""
    for name, content in {"max": most, "current": str(used), "stat": f"anon 5\ninactive_file {cache}"}.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")
    return folder


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert available_bytes(limited(tmp_path, str(GIB // 16), GIB // 32, GIB // 64)) == 3 * GIB // 64
    assert available_bytes(limited(tmp_path, str(2**60), GIB, 0)) <= psutil.virtual_memory().total
    for unlimited in (limited(tmp_path, "max", GIB, 0), tmp_path / "no such folder"):
        assert available_bytes(unlimited) > GIB // 16
