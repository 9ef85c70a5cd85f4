"""Fine-tuning on several GPUs of one machine beside one of them: tokens a second, losses, stopping and resuming.

    python benchmarks/several_gpus.py FOLDER [--devices 2] [--steps 20] [--case NAME]… [--seconds 420] [--save NAME]

FOLDER holds a model (benchmarks/random_model.py makes one of the 8B's architecture). The article's rows, training only, each time from
Start with the model loaded: on one GPU; on all with as many rows on each, so that a step has that many times the rows; on all sharing one
step's rows; and stopped there and resumed. No further run begins after --seconds. A run on several GPUs imports its libraries and loads the
model in each process, and afterwards in this one again. If one fails, the end of what its processes said is printed.
"""

from deepdoctor.engine.accelerator import GIB

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are no installed package

from benchmarks.finetuning import QUIET, apart, versions
from benchmarks.random_model import save_rows
from deepdoctor.config import AUTOMATIC, DatasetConfig, ModelConfig, preset
from deepdoctor.engine.session import Session
from deepdoctor.engine.several import workers_folder
from deepdoctor.errors import DeepDoctorError
from deepdoctor.files import write_json, write_text
from deepdoctor.runs import Run

RESULTS = Path(__file__).parent / "results"
WARM_UP, STOP_AT = 5, 3
MEANS = {
    "one": "one GPU",
    "scaled": "all GPUs, as many rows on each",
    "shared": "all GPUs share a step's rows",
    "resumed": "the same, stopped and resumed",
}


def measured(session: Session, run: Run, stop_at: int | None = None, resume: bool = False) -> dict[str, Any]:
    """Train a run to its end, or to a step, and tell what it took; {"failed"} in the words of what failed."""
    began = time.perf_counter()
    try:
        session.finetune(run.id, resume=resume, should_stop=lambda: stop_at is not None and run.status["step"] >= stop_at)
    except DeepDoctorError as error:
        log = workers_folder(run) / "output.log"
        print(log.read_text(errors="replace")[-6000:] if log.exists() else "", file=sys.stderr, flush=True)
        return {"failed": str(error)}
    status, curve = run.status, [row for row in run.curve() if "loss" in row]
    rates = [row["tokens_per_second"] for row in curve if row["step"] > WARM_UP]
    return {
        **{"state": status["state"], "step": status["step"], "device": status["device"], "backend": status["backend"]},
        "tokens_per_second": round(statistics.median(rates)) if rates else None,
        "wall_seconds": status["wall_seconds"],
        "with_reload_seconds": round(time.perf_counter() - began, 1),
        "planned_seconds": status["plan"]["seconds"],
        **{"peak_gib": round(status["peak_bytes"] / GIB, 2), "planned_gib": round(status["planned_bytes"] / GIB, 2)},
        **{"how": status["plan"]["how"], "losses": [row["loss"] for row in curve]},
    }


def measure(folder: str, devices: int, steps: int, ends: float, cases: Collection[str]) -> dict[str, Any]:
    """The runs of these cases, none begun after time.monotonic() is `ends`; one GPU's always: others are compared with it."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as data:
        rows = DatasetConfig(source="file", path=str(save_rows(Path(data) / "rows.jsonl")))
        session = Session(Path(data))
        loaded = session.load(ModelConfig(name=folder))
        config, info = loaded.config, loaded.info
        del loaded  # it makes room for the processes
        recipe = preset("article").changed(**AUTOMATIC, **QUIET, max_steps=steps, warmup_steps=min(5, steps))

        def told(case: str, run: Run, **more: Any) -> None:
            found[case] = measured(session, run, **more)
            if rate := found[case].get("tokens_per_second"):
                limit = found[case]["how"]["devices"] * info.flops / (4 * info.parameters)
                found[case]["of_arithmetic"] = round(rate / limit, 3)
            print(case, json.dumps(found[case]), file=sys.stderr, flush=True)

        def due(case: str) -> bool:
            return case in cases and time.monotonic() < ends

        told("one", session.runs.create(config, rows, recipe))
        shared = recipe.changed(devices=devices)
        if due("scaled"):
            told("scaled", session.runs.create(config, rows, shared.changed(rows_per_device=True)))
        if due("shared"):
            told("shared", session.runs.create(config, rows, shared))
        if due("resumed"):
            run = session.runs.create(config, rows, shared)
            told("stopped", run, stop_at=STOP_AT)
            if found["stopped"].get("state") == "stopped":
                told("resumed", run, resume=True)
    return found


def as_markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    named = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        "# Several GPUs beside one",
        "",
        f"{result['gpus']} × {result['machine']}; {result['model']}; {result['steps']} steps; {named}.",
        "",
        "| | tokens/s | of arithmetic's limit | to one | losses off one's | Start to end, s | planned, s "
        "| peak of one, GiB | planned, GiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    one = result["cases"]["one"]
    for case, words in MEANS.items():
        found = result["cases"].get(case)
        if found is None or "failed" in found:
            lines.append(f"| {words} | {'failed: ' + found['failed'][:120] if found else 'not run'} | | | | | | | |")
            continue
        rate = found["tokens_per_second"]
        limit = f"{found['of_arithmetic']:.0%}" if "of_arithmetic" in found else ""
        ratio = f"{rate / one['tokens_per_second']:.2f}"
        off = "" if case in ("one", "scaled") else f"{apart(found['losses'], one['losses']):.3%}"
        lines.append(
            f"| {words} | {rate:,} | {limit} | {ratio} | {off} | {found['wall_seconds']} | {found['planned_seconds']:.0f} "
            f"| {found['peak_gib']} | {found['planned_gib']} |"
        )
    limit = "Arithmetic's limit: 4 operations a parameter and token at the measured rate of a matrix product, on every GPU."
    return "\n".join([*lines, "", limit, "", "Made by `python benchmarks/several_gpus.py`."]) + "\n"


def main() -> int:
    """Measure, print, and with --save write under results/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--case", action="append", choices=list(MEANS), help="one of the runs, again for more; without it all")
    parser.add_argument("--seconds", type=float, default=420, help="begin no further run after so many")
    parser.add_argument("--save", help="name of a file under benchmarks/results/, without its ending")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps must be more than {WARM_UP}: the first are not counted")
    cases = measure(options.folder, options.devices, options.steps, time.monotonic() + options.seconds, options.case or MEANS)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    head = {"machine": machine, "gpus": torch.cuda.device_count(), "model": Path(options.folder).name, "steps": options.steps}
    result = {**head, "versions": versions(), "cases": cases}
    print(as_markdown(result))
    if options.save:
        write_json(RESULTS / f"{options.save}.json", result)
        write_text(RESULTS / f"{options.save}.md", as_markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
