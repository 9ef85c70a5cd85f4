"""Paired decoding on one GPU beside its peers, with the floor that the memory sets.

    python benchmarks/decoding_gpu.py FOLDER [--precision bfloat16] [--precision 4bit] [--save NAME] [--profile FOLDER]

FOLDER holds a model (benchmarks/random_model.py makes one of the 8B's architecture); the tuned side is a random rank-16 adapter on all
seven projections. Peers write one side after the other by `generate`: transformers in a process without Unsloth, and Unsloth for inference.
"""

from deepdoctor.engine.accelerator import prepare

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are no installed package

from benchmarks.paired_decoding import Endless, bytes_read, copy_rate, random_adapter, sequential, timed
from deepdoctor.config import ModelConfig, SamplingConfig
from deepdoctor.engine.backends import Transformers
from deepdoctor.engine.decode import Decoder, Row
from deepdoctor.engine.model import LoadedModel, linear_parts, load
from deepdoctor.engine.pairs import Pairs
from deepdoctor.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
PEER_TOKENS, TURNS = 64, 3
GREEDY = SamplingConfig(temperature=0, max_new_tokens=512)


def written(loaded: LoadedModel, pairs: int, prompt: int, sampling: SamplingConfig, adapter: str) -> dict[str, float]:
    """ms a step of so many pairs whose prompts have `prompt` tokens, and ms to the first token: medians of TURNS turns' medians."""
    decoder = Decoder(Endless(**vars(loaded)), 2 * pairs, prompt + sampling.max_new_tokens)
    torch.manual_seed(0)
    turns: list[list[float]] = []
    for _turn in range(1 + TURNS):  # the first captures graphs
        rows = [Row(torch.randint(5, 2000, (prompt,)).tolist(), side, sampling) for _ in range(pairs) for side in (None, adapter)]
        decoder.submit(rows)
        began, found = time.perf_counter(), []
        while decoder.step():
            now = time.perf_counter()
            found.append(1000 * (now - began))
            began = now
        turns.append(found)
    each = [statistics.median(found[8:-1]) for found in turns[1:]]
    return {
        **{"ms_per_step": round(statistics.median(each), 3), "fastest_turn": round(min(each), 3), "slowest_turn": round(max(each), 3)},
        "ms_first": round(statistics.median(found[0] for found in turns[1:]), 1),
    }


def peers(folder: Path, precision: str) -> dict[str, Any]:
    """ms a step (one token of base and one of tuned) of `generate`, one side after the other, in this process."""
    loaded, adapter = opened(folder, precision) if os.environ["UNSLOTH"] == "on" or precision != "4bit" else stock_4bit(folder)
    prompt = torch.randint(5, 2000, (150,)).tolist()
    if loaded.backend.name == "unsloth":
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(loaded.peft)
    seconds = [timed(lambda: sequential(loaded, prompt, adapter, PEER_TOKENS))[0] for _turn in range(1 + TURNS)][1:]
    each = [round(1000 * taken / PEER_TOKENS, 2) for taken in seconds]
    return {"way": loaded.backend.name, "ms_per_step": statistics.median(each), "turns": each}


