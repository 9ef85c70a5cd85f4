"""On PyTorch before 2.12, the attention kernel for rows in line, by the name and with the arguments by which Unsloth asks for it.

PyTorch 2.11 has that kernel, grouped heads included, but no argument that says so; Unsloth then cuts rows apart and asks once for each. The
pinned PyTorch has the argument. All that trains by Unsloth in these benchmarks gets it: the app and its peer alike.
"""

from typing import Any


def varlen_for_unsloth() -> bool:
    """Give Unsloth the kernel; says whether that was needed, which it is not with a PyTorch that has the argument, or without Unsloth."""
    from deepdoctor.engine.accelerator import HAS_UNSLOTH

    if not HAS_UNSLOTH:
        return False
    from torch.nn.attention.varlen import varlen_attn
    from unsloth.utils import attention_dispatch

    if attention_dispatch._TORCH_VARLEN_ATTN is not None:
        return False

    def with_grouped_heads(*given: Any, enable_gqa: bool, **more: Any) -> Any:  # noqa: ARG001 - the kernel sees it from the shapes
        return varlen_attn(*given, **more)

    attention_dispatch._TORCH_VARLEN_ATTN = with_grouped_heads
    return True
