"""Thirty raters judge at once over HTTP, against the real app: how long a verdict takes, and whether any is lost when the app is killed.

    python benchmarks/judging_load.py [--raters 30] [--verdicts 1000] [--json] [--save]

Each rater is a thread that reads a while, loads the form, saves a verdict, now and then sends it twice, and locks it.
In the middle the app is killed with SIGKILL and started again; raters repeat what was not answered. At the end the files are read.
"""

import argparse
import functools
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.config import SamplingConfig, StudyConfig
from deepdoctor.files import write_json, write_text
from deepdoctor.overlap import Seen
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.questions import bundled_bank
from deepdoctor.studies.study import Studies, Study
from deepdoctor.studies.trials import Rater

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
AIM_SECONDS = 0.5
STARTS_WITHIN = 120
SENT_TWICE = 0.1
VERDICT = {"preference": "A", "correct-A": "correct", "correct-B": "partly", "harm-A": "none", "harm-B": "moderate", "comment": "A remark."}


@dataclass
class App:
    """The real app, `python app.py`, on one port, started again after a kill."""

    data_dir: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start it and wait for the page; returns the seconds that took."""
        began = time.perf_counter()
        command = [sys.executable, "app.py", "--port", str(self.port), "--data-dir", str(self.data_dir)]
        with (self.data_dir / "app.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        while time.perf_counter() - began < STARTS_WITHIN:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/judge/style.css", timeout=5).status_code == 200:
                    return time.perf_counter() - began
            time.sleep(0.2)
        raise TimeoutError(f"The app did not answer:\n{(self.data_dir / 'app.log').read_text()}")

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the app and its engine process, and wait until the app is gone."""
        assert self.process
        os.killpg(self.process.pid, number)
        self.process.wait(timeout=60)


@dataclass
class Measured:
    """What the raters saw. Latencies in seconds; `told` are the verdicts that were called saved: (rater, trial, submission)."""

    forms: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    told: set[tuple[str, str, str]] = field(default_factory=set)
    twice: int = 0
    unanswered: int = 0
    refused: list[str] = field(default_factory=list)


def study_of(data_dir: Path, questions: int) -> Study:
    """An open study on the bundled bank with made-up answers of usual length."""
    bank = bundled_bank()[:questions]
    config = StudyConfig(run="made-up", repeat_share=0)
    study = Studies(data_dir).create(config, bank, "made-up", dict.fromkeys((each.id for each in bank), Seen("unseen", None, None, 0.0)))
    for question, seed in study.pending():
        texts = (f"A thought.</think>\n{question.reference} " * times for times in (4, 2))
        base, tuned = (Transcript(text, 300, 100, 4.0, "stop") for text in texts)
        comparison = Comparison(question.question, base, tuned, SamplingConfig(seed=seed), "article", "made-up", "made-up")
        study.append_answer({"question": question.id, "seed": seed, "comparison": comparison.to_dict(), "native": None})
    study.open()
    return study


def judge(app: App, study: Study, rater: Rater, measured: Measured, pause: float) -> None:
    """One rater's work: every trial in turn."""
    rng = random.Random(rater.token)
    home = f"{app.url}/judge/{study.id}/{rater.token}"
    with httpx.Client(timeout=30) as client:
        for trial in rater.trials:
            time.sleep(rng.uniform(0.5, 1.5) * pause)
            form = _answered(measured, measured.forms, functools.partial(client.get, home))
            submission = re.findall(r'name="submission" value="([^"]+)"', form.text)
            if not submission:
                measured.refused.append(f"form: {form.status_code}")
                continue
            sent = {**VERDICT, "submission": submission[0], "action": "save"}
            for _ in range(1 + (rng.random() < SENT_TWICE)):
                answer = _answered(measured, measured.saves, functools.partial(client.post, f"{home}/{trial.id}", data=sent))
                if answer.status_code != 303:
                    measured.refused.append(f"verdict: {answer.status_code}")
                elif (rater.token, trial.id, submission[0]) in measured.told:
                    measured.twice += 1
                else:
                    measured.told.add((rater.token, trial.id, submission[0]))
            lock = {"submission": f"{submission[0]}-lock", "action": "lock"}
            _answered(measured, [], functools.partial(client.post, f"{home}/{trial.id}", data=lock))