def stock_4bit(folder: Path) -> tuple[LoadedModel, str]:
    """The model in 4 bits by transformers and bitsandbytes alone, which the app does not do, with the same random adapter."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, quantization_config=kind, dtype=torch.bfloat16, device_map={"": 0})
    info: Any = SimpleNamespace(decoding="", projections=linear_parts(base.model.layers[0]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = LoadedModel(ModelConfig(name=str(folder)), base.eval().requires_grad_(False), tokenizer, info, Transformers(), folder)
    return loaded, random_adapter(loaded)


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
    command = [sys.executable, "-W", "ignore", __file__, str(folder), "--precision", precision, "--peer"]
    done = subprocess.run(command, env={**os.environ, "UNSLOTH": unsloth}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"failed": done.stderr[-800:]}


def peers_apart(folder: Path, precision: str) -> dict[str, dict[str, Any]]:
    """What both peers take, each in a process of its own."""
    return {"transformers": in_other_process(folder, precision, "off"), "unsloth": in_other_process(folder, precision, "on")}


def measure(folder: Path, precision: str, beside: dict[str, dict[str, Any]], profile: Path | None = None) -> dict[str, Any]:
    """Our own figures, and how they compare with those of the peers `beside`."""
    loaded, adapter = opened(folder, precision)
    rate, read = copy_rate(loaded.device, 2**30), bytes_read(loaded)
    warm, first = first_token(loaded, adapter)
    pair = written(loaded, 1, 150, GREEDY, adapter)
    at_1k = written(loaded, 1, 768, GREEDY, adapter)
    sampled = written(loaded, 1, 150, GREEDY.changed(temperature=0.6), adapter)
    eight = written(loaded, 8, 150, GREEDY, adapter)
    if profile:
        profile_of(loaded, adapter, profile)
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
        **beside,
        "to_floor": round(at_1k["ms_per_step"] / floor, 2),
        **{f"against_{name}": _ratio(peer, pair) for name, peer in beside.items()},
        "row_rate_of_eight": round(pair["ms_per_step"] / eight["ms_per_step"], 3),
    }


def profile_of(loaded: LoadedModel, adapter: str, file: Path) -> None:
    """Write down what twenty steps of one pair at 1k context spend on each kernel."""
    from torch.profiler import ProfilerActivity, profile

    decoder = Decoder(Endless(**vars(loaded)), 2, 1280)
    torch.manual_seed(0)
    decoder.submit([Row(torch.randint(5, 2000, (1000,)).tolist(), side, GREEDY.changed(max_new_tokens=64)) for side in (None, adapter)])
    for _ in range(20):
        decoder.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began = time.perf_counter()
        for _ in range(20):
            decoder.step()
        torch.cuda.synchronize()
        taken = 1000 * (time.perf_counter() - began) / 20
    events = [event for event in seen.key_averages() if event.self_device_time_total]
    total = sum(event.self_device_time_total for event in events) / 20e3
    lines = [
        f"One pair at 1k context: {taken:.2f} ms a step while profiled, of which kernels {total:.2f} ms (overlapping ones counted twice).",
        "",
    ]
    lines += ["us a step  launches a step  kernel"]
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:24]:
        lines.append(f"{event.self_device_time_total / 20:9.1f}  {event.count / 20:15.1f}  {event.key[:90]}")
    write_text(file, "\n".join(lines) + "\n")


def _ratio(peer: dict[str, Any], pair: dict[str, float]) -> float | None:
    return round(peer["ms_per_step"] / pair["ms_per_step"], 2) if "ms_per_step" in peer else None


def main() -> int:
    """Measure, print one line a precision, and with --save write all under results/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", action="append", help="bfloat16 (if none is given) or 4bit; may be given twice")
    parser.add_argument("--peer", action="store_true", help="measure only `generate`, in this process")
    parser.add_argument("--without-peers", action="append", default=[], metavar="PRECISION", help="measure only our own decoder there")
    parser.add_argument("--profile", type=Path, help="also write, into that folder, what a step spends on each kernel")
    parser.add_argument("--save", help="name of a file under benchmarks/results/, without its ending")
    options = parser.parse_args()
    precisions: list[str] = options.precision or ["bfloat16"]
    prepare(None)
    if options.peer:
        print(json.dumps(peers(options.folder, precisions[0])), flush=True)
        return 0
    # before this process holds memory of its own
    found = {each: {} if each in options.without_peers else peers_apart(options.folder, each) for each in precisions}
    for each in precisions:
        profile = options.profile / f"decoding_profile_{each}.txt" if options.profile else None
        found[each] = measure(options.folder, each, found[each], profile)
        print(json.dumps(found[each]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    if options.save:
        write_json(RESULTS / f"{options.save}.json", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
