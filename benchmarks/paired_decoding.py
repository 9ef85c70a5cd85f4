"""Paired decoding against two sequential `generate` calls: base and tuned written in one pass, and one after the other, in one run.

    python benchmarks/paired_decoding.py [--model nano|FOLDER] [--run ID] [--tokens 256] [--repeats 5] [--json] [--save]

Both ways write the same number of greedy tokens a side from the same prompt. The end-of-sequence token is an ordinary token for both:
neither stops at it nor avoids it. Without a run, the tuned side is a random rank-16 adapter on all seven projections. On an NVIDIA GPU
benchmarks/decoding_gpu.py measures more, in a process of its own for each peer.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deepdoctor.config import EMBEDDED_MODEL, FinetuneConfig, ModelConfig, SamplingConfig, Settings
from deepdoctor.dataset import held_out_examples
from deepdoctor.engine.adapters import fresh_adapter, select_adapter
from deepdoctor.engine.backends import TRAINED
from deepdoctor.engine.decode import Row, decode
from deepdoctor.engine.model import LoadedModel, load
from deepdoctor.errors import DeepDoctorError
from deepdoctor.files import write_json, write_text
from deepdoctor.prompts import render_question
from deepdoctor.runs import Runs

AIM = 0.65
PAIRS_AIM = 3.0
PAIRS_AT_ONCE = 8
RESULTS = Path(__file__).parent / "results"


class Endless(LoadedModel):
    """A loaded model for which no token ends an answer, so that every row writes exactly as many tokens as asked."""

    @property
    def eos_id(self) -> int:
        """An id that no token has."""
        return -1


def random_adapter(loaded: LoadedModel) -> str:
    """Attach the article's adapter with random instead of zero second factors, and return its name."""
    model = fresh_adapter(loaded, FinetuneConfig(lora_rank=16))
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    model.eval().requires_grad_(False)
    return TRAINED


def paired(loaded: LoadedModel, prompts: Sequence[list[int]], adapter: str, tokens: int) -> list[list[int]]:
    """Greedy tokens of each prompt, base rows first, then tuned rows, all written in one pass by `engine.decode`."""
    sampling = SamplingConfig(temperature=0, max_new_tokens=tokens)
    rows = [Row(prompt, side, sampling) for side in (None, adapter) for prompt in prompts]
    for _ in decode(Endless(**vars(loaded)), rows):
        pass
    return [row.tokens for row in rows]


def sequential(loaded: LoadedModel, prompt: list[int], adapter: str, tokens: int) -> list[list[int]]:
    """Greedy tokens of base and tuned, by transformers: adapter disabled, then enabled."""
    assert loaded.peft is not None
    from transformers import GenerationConfig  # on a GPU after Unsloth

    ids = torch.tensor([prompt], device=loaded.device)
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=loaded.eos_id, eos_token_id=None)
    asked: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "generation_config": settings}
    own, loaded.base.generation_config = loaded.base.generation_config, settings  # its end token would fill the gap that None leaves
    loaded.peft.set_adapter(adapter, inference_mode=True)
    try:
        with torch.inference_mode():
            with loaded.peft.disable_adapter():
                base = loaded.peft.generate(**asked)
            tuned = loaded.peft.generate(**asked)
    finally:
        loaded.base.generation_config = own
    return [written[0, len(prompt) :].tolist() for written in (base, tuned)]


def bytes_read(loaded: LoadedModel) -> int:
    """Bytes of base weights that every step reads: the layers and the head."""
    layers = sum(weight.nbytes for name, weight in loaded.base.model.layers.named_parameters() if "lora_" not in name)
    return layers + loaded.base.lm_head.weight.nbytes


def copy_rate(device: torch.device, size: int = 2**28) -> float:
    """Bytes a second that a copy reads and writes: the fastest of eight of that many bytes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> list[list[int]]:
        target.copy_(source)
        return []

    return 2 * size / min(timed(copy)[0] for _ in range(8))


def timed(call: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Seconds of a call, and what it returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    written = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, written


def measure(loaded: LoadedModel, adapter: str, prompts: Sequence[list[int]], tokens: int, repeats: int) -> dict[str, Any]:
    """Median times of one pair, of two sequential calls for the same prompt, and of all prompts' pairs at once.

    The ways take turns, so that whatever else the machine does meets all of them. The first turn warms up and is not counted.
    """
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "paired": lambda: paired(loaded, prompts[:1], adapter, tokens),
        "sequential": lambda: sequential(loaded, prompts[0], adapter, tokens),
        "pairs_at_once": lambda: paired(loaded, prompts, adapter, tokens),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    written: dict[str, list[list[int]]] = {}
    for turn in range(repeats + 1):
        for way, call in ways.items():
            taken, written[way] = timed(call)
            if turn:
                seconds[way].append(taken)
    rows = {"paired": 2, "sequential": 2, "pairs_at_once": 2 * len(prompts)}
    figures = {way: _figures(seconds[way], rows[way], tokens) for way in ways}
    ratio = figures["paired"]["seconds"] / figures["sequential"]["seconds"]
    times = figures["pairs_at_once"]["tokens_per_second"] / figures["paired"]["tokens_per_second"]
    rate, read = copy_rate(loaded.device), bytes_read(loaded)
    floor = 1000 * read / rate
    return {
        **figures,
        "pairs": len(prompts),
        "prompt_tokens": len(prompts[0]),
        "new_tokens": tokens,
        "repeats": repeats,
        "ratio": round(ratio, 3),
        "aim": AIM,
        "reached": ratio <= AIM,
        "pairs_times": round(times, 2),
        "pairs_aim": PAIRS_AIM,
        "pairs_reached": times >= PAIRS_AIM,
        "floor": {
            "copy_gb_per_second": round(rate / 1e9, 2),
            "bytes_read": read,
            "ms_per_step": round(floor, 3),
            "times_floor": round(figures["paired"]["ms_per_step"] / floor, 2),
        },
        "identical": {"base": written["paired"][0] == written["sequential"][0], "tuned": written["paired"][1] == written["sequential"][1]},
        "sides_differ": written["paired"][0] != written["paired"][1],
    }


def _figures(seconds: list[float], rows: int, tokens: int) -> dict[str, float]:
    """seconds: the median; ms_per_step: until every row has one more token, prompts' reading spread over the steps."""
    median = statistics.median(seconds)
    return {
        "seconds": round(median, 4),
        "fastest": round(min(seconds), 4),
        "slowest": round(max(seconds), 4),
        "ms_per_step": round(1000 * median / tokens, 3),
        "tokens_per_second": round(rows * tokens / median, 1),
    }


