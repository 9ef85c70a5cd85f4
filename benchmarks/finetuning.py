"""Fine-tuning beside its peers, and beside the floor that arithmetic sets: the article's rows a step, LoRA r=16 on seven projections.

    python benchmarks/finetuning.py [--model nano|FOLDER] [--case NAME]… [--peer-steps 60] [--json] [--save NAME]
                                    [--profile FILE [--profile-case NAME]]

FOLDER holds a model (benchmarks/random_model.py makes one of the 8B's architecture). Every case has a process of its own. Seconds count
from Start with the model loaded: tokenization, adapter, compilation and warm-up are in them; of peers, the adapter is not. The trainer is
imported before, as the app does on a GPU when it loads a model; on a CPU that is about a second of an app's first run. The 60 steps end
with the last of them; Start to end is the app's whole run, with the held-out loss, probe and checkpoint behind it, and that is what is
planned. Peers may be stopped by --peer-steps; their 60 steps are then what the first step took, and 59 times the median of the others.
Losses are compared, step by step, with TRL's in the same precision, from the same first values.
"""

from deepdoctor.engine.accelerator import GIB, prepare

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are no installed package

from benchmarks.laptop import processor
from benchmarks.older_torch import varlen_for_unsloth
from benchmarks.profiling import Profiled, Sampled
from benchmarks.random_model import save_rows
from deepdoctor.config import AUTOMATIC, EMBEDDED_MODEL, DatasetConfig, FinetuneConfig, ModelConfig, preset
from deepdoctor.dataset import load_rows, map_columns, to_examples
from deepdoctor.engine.follow import peak_bytes
from deepdoctor.engine.session import Session
from deepdoctor.engine.source import EMBEDDED_FOLDER
from deepdoctor.files import write_json, write_text
from deepdoctor.prompts import render_completion, render_question, style_named

RESULTS = Path(__file__).parent / "results"
STEPS = 60
CAP_GIB = 15.0
QUIET: dict[str, Any] = {"held_out_rows": 0, "eval_steps": 0, "probe_steps": 0, "checkpoint_steps": 100_000, "logging_steps": 1}
GPU_CASES = ("ours", "ours_quiet", "ours_15gib", "unsloth_15gib", "trl_4bit", "trl_16bit")
CPU_CASES = ("ours", "ours_quiet", "trl")
MEANS = {
    "ours": "this app, its own plan, with held-out losses, probes and checkpoints",
    "ours_quiet": "this app, its own plan, training only",
    "ours_15gib": f"this app, 4 bit, within {CAP_GIB:g} GiB, training only",
    "unsloth_15gib": f"Unsloth at the article's settings, within {CAP_GIB:g} GiB",
    "trl_4bit": "TRL + PEFT + bitsandbytes, 4 bit, 2 × 4, their defaults",
    "trl_16bit": "TRL + PEFT, bfloat16, 8 × 1, no checkpointing",
    "trl": "TRL + PEFT, same recipe",
}
LIKE = {"ours_quiet": ("trl_16bit", "trl"), "ours_15gib": ("trl_4bit",), "unsloth_15gib": ("trl_4bit",)}  # the same numbers by TRL
VERSIONS = ("torch", "transformers", "peft", "trl", "accelerate", "unsloth", "bitsandbytes", "xformers")


def recipe_for(nano: bool, steps: int) -> FinetuneConfig:
    """The article's recipe, or for the embedded model the Quick preset's, over so many steps."""
    found = preset("quick" if nano else "article")
    return found.changed(max_steps=steps, warmup_steps=min(found.warmup_steps, steps))


def ours(folder: str, case: str, rows: DatasetConfig, recipe: FinetuneConfig, profile: Path | None) -> dict[str, Any]:
    """Train by the engine. The plan that was made and what came of it are told with it."""
    from benchmarks.finetuning_peers import Clock

    changes = {**AUTOMATIC, **({} if case == "ours" else QUIET)}
    model: dict[str, Any] = {"name": folder}
    if case == "ours_15gib":
        changes, model = {**changes, "base_precision": "4bit"}, {**model, "precision": "4bit", "gpu_memory_gib": CAP_GIB}
    clock = Clock()
    with tempfile.TemporaryDirectory() as data:
        session, began = Session(Path(data)), time.perf_counter()
        config = session.load(ModelConfig.of(model)).config
        load_seconds = round(time.perf_counter() - began, 1)
        run = session.runs.create(config, rows, recipe.changed(**changes))
        with Profiled(profile, clock) as profiled, Sampled() as start:
            counted = profiled.steps_of(run)

            def asked() -> bool:
                never = counted()
                if clock.ends:
                    start.stop()
                return never

            clock.begin()
            session.finetune(run.id, should_stop=asked)
        status = run.status
        return {
            **{"ends": clock.ends, "load_seconds": load_seconds, "wall_seconds": status["wall_seconds"], "plan": status["plan"]},
            **{"precision": status["precision"], "backend": status["backend"], "parameters": session.loaded.info.parameters},  # type: ignore[union-attr]
            **{"losses": [row["loss"] for row in run.curve() if "loss" in row], "until_first_step": start.table().splitlines()},
        }


