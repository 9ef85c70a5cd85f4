"""Models as plans see them, for the tests of estimates, planner and plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepdoctor
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.estimates import How

SIZES = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024), "o_proj": (4096, 4096)}
WIDE = {"gate_proj": (4096, 14336), "up_proj": (4096, 14336), "down_proj": (14336, 4096)}
LLAMA_8B = ModelInfo(
    name="8B",
    device="NVIDIA H200",
    precision="4bit",
    parameters=8_030_261_248,
    layers=32,
    hidden_size=4096,
    vocabulary=128_256,
    max_length=131_072,
    projections=SIZES | WIDE,
    tokenizer_file="",
    eos="<eos>",
    base_hash="",
    flops=790e12,
    launch_seconds=7.1e-6,
    memory_bytes=140 * 2**30,
    backend="unsloth",
    heads=32,
)
# 476 rows of 500 to 800 tokens
ROWS = [500 + index % 301 for index in range(476)]
H200 = replace(LLAMA_8B, precision="bfloat16")
T4 = replace(LLAMA_8B, device="Tesla T4", memory_bytes=15 * 2**30)
CPU = replace(LLAMA_8B, device="CPU (2 cores)", precision="float32", backend="transformers")

SHAPE: dict[str, Any] = json.loads((Path(deepdoctor.__file__).parent / "nano" / "model" / "config.json").read_text(encoding="utf-8"))
HIDDEN, MLP = SHAPE["hidden_size"], SHAPE["intermediate_size"]
KEYS = SHAPE["num_key_value_heads"] * HIDDEN // SHAPE["num_attention_heads"]
# the embedded model on the two cores that the estimates' constants were measured on
NANO = replace(
    CPU,
    **{"parameters": 4_885_760, "layers": SHAPE["num_hidden_layers"], "heads": SHAPE["num_attention_heads"]},
    **{"hidden_size": HIDDEN, "vocabulary": SHAPE["vocab_size"], "flops": 2.05e11},
    projections={"q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, KEYS), "v_proj": (HIDDEN, KEYS), "o_proj": (HIDDEN, HIDDEN)}
    | {"gate_proj": (HIDDEN, MLP), "up_proj": (HIDDEN, MLP), "down_proj": (MLP, HIDDEN)},
)


def how(precision: str = "bfloat16", batch: int = 2, accumulation: int = 4, checkpointing: bool = False, **more: Any) -> How:
    """A way to compute a run; not given, 2 × 4 rows in bfloat16 without checkpointing."""
    return How(precision, batch, accumulation, checkpointing, **more)
