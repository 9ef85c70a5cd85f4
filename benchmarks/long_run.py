"""Ten viewers watch a run of 2,500 logged steps: what one tick of the live view takes on the server, and how many checkpoints there are.

    python benchmarks/long_run.py [--steps 2500] [--viewers 10] [--rounds 50] [--save]

The run's folder is written as the engine writes it. In each round one more step is logged, and all viewers tick at the same moment, the
worst that can happen: in the app they tick every two seconds, each when it likes. Measured is the handler, in threads as Gradio calls it.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import gradio as gr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are no installed package

from benchmarks.judging_load import machine, percentiles
from deepdoctor.checkpoints import rotate
from deepdoctor.comparison import Comparisons
from deepdoctor.config import PRESETS, DatasetConfig, FinetuneConfig, ModelConfig, Settings
from deepdoctor.engine.client import EngineClient
from deepdoctor.files import write_json, write_text
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.study import Studies
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import build_form
from deepdoctor.ui.loaded import Loaded
from deepdoctor.ui.train_events import NOTHING_SEEN, TrainEvents

RESULTS = Path(__file__).parent / "results"
AIM_SECONDS = 0.05
CURVES, SEEN = 3, -1  # among the outputs of a tick
NEWEST = 1e9  # where the slider over probed steps stands if it follows the newest


def recipe(steps: int) -> FinetuneConfig:
    """The Full epoch preset, so many steps long and with every step logged."""
    return PRESETS["full_epoch"].changed(max_steps=steps, logging_steps=1)


def metric(step: int, steps: int) -> dict[str, Any]:
    """A logged step, with made-up numbers of usual length: a loss that falls, is noisy, and has a peak now and then."""
    loss = 1.1 + 1.4 / (1 + step / 150) + 0.1 * ((step * 7919) % 101 / 101 - 0.5) + (0.8 if step % 977 == 0 else 0)
    return {
        "time": round(1.76e9 + 1.5 * step, 3),
        "step": step,
        "loss": round(loss, 5),
        "learning_rate": 2e-4 * (1 - step / (2 * steps)),
        "grad_norm": round(0.3 + step % 13 / 100, 4),
        "epoch": round(step / steps, 4),
        "tokens_per_second": round(5200 + step % 89 / 3, 1),
        "memory_gib": 7.812,
    }


def held_out(step: int) -> dict[str, Any]:
    """Held-out losses, best in the middle of the run."""
    loss = round(1.3 + abs(step - 1200) / 4000, 5)
    return {
        "time": 1.76e9,
        "step": step,
        "held_out_loss": loss,
        "held_out_reasoning_loss": loss + 0.05,
        "held_out_response_loss": loss - 0.1,
    }


def probe(step: int) -> dict[str, Any]:
    """A probe answer of the longest length."""
    reasoning, response = "She leaks when she coughs and sleeps dry. " * 25, "The residual volume is normal. " * 15
    text = f"{reasoning}</think>\n{response}"
    said = {"text": text, "reasoning": reasoning, "response": response, "closed": True, "tokens": 400, "finish_reason": "stop"}
    return {"step": step, "question": "What would cystometry most likely show?", **said}


def made_run(data_dir: Path, steps: int) -> tuple[Run, int]:
    """A run as it stands in training at `steps`, and how many checkpoints it had at most after a save."""
    config, most = recipe(steps), 0
    run = Runs(data_dir).create(ModelConfig(), DatasetConfig(), config, "Full epoch")
    rows, probes, log = [held_out(0)], [probe(0)], []
    for step in range(1, steps + 1):
        rows.append(metric(step, steps))
        log.append(f"12:00:00 step {step}: loss {rows[-1]['loss']:.4f}")
        if step % config.eval_steps == 0:
            rows.append(held_out(step))
            probes.append(probe(step))
    for name, lines in (("metrics.jsonl", map(json.dumps, rows)), ("probes.jsonl", map(json.dumps, probes)), ("train.log", log)):
        write_text(run.path / name, "\n".join(lines) + "\n")
    for step in range(config.checkpoint_steps, steps + 1, config.checkpoint_steps):
        write_json(run.checkpoint_dir(step) / "trainer_state.json", {"global_step": step})
        (run.checkpoint_dir(step) / "adapter_model.safetensors").write_bytes(b"weights")
        rotate(run, config.checkpoints_kept)
        most = max(most, len(run.checkpoints()))
    run.set_status(state="running", step=steps, steps=2 * steps, message="Training", seconds=1.5 * steps, eta_seconds=1.5 * steps)
    return run, most


def live_view(data_dir: Path) -> TrainEvents:
    """The handlers of the live view, around an engine that is not started."""
    stores = Runs(data_dir), Comparisons(data_dir), Studies(data_dir), Judgments(data_dir)
    context = Context(Settings(data_dir=data_dir), EngineClient(data_dir, ModelConfig()), *stores)
    with gr.Blocks(analytics_enabled=False):
        return TrainEvents(context, Loaded(), build_form(PRESETS["quick"], without=("preset",)))


def at_once(pool: ThreadPoolExecutor, viewers: int, tick: Callable[[int], Any]) -> list[tuple[float, Any]]:
    """(seconds, outputs) of every viewer's tick, all begun at the same moment."""
    barrier = Barrier(viewers)

    def timed(viewer: int) -> tuple[float, Any]:
        barrier.wait()
        began = time.perf_counter()
        found = tick(viewer)
        return time.perf_counter() - began, found

    return list(pool.map(timed, range(viewers)))