def one(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one case in this process."""
    nano, case = options.model == EMBEDDED_MODEL, options.one
    with tempfile.TemporaryDirectory() as scratch:
        rows = DatasetConfig() if nano else DatasetConfig(source="file", path=str(save_rows(Path(scratch) / "rows.jsonl")))
        recipe = recipe_for(nano, options.steps)
        prepare(None)
        given = varlen_for_unsloth()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if case.startswith("ours"):
            found = ours(options.model, case, rows, recipe, options.profile)
        else:
            from benchmarks import finetuning_peers

            torch.backends.cuda.enable_cudnn_sdp(True)  # theirs is PyTorch's default
            folder, said = EMBEDDED_FOLDER if nano else Path(options.model), texts(rows, recipe)
            if case == "unsloth_15gib":
                found = finetuning_peers.unsloth(folder, said, recipe, options.peer_steps, CAP_GIB)
            else:
                found = finetuning_peers.trl(folder, said, recipe, options.peer_steps, four_bit=case == "trl_4bit")
    peak = peak_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu")) / GIB
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor()}, {os.cpu_count()} cores"
    return {"case": case, **found, "peak_gib": round(peak, 2), "attention_given": given, "machine": machine, "flops": matrix_rate(nano)}


def texts(rows: DatasetConfig, recipe: FinetuneConfig, folder: Path = EMBEDDED_FOLDER) -> list[str]:
    """The rows as the texts that peers are given: what ours are encoded from."""
    loaded, style = load_rows(rows), style_named(recipe.prompt_style)
    eos = str(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"])
    return [
        render_question(each.question, style) + render_completion(each.reasoning, each.response, eos, style)
        for each in to_examples(loaded.rows, map_columns(loaded.columns, rows))
    ]


def in_own_process(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """`one` in a process of its own; {"failed": the end of what it said} if it fails."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--model",
        options.model,
        "--one",
        case,
        "--steps",
        str(options.steps),
        "--peer-steps",
        str(options.peer_steps),
    ]
    if options.profile and case == options.profile_case:
        command += ["--profile", str(options.profile)]
    environment = {**os.environ, "UNSLOTH": "off" if case.startswith("trl") else os.environ.get("UNSLOTH", "on")}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"case"')]
    found = json.loads(lines[-1]) if lines else {"case": case, "failed": (done.stderr or done.stdout)[-1500:]}
    print(f"{case}: {time.perf_counter() - began:.0f} s\n{json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def figures(found: dict[str, Any], floor: float) -> dict[str, Any]:
    """Seconds of the 60 steps, of the first and of a step, and how many times the floor that is."""
    if "failed" in found:
        return found
    ends = found["ends"]
    between = [after - before for before, after in pairwise(ends)]
    step = statistics.median(between)
    whole = ends[-1] if len(ends) == STEPS else ends[0] + (STEPS - 1) * step
    return {
        **{name: value for name, value in found.items() if name != "ends"},
        **{"steps": len(ends), "first_step": round(ends[0], 2), "step": round(step, 3), "slowest_step": round(max(between), 3)},
        **{"seconds_60": round(whole, 1), "to_floor": round(whole / floor, 2) if floor else None},
    }


def loss_difference(found: dict[str, Any], cases: list[dict[str, Any]]) -> float | None:
    """The largest relative difference of a loss from the one that TRL had at the same step, of the steps that both ran; None without."""
    wanted = next((each["losses"] for each in cases if each["case"] in LIKE.get(found["case"], ()) and "losses" in each), [])
    return apart(found.get("losses", []), wanted)


def apart(losses: Sequence[float], wanted: Sequence[float]) -> float | None:
    """The largest relative difference of losses, step by step as far as both go; None without a step."""
    return max((round(abs(one - other) / other, 6) for one, other in zip(losses, wanted, strict=False)), default=None)


def matrix_rate(nano: bool) -> float:
    """Operations a second of a large matrix product, measured here."""
    size, kind = (1024, torch.float32) if nano else (8192, torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(8):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def result_of(options: argparse.Namespace, found: list[dict[str, Any]], tokens: float) -> dict[str, Any]:
    """What has been measured so far. Its floor: seconds of the 60 steps if only 4·N operations a token were done, at the matrix rate."""
    parameters = next((each["parameters"] for each in found if "parameters" in each), 0)
    rate = max((each.get("flops", 0.0) for each in found), default=0.0)
    floor = {"flops": rate, "tokens": tokens, "seconds": 4 * parameters * tokens / rate if rate else 0.0}
    return {
        "machine": next((each["machine"] for each in found if "machine" in each), "unknown"),
        **{"model": Path(options.model).name, "parameters": parameters, "versions": versions(), "floor": floor},
        "cases": [{**figures(each, floor["seconds"]), "loss_difference": loss_difference(each, found)} for each in found],
    }


def mean_tokens(nano: bool) -> float:
    """Tokens a row, by the embedded tokenizer, which the random model has too."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    with tempfile.TemporaryDirectory() as scratch:
        rows = DatasetConfig() if nano else DatasetConfig(source="file", path=str(save_rows(Path(scratch) / "rows.jsonl")))
        return statistics.mean(len(tokenizer.encode(text).ids) for text in texts(rows, recipe_for(nano, STEPS)))


def as_markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    of_process = " of the process" if result["model"] == EMBEDDED_MODEL else ""
    lines = [
        "# Fine-tuning beside its peers",
        "",
        f"{result['machine']}; {result['model']}; " + ", ".join(f"{name} {number}" for name, number in result["versions"].items()) + ".",
        f"Floor: {result['floor']['seconds']:.1f} s for {result['floor']['tokens']:,.0f} tokens at the measured "
        f"{result['floor']['flops'] / 1e12:,.2f} TFLOP/s, 4 operations a parameter and token.",
        "",
        f"| | steps run | first step, s | a step, s | 60 steps, s | times the floor | Start to end, s | planned, s "
        f"| peak{of_process}, GiB | planned, GiB | losses off TRL's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for found in result["cases"]:
        if "failed" in found:
            lines.append(f"| {MEANS[found['case']]} | failed: {found['failed'].strip().splitlines()[-1][:160]} | | | | | | | | | |")
            continue
        plan = found.get("plan")
        took, seconds, memory = (
            (f"{found['wall_seconds']:.1f}", f"{plan['seconds']:.1f}", f"{plan['memory_bytes'] / GIB:.1f}") if plan else ("", "", "")
        )
        off = "" if found.get("loss_difference") is None else f"{found['loss_difference']:.2%}"
        lines.append(
            f"| {MEANS[found['case']]} | {found['steps']} | {found['first_step']:.1f} | {found['step']:.2f} | {found['seconds_60']:.1f} "
            f"| {found['to_floor']} | {took} | {seconds} | {found['peak_gib']:.1f} | {memory} | {off} |"
        )
    if any(found.get("attention_given") for found in result["cases"]):
        lines += [
            "",
            "This PyTorch lacks an argument by which Unsloth asks for attention over rows in line; it was given (older_torch.py).",
        ]
    return "\n".join([*lines, "", "Made by `python benchmarks/finetuning.py`; seconds count from Start with the model loaded."]) + "\n"


def main() -> int:
    """Measure each case and print; with --save what is there so far is written under results/ after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--case", action="append")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--peer-steps", type=int, default=STEPS)
    parser.add_argument("--one", help="measure that case in this process and print its figures")
    parser.add_argument("--profile", type=Path, help="profile three steps of --profile-case and write the tables there")
    parser.add_argument("--profile-case", choices=[case for case in MEANS if case.startswith("ours")], default="ours_quiet")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", help="name of a file under benchmarks/results/, without its ending")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)), flush=True)
        return 0
    nano, found = options.model == EMBEDDED_MODEL, list[dict[str, Any]]()
    tokens = mean_tokens(nano) * recipe_for(nano, STEPS).rows_per_step * STEPS
    for case in options.case or (CPU_CASES if nano else GPU_CASES):
        found.append(in_own_process(options, case))
        result = result_of(options, found, tokens)
        if options.save:
            write_json(RESULTS / f"{options.save}.json", result)
            write_text(RESULTS / f"{options.save}.md", as_markdown(result))
    print(json.dumps(result) if options.json else as_markdown(result))
    return 0


def versions() -> dict[str, str]:
    """Of Python and of those of VERSIONS that are installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