def _answered(measured: Measured, seconds: list[float], ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask until there is an answer, as a reader who presses reload; the time of the answered request is noted."""
    until = time.monotonic() + STARTS_WITHIN
    while True:
        began = time.perf_counter()
        try:
            answer = ask()
        except httpx.HTTPError:
            measured.unanswered += 1
            if time.monotonic() > until:
                raise
            time.sleep(0.3)
            continue
        seconds.append(time.perf_counter() - began)
        return answer


def benchmark(raters: int, verdicts: int, pause: float) -> dict[str, Any]:
    """Run the load and compare what raters were told with what is on disk."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        study = study_of(data_dir, -(-verdicts // raters))
        joined = [study.join(f"Rater {number}", "Cardiology", 5) for number in range(raters)]
        app, measured = App(data_dir, _free_port()), Measured()
        app.start()
        began = time.perf_counter()
        try:
            with ThreadPoolExecutor(raters) as pool:
                working = [pool.submit(judge, app, study, rater, measured, pause) for rater in joined]
                killed_at = _kill_in_the_middle(app, measured, raters * len(joined[0].trials))
                for each in working:
                    each.result()
            seconds = time.perf_counter() - began
        finally:
            app.end(signal.SIGKILL)
        store = Judgments(data_dir)
        rows = [row for row in store.rows(study.id) if row["kind"] == "verdict"]
        return {
            "machine": machine(),
            "raters": raters,
            "seconds": round(seconds, 1),
            **killed_at,
            **_findings(measured, rows, store.damaged),
        }


def _kill_in_the_middle(app: App, measured: Measured, all_verdicts: int) -> dict[str, Any]:
    while len(measured.told) < all_verdicts // 2:
        time.sleep(0.005)
    told = len(measured.told)
    app.end(signal.SIGKILL)
    return {"killed_after": told, "down_seconds": round(app.start(), 1)}


def _findings(measured: Measured, rows: list[dict[str, Any]], damaged: int) -> dict[str, Any]:
    kept = [(row["rater"], row["trial"], row["submission"]) for row in rows]
    return {
        "verdicts": len({(rater, trial) for rater, trial, _ in kept}),
        "lost": len(measured.told - set(kept)),
        "stored_twice": len(kept) - len(set(kept)),
        "torn_lines": damaged,
        "sent_twice": measured.twice,
        "unanswered": measured.unanswered,
        "refused": len(measured.refused),
        "form": percentiles(measured.forms),
        "save": percentiles(measured.saves),
        "aim_seconds": AIM_SECONDS,
        "reached": percentiles(measured.saves)["p95"] <= AIM_SECONDS and not measured.told - set(kept) and len(kept) == len(set(kept)),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and longest."""
    ranked = sorted(seconds)
    return {
        name: round(ranked[min(len(ranked) - 1, int(share * len(ranked)))], 4) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1))
    }


def machine() -> dict[str, Any]:
    """What was measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"processor": next(named, "") or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def as_markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    of = result["machine"]
    times = [
        f"| {label} | {result[name]['p50'] * 1000:.0f} | {result[name]['p95'] * 1000:.0f} | {result[name]['max'] * 1000:.0f} |"
        for name, label in (("form", "a pair and its form"), ("save", "saving a verdict, synced to disk"))
    ]
    lines = [
        "# Judging under load",
        "",
        f"{result['raters']} raters at once over HTTP, the real app, {result['verdicts']:,} verdicts in {result['seconds']:.0f} s; "
        f"raters and app share {of['processor']}, {of['cores']} cores.",
        "",
        "| | median, ms | p95, ms | longest, ms |",
        "|---|---:|---:|---:|",
        *times,
        "",
        f"Aim: p95 of saving at most {result['aim_seconds'] * 1000:.0f} ms, nothing lost: "
        f"**{'reached' if result['reached'] else 'not reached'}**.",
        f"After {result['killed_after']} verdicts the app was killed (SIGKILL) and started again; it was away for "
        f"{result['down_seconds']:.1f} s, and {result['unanswered']} requests went unanswered.",
        f"Told saved but not on disk: **{result['lost']}**. Stored twice: **{result['stored_twice']}**, though {result['sent_twice']} were "
        f"sent twice. Torn lines skipped: {result['torn_lines']}. Refused: {result['refused']}.",
        "",
        "Made by `python benchmarks/judging_load.py --save`.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --save write the result beside this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--raters", type=int, default=30, help="raters at once (default: %(default)s)")
    parser.add_argument("--verdicts", type=int, default=1000, help="verdicts in all, rounded up to whole trials (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds a rater reads before judging (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/judging_load.md and .json")
    options = parser.parse_args(arguments)
    result = benchmark(options.raters, options.verdicts, options.pause)
    print(json.dumps(result, indent=2) if options.json else as_markdown(result))
    if options.save:
        write_text(RESULTS / "judging_load.md", as_markdown(result))
        write_json(RESULTS / "judging_load.json", result)
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
