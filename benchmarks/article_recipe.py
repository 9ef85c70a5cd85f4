"""The source article's recipe on one GPU, then a comparison with what came of it: seconds, memory, proof. One line a case.

    python benchmarks/article_recipe.py FOLDER [--case 4bit] [--case 4bit:15] [--case 4bit:15:float16] [--case bfloat16] [--save NAME]

FOLDER holds a model (benchmarks/random_model.py makes one of the 8B's architecture). A case is a precision, optionally the GiB of the GPU
that the process may use, and `float16` for a card without bfloat16. Rows are 500 of about 720 tokens.
"""

from deepdoctor.engine.accelerator import GIB

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are no installed package

from benchmarks.finetuning_peers import Clock
from benchmarks.older_torch import varlen_for_unsloth
from benchmarks.profiling import Profiled
from benchmarks.random_model import save_rows
from deepdoctor.config import DatasetConfig, ModelConfig, SamplingConfig, preset
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.protocol import Compare
from deepdoctor.engine.session import Session
from deepdoctor.files import write_json

RESULTS = Path(__file__).parent / "results"
ASKED = SamplingConfig(max_new_tokens=256)
VERSIONS = ("torch", "transformers", "peft", "trl", "unsloth", "bitsandbytes")


def measure(model: Path, case: str, folder: Path, steps: int, profile: Path | None = None) -> dict[str, Any]:
    """Train the recipe and compare once. seconds: of the whole run, evaluations, probes and checkpoints included; memory in GiB."""
    precision, *limits = case.split(":")
    gib = float(limits[0]) if limits and limits[0] else None
    without_bfloat16 = "float16" in limits[1:]
    supported = torch.cuda.is_bf16_supported
    if without_bfloat16:  # a card that lacks it is not at hand: the same code is told that this one does
        torch.cuda.is_bf16_supported = lambda *_args, **_more: False  # type: ignore[method-assign]
    try:
        session, began = Session(folder / "data"), time.perf_counter()
        loaded = session.load(ModelConfig.of({"name": str(model), "precision": precision, "gpu_memory_gib": gib}))
        load_seconds = time.perf_counter() - began
        torch.cuda.reset_peak_memory_stats()
        recipe = preset("article").changed(max_steps=steps, warmup_steps=min(5, steps), base_precision="auto")
        rows = DatasetConfig(source="file", path=str(folder / "rows.jsonl"))
        clock = Clock()
        run = session.runs.create(loaded.config, rows, recipe)
        with Profiled(profile, clock) as profiled:
            clock.begin()
            session.finetune(run.id, should_stop=profiled.steps_of(run))
        trained, curve = _peaks(), run.curve()
        switched = [_switch_seconds(loaded, run.adapter_dir(step)) for step in (run.checkpoints()[0], None, run.checkpoints()[0])]
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        *_, made = session.compare(Compare("What follows from chest pain on exertion?", run.id, sampling=ASKED))
        assert made.proof is not None
        return {
            **{"case": case, "backend": loaded.backend.name, "dtype": str(loaded.dtype), "held_in": loaded.info.precision, "steps": steps},
            "load_seconds": round(load_seconds, 1),
            "run_seconds": run.status["wall_seconds"],
            "step_seconds": round(statistics.median(after - before for before, after in pairwise(clock.ends)), 3),
            "first_step_seconds": round(clock.ends[0], 1),
            "train_memory_gib": trained,
            "losses": [row["loss"] for row in curve if "loss" in row],
            "held_out": [row["held_out_loss"] for row in curve if "held_out_loss" in row],
            **{"planned": run.status["plan"], "switch_seconds": switched},
            "compare_seconds": round(time.perf_counter() - began, 2),
            "compare_tokens": [made.base.tokens, made.tuned.tokens],
            "compare_memory_gib": _peaks(),
            "proof": {"base": made.proof.base_difference, "tuned": made.proof.tuned_difference, "effect": made.proof.effect},
        }
    finally:
        torch.cuda.is_bf16_supported = supported  # type: ignore[method-assign]


def _peaks() -> dict[str, float]:
    return {
        "allocated": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def _switch_seconds(loaded: LoadedModel, folder: Path) -> float:
    """Seconds until the adapter in that folder is the tuned side: the first time it is read from disk."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    select_adapter(loaded, folder)
    torch.cuda.synchronize()
    return round(time.perf_counter() - began, 3)


def main() -> int:
    """Measure each case, print it, and with --save write all under results/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[60], help="of each case in turn; the last number holds for the rest")
    parser.add_argument("--profile", type=Path, help="profile three steps of the last case and write the tables there")
    parser.add_argument("--save", help="name of a file under benchmarks/results/, without its ending")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    given = varlen_for_unsloth()
    for place, case in enumerate(options.case):
        with tempfile.TemporaryDirectory() as scratch:
            save_rows(Path(scratch) / "rows.jsonl")
            profile = options.profile if case == options.case[-1] else None
            found.append(measure(options.model, case, Path(scratch), options.steps[min(place, len(options.steps) - 1)], profile))
        print(json.dumps(found[-1]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    versions = {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}
    result = {"gpu": torch.cuda.get_device_name(), "versions": versions, "attention_given": given, "cases": found}
    if options.save:
        write_json(RESULTS / f"{options.save}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
