"""What somebody on a laptop waits for: the page's first answer, and the Quick run; then what the run did to the embedded model.

    python benchmarks/laptop.py [--starts 3] [--rows N] [--json] [--save]

The app is started a few times with an empty data folder; the first start fills the file cache and does not count. The run and its figures
are those of `python -m deepdoctor.nano.report`, on all held-out rows unless --rows asks for fewer.
"""

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from deepdoctor.nano.report import as_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
START_SECONDS, QUICK_SECONDS = 5.0, 120.0
GIVE_UP = 60


def answered_after(folder: Path) -> float:
    """Seconds from `python app.py` to the page's first answer. Raises TimeoutError after a minute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, "app.py", "--port", str(port), "--data-dir", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - began < GIVE_UP:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=GIVE_UP) as answer:
                answer.read()
                return time.perf_counter() - began
            time.sleep(0.02)
        raise TimeoutError("The page did not answer.")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=GIVE_UP)


def measure(starts: int, rows: int | None) -> dict[str, Any]:
    """The figures, ready for JSON."""
    with tempfile.TemporaryDirectory(prefix="deepdoctor-laptop-") as name:
        folder = Path(name)
        began = [answered_after(folder / f"start-{number}") for number in range(starts + 1)][1:]
        command = [sys.executable, "-m", "deepdoctor.nano.report", "--json", "--data-dir", str(folder / "data")]
        command += ["--rows", str(rows)] if rows else []
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(ran.stderr)
    report = {name: value for name, value in json.loads(ran.stdout).items() if name != "transcripts"}
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()},
        "starts": [round(each, 2) for each in began],
        "start_median": round(median(began), 2),
        "start_reached": median(began) <= START_SECONDS,
        "quick_seconds": report["finetuning_seconds"],
        "quick_reached": report["finetuning_seconds"] <= QUICK_SECONDS,
        "report": report,
    }


def processor() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def as_markdown(found: dict[str, Any]) -> str:
    """The figures for people."""
    shown = ", ".join(f"{each:.2f}" for each in found["starts"])
    told = {True: "reached", False: "missed"}
    return f"""# On a laptop

{found["machine"]}, no GPU.

- `python app.py` to the page's first answer, file cache warm: median {found["start_median"]:.2f} s ({shown});
  aim at most {START_SECONDS:.0f} s: **{told[found["start_reached"]]}**.
- The Quick preset, evaluation and probe answers included: {found["quick_seconds"]:.0f} s; aim at most {QUICK_SECONDS:.0f} s:
  **{told[found["quick_reached"]]}**.

```text
{as_text(found["report"])}
```

Made by `python benchmarks/laptop.py --save`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --save write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--starts", type=int, default=3, help="starts of the app that count (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="only the first N held-out rows")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/laptop.json and laptop.md")
    options = parser.parse_args(arguments)
    found = measure(options.starts, options.rows)
    if options.save:
        (RESULTS / "laptop.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (RESULTS / "laptop.md").write_text(as_markdown(found), encoding="utf-8")
    print(json.dumps(found, indent=2) if options.json else as_markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
