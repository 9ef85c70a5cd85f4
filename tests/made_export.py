"""What an export looks like, and somebody's adapter on the Hub, with made-up weights."""

import json
from pathlib import Path
from typing import Any

from deepdoctor.card import facts_of, write_cards
from deepdoctor.origins import real_id
from deepdoctor.runs import Run

WEIGHTS = bytes(range(256)) * 4000
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "base_model_name_or_path": "owner/base"}
HEAD = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def export_of(run: Run, folder: Path, merged: bool = True, step: int | None = None) -> Path:
    """An export's folder with made-up weights."""
    made = {
        "adapter_step": step or run.status["step"],
        "final": step is None,
        "adapter_hash": "",
        "unpacked": False,
        "base_id": real_id(run.model.name),
    }
    files: dict[str, bytes] = {
        "adapter/adapter_model.safetensors": WEIGHTS,
        "adapter/adapter_config.json": json.dumps({"base_model_name_or_path": "/home/jane/model", "r": 16}).encode(),
        "tokenizer/tokenizer.json": b"{}",
        "prompt_style.json": b"{}",
        "config.json": json.dumps({**run.details, "run": run.id, "step": step, "base_hash": "abc", **made}).encode(),
        **({"merged/model.safetensors": WEIGHTS * 2, "merged/config.json": b"{}"} if merged else {}),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_cards(folder, facts_of(run, [], "doctor/Llama-x", made))
    return folder


def weights(head: dict[str, Any] = HEAD) -> bytes:
    """A safetensors file with that head."""
    told = json.dumps(head).encode()
    return len(told).to_bytes(8, "little") + told + bytes(4)


def adapter_files(**config: Any) -> dict[str, bytes]:
    """An adapter's repository."""
    return {"adapter_config.json": json.dumps(PLAIN | config).encode(), "adapter_model.safetensors": weights(), "notes.txt": b"more"}