def machine(loaded: LoadedModel) -> dict[str, Any]:
    """What was measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": loaded.info.device,
        "model": loaded.config.name,
        "parameters": loaded.info.parameters,
        "precision": loaded.info.precision,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "peft")}},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def as_markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    of, same, floor = result["machine"], result["identical"], result["floor"]
    versions = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    ways = {
        "sequential": "two sequential `generate` calls",
        "paired": "one pair in one pass",
        "pairs_at_once": f"{result['pairs']} pairs in one pass",
    }
    table = [
        f"| {label} | {figures['seconds']:.3f} | {figures['fastest']:.3f}–{figures['slowest']:.3f} | {figures['ms_per_step']:.2f} "
        f"| {figures['tokens_per_second']:,.0f} |"
        for label, figures in ((label, result[way]) for way, label in ways.items())
    ]
    lines = [
        "# Paired decoding against two sequential `generate` calls",
        "",
        f"{of['model']}, {of['parameters']:,} parameters, {of['precision']}, {result['adapter']}. "
        f"Prompt of {result['prompt_tokens']} tokens, {result['new_tokens']} greedy new tokens a side, medians of {result['repeats']}.",
        f"{of['processor']}, {of['cores']} cores, {of['torch_threads']} torch threads, device {of['device']}; {versions}.",
        "",
        "| way | seconds | range | ms a step | tokens/s |",
        "|---|---:|---:|---:|---:|",
        *table,
        "",
        f"One pair takes **{result['ratio']:.2f} times** as long as two sequential calls (aim: at most {result['aim']}; "
        f"{'reached' if result['reached'] else 'not reached'}).",
        f"{result['pairs']} pairs at once write **{result['pairs_times']:.1f} times** the tokens a second of one pair (aim: at least "
        f"{result['pairs_aim']:g}; {'reached' if result['pairs_reached'] else 'not reached'}).",
        f"Floor: {floor['bytes_read'] / 1e6:.1f} MB of weights at the measured copy rate of {floor['copy_gb_per_second']:.1f} GB/s take "
        f"{floor['ms_per_step']:.2f} ms a step; a pair takes {floor['times_floor']:.1f} times that.",
        f"Greedy tokens identical: base {'yes' if same['base'] else 'no'}, tuned {'yes' if same['tuned'] else 'no'}; "
        f"base and tuned write {'different' if result['sides_differ'] else 'the same'} tokens.",
        "",
        "A step of the sequential way is one token of base and one of tuned. Made by `python benchmarks/paired_decoding.py --save`.",
    ]
    return "\n".join(lines) + "\n"


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Load model and adapter as asked and measure. Raises DeepDoctorError if they are not there."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load(ModelConfig.of({"name": options.model}), Path(scratch))
    run = Runs(options.data_dir).get(options.run) if options.run else None
    adapter = select_adapter(loaded, run.adapter_dir()) if run else random_adapter(loaded)
    cases = held_out_examples()[:PAIRS_AT_ONCE]
    prompts = [loaded.tokenizer(render_question(case.example.question))["input_ids"] for case in cases]
    measured = measure(loaded, adapter, prompts, options.tokens, options.repeats)
    told = f"adapter of run {run.name}" if run else "random adapter of rank 16 on all seven projections"
    return {"machine": machine(loaded), "adapter": told, **measured}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --save write the result beside this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="nano or a local folder (default: %(default)s)")
    parser.add_argument("--run", help="id of the run whose adapter is the tuned side (default: a random adapter)")
    parser.add_argument("--data-dir", type=Path, default=Settings.from_environment().data_dir, help="where runs lie (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens a side (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/paired_decoding_<device>.md and .json")
    options = parser.parse_args(arguments)
    try:
        result = benchmark(options)
    except DeepDoctorError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2) if options.json else as_markdown(result))
    if options.save:
        name = f"paired_decoding_{'cpu' if result['machine']['device'] == 'CPU' else 'gpu'}"
        write_text(RESULTS / f"{name}.md", as_markdown(result))
        write_json(RESULTS / f"{name}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