def measure(data_dir: Path, steps: int, viewers: int, rounds: int) -> dict[str, Any]:
    """The figures, ready for JSON; seconds."""
    run, most = made_run(data_dir, steps)
    events, load = live_view(data_dir), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    seen, ticks, quiet, outputs = [NOTHING_SEEN] * viewers, [], [], []

    def tick(viewer: int) -> Any:
        return events.tick(seen[viewer], "none", NEWEST)

    with ThreadPoolExecutor(viewers) as pool:
        opened = at_once(pool, viewers, lambda viewer: events.draw(seen[viewer], "none", NEWEST))
        seen[:] = [found[SEEN] for _, found in opened]
        for step in range(steps + 1, steps + 1 + rounds):
            run.append_metric(metric(step, steps))
            run.set_status(step=step, seconds=1.5 * step)
            run.log(f"step {step}: loss 1.2000")
            found = at_once(pool, viewers, tick)
            ticks += [seconds for seconds, _ in found]
            outputs = [output for _, output in found]
            seen[:] = [output[SEEN] for output in outputs]
            quiet += [seconds for seconds, _ in at_once(pool, viewers, tick)]
    drawn = outputs[0][CURVES]
    return {
        "machine": machine(),
        **{"load_before": load, "logged_steps": steps, "viewers": viewers, "rounds": rounds},
        **{"tick": percentiles(ticks), "nothing_new": percentiles(quiet), "opened": percentiles([seconds for seconds, _ in opened])},
        **{
            "most_points": max(points_of_plots(drawn)),
            "html_bytes": len(drawn),
            "metrics_bytes": (run.path / "metrics.jsonl").stat().st_size,
        },
        **{"most_checkpoints": most, "checkpoints": run.checkpoints(), "best": run.status["best_checkpoint"]},
        **{"aim_seconds": AIM_SECONDS, "reached": percentiles(ticks)["p95"] <= AIM_SECONDS},
    }


def points_of_plots(drawn: str) -> list[int]:
    """How many points each plot draws."""
    paths = (re.findall(r'<path class="s[^"]*" d="([^"]*)"', plot) for plot in drawn.split("<figure")[1:])
    return [sum(path.count("L") + 1 for path in found if "h0" not in path) for found in paths]


def as_markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    of, best, load = result["machine"], result["best"], result["load_before"]
    others = "" if load is None else f" Load of the machine in the minute before: {load:.1f}."
    rows = [
        f"| {label} | {result[name]['p50'] * 1000:.1f} | {result[name]['p95'] * 1000:.1f} | {result[name]['max'] * 1000:.1f} |"
        for name, label in (("tick", "tick after a logged step"), ("nothing_new", "tick with nothing new"), ("opened", "opening the page"))
    ]
    lines = [
        "# A long run",
        "",
        f"{result['logged_steps']:,} logged steps, {result['viewers']} viewers at the same moment, {result['rounds']} rounds; "
        f"{of['processor']}, {of['cores']} cores, Python {of['python']}.{others}",
        "",
        "| on the server | median, ms | p95, ms | longest, ms |",
        "|---|---:|---:|---:|",
        *rows,
        "",
        f"Aim: p95 of a tick at most {result['aim_seconds'] * 1000:.0f} ms: **{'reached' if result['reached'] else 'not reached'}**.",
        f"At most {result['most_points']} points a plot, {result['html_bytes'] / 1000:.0f} kB for the four plots together; the run's "
        f"metrics are {result['metrics_bytes'] / 1000:.0f} kB.",
        f"Checkpoints after a save: at most {result['most_checkpoints']}; left are those of the steps "
        f"{', '.join(map(str, result['checkpoints']))}, the best by held-out loss is that of step {best['step']}.",
        "",
        "Made by `python benchmarks/long_run.py --save`.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print one line of JSON, and with --save write the result beside this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2500, help="logged steps (default: %(default)s)")
    parser.add_argument("--viewers", type=int, default=10, help="viewers at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="steps that are logged while they watch (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/long_run.md and .json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="deepdoctor-long-") as folder:
        result = measure(Path(folder), options.steps, options.viewers, options.rounds)
    print(json.dumps(result))
    if options.save:
        write_text(RESULTS / "long_run.md", as_markdown(result))
        write_json(RESULTS / "long_run.json", result)
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
