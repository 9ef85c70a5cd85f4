"""What a LoRA adapter's own products take of a training step on a GPU, each timed alone, beside reading and writing as many numbers.

    python benchmarks/adapter_products.py [--save NAME]

Of an 8B with rank 16 on seven projections, bfloat16, for a step of 8 rows of 724 tokens: each kind as often as a layer needs it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are no installed package

from deepdoctor.files import write_text

RESULTS = Path(__file__).parent / "results"
TOKENS, RANK, LAYERS = 8 * 724, 16, 32
# widths of a layer's inputs and outputs, and how many of its projections have them on either side: keys and values; queries, attention's
# output and the residual's; gate, up and down
WIDTHS = {1024: 2, 4096: 9, 14336: 3}


def microseconds(call: Callable[[], object], times: int = 30) -> float:
    """Of one call, by the GPU's own clock."""
    for _ in range(3):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / times


def kinds(width: int) -> dict[str, Callable[[], object]]:
    """What is done at an input or output of that width, and the least that the memory takes for it."""
    wide, low = (torch.randn(TOKENS, size, device="cuda", dtype=torch.bfloat16) for size in (width, RANK))
    factor = torch.randn(RANK, width, device="cuda", dtype=torch.bfloat16)
    gradient = torch.empty(RANK, width, device="cuda", dtype=torch.bfloat16)
    return {
        "add the adapter's part": lambda: wide.addmm_(low, factor, alpha=1e-6),
        "as much read and written": lambda: wide.mul_(1.0),
        "multiply by a factor": lambda: wide @ factor.t(),
        "a factor's gradient": lambda: gradient.addmm_(low.t(), wide, beta=0),
        "as much read": lambda: wide.sum(),
    }


def main() -> int:
    """Time each kind at each width and print. That Unsloth multiplies inputs once more, for a gradient, is not counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--save", help="name of a file under benchmarks/results/, without its ending")
    options = parser.parse_args()
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; rank {RANK}, {TOKENS} tokens, {LAYERS} layers.",
        "Microseconds of one, by width; then milliseconds of a step.",
        f"{'':26s}" + "".join(f"{width:>10d}" for width in WIDTHS) + "    a step",
    ]
    found: dict[str, list[float]] = {}
    for width in WIDTHS:
        for name, call in kinds(width).items():
            found.setdefault(name, []).append(microseconds(call))
    for name, each in found.items():
        step = LAYERS * sum(times * one for times, one in zip(WIDTHS.values(), each, strict=True)) / 1e3
        lines.append(f"{name:26s}" + "".join(f"{one:10.1f}" for one in each) + f"{step:10.1f}")
    print("\n".join(lines))
    if options.save:
        write_text(RESULTS / f"{options.save}.txt", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
