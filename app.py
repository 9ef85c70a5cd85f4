"""Start DeepDoctor: flags and environment become settings, the engine process starts behind the page, Ctrl-C ends both."""

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from deepdoctor.catalogue import default_model
from deepdoctor.comparison import Comparisons
from deepdoctor.config import ModelConfig, Settings
from deepdoctor.engine.client import EngineClient
from deepdoctor.errors import ConfigError, DeepDoctorError
from deepdoctor.runs import Runs
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.mirror import keep_copy
from deepdoctor.studies.study import Studies


def parser() -> argparse.ArgumentParser:
    """The flags: one a setting, explained by the setting itself."""
    made = argparse.ArgumentParser(
        prog="python app.py",
        description="Fine-tune a medical reasoning model in the browser and compare base and tuned side by side.",
        epilog="Each flag can also be given as an environment variable of the name in capitals; the flag wins. "
        "The page opens at once; the model loads behind it.",
    )
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        made.add_argument(flag, metavar=field.title, help=f"{field.description} (default: {field.default})")
    return made


def available_port(host: str, port: int) -> int:
    """The port to use: `port` itself, or a free one if it is 0. Raises ConfigError if it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on port {port} of {host}: {error.strerror or error}. "
                f"Stop what is using it, or choose another port with --port (--port 0 takes a free one)."
            ) from None
        return probe.getsockname()[1]


def serve(settings: Settings, stop: threading.Event) -> None:
    """Open the page, start the engine behind it, and wait for `stop`; then close both."""
    port = available_port(settings.host, settings.port)
    os.environ["USE_TORCH"] = "0"  # or `datasets`, asked for rows of the Hub, would import torch into the process of the page
    # Imported here because it takes seconds, which neither --help nor a port that is taken should cost.
    from deepdoctor.ui.context import Context
    from deepdoctor.ui.judge.app import judge_routes
    from deepdoctor.ui.page import build_app, launch_options

    # before anybody judges: it brings back what an earlier start stored
    copy = keep_copy(settings.data_dir, settings.judgments_repo) if settings.judgments_repo else None
    engine = EngineClient(settings.data_dir, ModelConfig.of({"name": settings.model}))
    data = settings.data_dir
    context = Context(settings, engine, Runs(data), Comparisons(data), Studies(data), Judgments(data), copy)
    access = context.access  # asked first: it refuses settings that contradict each other
    page = build_app(context)
    page.launch(
        server_name=settings.host,
        server_port=port,
        prevent_thread_lock=True,
        auth=settings.credentials if settings.login else None,
        max_file_size=access.largest_upload,
        app_kwargs={"routes": judge_routes(data, access.can_log_in, *([copy.soon] if copy else []))},
        **launch_options(),
    )
    try:
        shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        print(f"DeepDoctor is at http://{f'[{shown}]' if ':' in shown else shown}:{port}  (Ctrl-C ends it)", flush=True)
        if told := access.told(None):
            print(told, flush=True)
        engine.start()
        stop.wait()
    finally:
        engine.close()
        page.close(verbose=False)
        if copy:
            copy.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the app until it is interrupted; returns the exit code."""
    given = vars(parser().parse_args(arguments))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        given["model"] = given["model"] or os.environ.get("MODEL") or default_model()
        serve(Settings.from_environment(given), stop)
    except DeepDoctorError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
