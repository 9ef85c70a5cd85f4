"""What every test stands on: no network, no accounts, a real app on a free port and a real browser in front of it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.loopback_hub import LoopbackHub

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
FORGOTTEN = (
    "HF_TOKEN",
    "LOGIN",
    "TRAINERS",
    "SYSTEM",
    "SPACE_AUTHOR_NAME",
    "JUDGMENTS_REPO",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "WANDB_API_KEY",
    "WANDB_MODE",
    "SPACE_ID",
    "HOST",
    "PORT",
    "MODEL",
    "DATA_DIR",
)
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def pytest_configure(config: pytest.Config) -> None:
    """Forget the developer's accounts and settings before any library reads them; child processes inherit this."""
    for name in FORGOTTEN:
        os.environ.pop(name, None)
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HOME=str(config.cache.mkdir("huggingface")) if config.cache else "",
        HF_HUB_DISABLE_TELEMETRY="1",
        GRADIO_ANALYTICS_ENABLED="False",
        # Gradio's own statistics of its events warn under pandas 3, and warnings are errors here.
        GRADIO_ANALYTICS_CACHE_FREQUENCY="1000000",
        TOKENIZERS_PARALLELISM="false",
    )


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse connections of this process that leave the machine, with a message that says so."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOOPBACK):
            raise ConnectionRefusedError(f"A test tried to reach {address}; tests stay on this machine.")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture
def loopback_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub on this machine with the Hub's library pointed at it, here and in child processes; what it downloads lies in a fresh cache."""
    from huggingface_hub import close_session, constants

    cache = tmp_path / "hub-cache"
    with LoopbackHub() as hub, warnings.catch_warnings():
        # huggingface_hub sends files to LFS in a way that httpx is about to give up
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_CACHE": str(cache)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # the library has read its environment when it was imported
        read = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache)}
        for name, set_to in read.items():
            monkeypatch.setattr(constants, name, set_to)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub
        close_session()


@dataclass(frozen=True)
class App:
    """The app, running: its address, its data folder, the process and the file that its output goes to."""

    url: str
    data_dir: Path
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_app(folder: Path) -> App:
    """Start `python app.py` with its data under `folder` and wait for the page. Fails with the app's output if it does not come."""
    port, log = free_port(), folder / "app.log"
    command = [sys.executable, "app.py", "--port", str(port), "--data-dir", str(folder / "data")]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment, start_new_session=True)
    app = App(f"http://127.0.0.1:{port}", folder / "data", process, log)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(app.url, timeout=5):
                return app
        except OSError:
            time.sleep(0.1)
    stop_app(app)
    pytest.fail(f"The page did not answer:\n{log.read_text()}")


def stop_app(app: App) -> None:
    """Ask the app to end, as Ctrl-C does; after ten seconds end it and all its children."""
    if app.process.poll() is None:
        app.process.send_signal(signal.SIGINT)
    try:
        app.process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(app.process.pid, signal.SIGKILL)
        app.process.wait()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The real app with the embedded model, shared by all tests that only look, or that clean up after themselves."""
    running = start_app(tmp_path_factory.mktemp("app"))
    yield running
    stop_app(running)


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """The distribution's Chromium. Without one, browser tests are skipped, or fail where `CI` is set."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        missing = "Browser tests need Chromium: install it, or name it in CHROMIUM."
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from playwright.sync_api import expect, sync_playwright  # not needed by tests on a GPU

    expect.set_options(timeout=20_000)  # a busy machine is slow, not wrong

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(CHROMIUM_FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    """A fresh laptop-sized page with nothing remembered."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    yield context.new_page()
    context.close()
