"""Paired decoding on one GPU beside its peers, with the floor that the memory sets.

    python benchmarks/decoding_gpu.py FOLDER [--precision bfloat16|4bit] [--save NAME]

FOLDER holds a model (benchmarks/random_model.py makes one of the 8B's architecture); the tuned side is a random rank-16 adapter on all
seven projections. Peers write one side after the other by `generate`: transformers in a process without Unsloth, and Unsloth for inference.
"""

from deepdoctor.engine.accelerator import prepare

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired_decoding import Endless, bytes_read, copy_rate, random_adapter, sequential, timed
from deepdoctor.config import ModelConfig, SamplingConfig
from deepdoctor.engine.decode import Decoder, Row
from deepdoctor.engine.model import LoadedModel, load
from deepdoctor.engine.pairs import Pairs
from deepdoctor.files import write_json

RESULTS = Path(__file__).parent / "results"
PEER_TOKENS = 128
GREEDY = SamplingConfig(temperature=0, max_new_tokens=512)


def written(loaded: LoadedModel, pairs: int, prompt: int, sampling: SamplingConfig, adapter: str) -> dict[str, float]:
    """Median ms a step of so many pairs whose prompts have `prompt` tokens, from the second step on; and ms to the first token."""
    decoder = Decoder(Endless(**vars(loaded)), 2 * pairs, prompt + sampling.max_new_tokens)
    torch.manual_seed(0)
    found: list[float] = []
    for _turn in range(2):  # the first captures graphs
        rows = [Row(torch.randint(5, 2000, (prompt,)).tolist(), side, sampling) for _ in range(pairs) for side in (None, adapter)]
        decoder.submit(rows)
        began, found = time.perf_counter(), []
        while decoder.step():
            now = time.perf_counter()
            found.append(1000 * (now - began))
            began = now
    steps = found[8:-1]
    return {"ms_per_step": round(statistics.median(steps), 3), "ms_mean": round(statistics.mean(steps), 3), "ms_first": round(found[0], 1)}


def peers(folder: Path, precision: str) -> dict[str, Any]:
    """ms a step (one token of base and one of tuned) of `generate`, one side after the other, in this process."""
    loaded, adapter = opened(folder, precision)
    prompt = torch.randint(5, 2000, (150,)).tolist()
    if loaded.backend.name == "unsloth":
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(loaded.peft)
    seconds = []
    for tokens in (8, PEER_TOKENS, PEER_TOKENS):
        taken, _texts = timed(lambda tokens=tokens: sequential(loaded, prompt, adapter, tokens))
        seconds.append(taken)
    return {"way": loaded.backend.name, "ms_per_step": round(1000 * min(seconds[1:]) / PEER_TOKENS, 2)}


def opened(folder: Path, precision: str) -> tuple[LoadedModel, str]:
    """The model with a random adapter attached."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load(ModelConfig.of({"name": str(folder), "precision": precision}), Path(scratch))
    return loaded, random_adapter(loaded)


def first_token(loaded: LoadedModel, adapter: str) -> tuple[float, float]:
    """Seconds that loading spends on kernels and graphs, and from then to the first token of the first pair."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    pairs = Pairs(loaded)
    pairs.warm()
    ready = time.perf_counter()
    assert pairs.decoder
    pairs.decoder.submit([Row(list(range(5, 155)), side, GREEDY) for side in (None, adapter)])
    pairs.decoder.step()
    return ready - began, time.perf_counter() - ready


def in_other_process(folder: Path, precision: str, unsloth: str) -> dict[str, Any]:
    """`peers` in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.decoding_gpu", str(folder), "--precision", precision, "--peer"]
    done = subprocess.run(command, env={**os.environ, "UNSLOTH": unsloth}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"failed": done.stderr[-800:]}


def measure(folder: Path, precision: str, with_peers: bool) -> dict[str, Any]:
    """All figures; without peers only our own."""
    plain: dict[str, Any] = {"left out": "not asked for" if precision != "4bit" else "plain transformers is loaded in 16 bit only"}
    unsloth: dict[str, Any] = {"left out": "not asked for"}
    if with_peers:
        plain = plain if precision == "4bit" else in_other_process(folder, precision, "off")
        unsloth = in_other_process(folder, precision, "on")
    loaded, adapter = opened(folder, precision)
    rate, read = copy_rate(loaded.device, 2**30), bytes_read(loaded)
    warm, first = first_token(loaded, adapter)
    pair = written(loaded, 1, 150, GREEDY, adapter)
    at_1k = written(loaded, 1, 768, GREEDY, adapter)
    sampled = written(loaded, 1, 150, GREEDY.changed(temperature=0.6), adapter)
    eight = written(loaded, 8, 150, GREEDY, adapter)
    floor = 1000 * read / rate
    return {
        "gpu": torch.cuda.get_device_name(),
        "versions": {name: version(name) for name in ("torch", "triton", "transformers", "peft", "unsloth", "bitsandbytes")},
        **{
            "precision": precision,
            "parameters": loaded.info.parameters,
            "steps": type(Decoder(loaded, 2, 64).steps).__name__,
            "no_kernels": loaded.no_kernels,
        },
        **{"copy_tb_per_second": round(rate / 1e12, 3), "bytes_read_gb": round(read / 1e9, 2), "floor_ms": round(floor, 3)},
        **{
            "pair": pair,
            "pair_at_1k": at_1k,
            "pair_sampled": sampled,
            "eight_pairs": eight,
            "kernels_ready_seconds": round(warm, 2),
            "first_token_seconds": round(first, 3),
        },
        **{"transformers": plain, "unsloth": unsloth},
        "to_floor": round(at_1k["ms_per_step"] / floor, 2),
        "against_transformers": _ratio(plain, pair),
        "against_unsloth": _ratio(unsloth, pair),
        "row_rate_of_eight": round(pair["ms_per_step"] / eight["ms_per_step"], 3),
    }


def _ratio(peer: dict[str, Any], pair: dict[str, float]) -> float | None:
    return round(peer["ms_per_step"] / pair["ms_per_step"], 2) if "ms_per_step" in peer else None


def main() -> int:
    """Measure, print, and with --save write under results/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--peer", action="store_true", help="measure only `generate`, in this process")
    parser.add_argument("--without-peers", action="store_true", help="measure only our own decoder")
    parser.add_argument("--save", help="name of a file under benchmarks/results/, without its ending")
    options = parser.parse_args()
    prepare(None)
    result = (
        peers(options.folder, options.precision) if options.peer else measure(options.folder, options.precision, not options.without_peers)
    )
    print(json.dumps(result), flush=True)
    if options.save:
        write_json(RESULTS / f"{options.save}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
