"""The whole page in front of a fed engine, in a process of its own, so that Gradio finds a Space's environment when it is imported.

`python -m tests.ui.space_page DATA_DIR` prints {"url", "handlers": {event id: handler}, "inputs": {event id: count}} as one line of JSON
and serves until its input ends.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

from deepdoctor.comparison import Comparisons
from deepdoctor.config import Settings
from deepdoctor.runs import Runs
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.study import Studies
from deepdoctor.ui.context import Context
from deepdoctor.ui.page import build_app, launch_options
from tests.conftest import free_port
from tests.ui.fakes import FakeEngine, close, fake_comparison


def handler_name(handler: Any) -> str:
    """Class and function, or module and function, of an event's handler."""
    if isinstance(handler, functools.partial):
        handler = handler.func
    name = handler.__qualname__
    return name if "." in name and "<lambda>" not in name else f"{handler.__module__.rpartition('.')[2]}.{name}"


def main() -> None:
    """Serve until the input ends."""
    data_dir = Path(sys.argv[1])
    engine = FakeEngine(data_dir)
    for _ in range(2):
        engine.feed([fake_comparison()])
    for _ in range(2):
        engine.feed_export(["Writing the adapter", data_dir / "exports"])
    settings = Settings.from_environment({"data_dir": data_dir})
    page = build_app(Context(settings, engine, Runs(data_dir), Comparisons(data_dir), Studies(data_dir), Judgments(data_dir)))
    page.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, **launch_options())
    events = {key: each for key, each in page.fns.items() if each.fn is not None}
    told = {
        "url": page.local_url,
        "handlers": {key: handler_name(each.fn) for key, each in events.items()},
        "inputs": {key: len(each.inputs) for key, each in events.items()},
    }
    print(json.dumps(told), flush=True)
    sys.stdin.read()
    close(page)


if __name__ == "__main__":
    main()
