"""A model of the Hub as a folder on this machine: from the cache where it is whole, else downloaded, told in bytes and minutes."""

import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from deepdoctor.errors import DeepDoctorError, ModelError
from deepdoctor.hub import Wanted, hub_api, hub_endpoint, other_trouble, trouble

Report = Callable[[str, float | None], None]

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# folders hold other formats and checkpoints; consolidated files hold the weights a second time
LEFT_OUT = ["*/*", "consolidated*"]
ANSWER_SECONDS = 10
TELL_EVERY = 0.3
SPEED_OVER = 40  # reports, about twelve seconds


def fetch_model(name: str, revision: str | None, report: Report, token: str | None = None) -> Path:
    """The folder of a Hub model, or of an adapter: configuration, tokenizer and safetensors weights.

    A whole snapshot in the cache is taken as it is, without asking the Hub: the weights under a run stay the same, and no network is
    needed. `report` is told what is being done, and which fraction of it is done. Raises ModelError that says what to do if the id is
    malformed or unknown, the model is gated or its revision unknown, the token or the network fails, or the disk is or would be full.
    """
    wanted = Wanted("model", name, revision)
    try:
        return _cached(name, revision) or _downloaded(wanted, report, token)
    except DeepDoctorError:
        raise
    except Exception as error:
        raise ModelError(trouble(error, wanted) or other_trouble(error, wanted)) from error


def is_cached(name: str, revision: str | None = None) -> bool:
    """Whether a whole snapshot of a Hub model lies in the cache, so that `fetch_model` needs no network for it."""
    try:
        return _cached(name, revision) is not None
    except (OSError, ValueError, LookupError):
        return False  # fetching tells what is wrong


def _cached(name: str, revision: str | None) -> Path | None:
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=FILES, ignore_patterns=LEFT_OUT, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return Path(folder) if _is_whole(Path(folder)) else None


def _is_whole(folder: Path) -> bool:
    """Whether configuration and all weights are there: where the cache was filled file by file, the library cannot tell."""
    index = folder / "model.safetensors.index.json"
    kind = "adapter_" if (folder / "adapter_config.json").exists() else ""
    weights = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else {f"{kind}model.safetensors"}
    return all((folder / file).exists() for file in {f"{kind}config.json", *weights})


def _downloaded(wanted: Wanted, report: Report, token: str | None) -> Path:
    name, revision = wanted.name, wanted.revision
    report(f"Looking for {name} on the Hub", None)
    info = hub_api(token).model_info(name, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    chosen = list(filter_repo_objects(sizes, allow_patterns=FILES, ignore_patterns=LEFT_OUT))
    if not any(file.endswith(".safetensors") for file in chosen):
        raise ModelError(f"{name} has no weights in the safetensors format, the only one that is loaded here. Choose another model.")
    missing = [file for file in chosen if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)]
    size = sum(sizes[file] for file in missing)
    _require_space(name, size)
    bars: Any = partial(Bar, Progress(name, size, report))
    folder = snapshot_download(
        name,
        revision=revision,
        allow_patterns=FILES,
        ignore_patterns=LEFT_OUT,
        token=token,
        endpoint=hub_endpoint(),
        etag_timeout=ANSWER_SECONDS,
        tqdm_class=bars,
    )
    return Path(folder)


def _require_space(name: str, size: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if size > free:
        raise ModelError(
            f"{name} needs {size / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free in {cache}. Free some space, or set HF_HOME to a "
            "folder on a larger disk and start the app again."
        )


class Progress:
    """The bytes of one download as words and a fraction, told a few times a second at most. Fed from several threads at once."""

    def __init__(self, name: str, total: int, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.total = max(total, 1)
        self.report = report
        self.clock = clock
        self.lock = threading.Lock()
        self.told = -TELL_EVERY
        self.done = 0
        self.marks: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=SPEED_OVER)

    def reached(self, done: int) -> None:
        """So many bytes have come. What arrives through a broken connection twice does not count twice."""
        now = self.clock()
        self.done = min(max(self.done, done), self.total)
        if now - self.told < TELL_EVERY:
            return
        self.told = now
        self.marks.append((now, self.done))
        self.report(f"Downloading {self.name}: {self._words()}", self.done / self.total)

    def _words(self) -> str:
        scale, unit = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        (began, before), (now, done) = self.marks[0], self.marks[-1]
        speed = (done - before) / (now - began) if now > began else 0.0
        words = f"{done / scale:.1f} of {self.total / scale:.1f} {unit}"
        return f"{words}, {speed / 1e6:.1f} MB/s, {_duration((self.total - done) / speed)} left" if speed else words


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Bar:
    """What snapshot_download takes for a tqdm bar. It makes several; those that count bytes feed the one Progress."""

    def __init__(self, progress: Progress, *, unit: str = "it", total: float | None = None, initial: int = 0, **_looks: Any) -> None:
        self.progress = progress if unit == "B" else None
        self.total = total
        self.n = initial
        self.format_dict: dict[str, Any] = {}

    def update(self, count: float | None = 1) -> None:
        """Count on; downwards when a broken file begins again."""
        if self.progress:
            with self.progress.lock:
                self.n += int(count or 0)
                self.progress.reached(self.n)

    def _unseen(self, *_given: Any, **_named: Any) -> None:
        """There is nothing to draw."""

    refresh = close = set_description = set_description_str = set_postfix_str = _unseen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass
