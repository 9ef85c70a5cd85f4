"""Rows out of a Hugging Face Hub dataset, and whatever goes wrong at the Hub in the user's words.

Light at import: the Hub's libraries are loaded on use.
"""

import os
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepdoctor.errors import DISK_FULL, DatasetError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from deepdoctor.config import DatasetConfig

Kind = Literal["model", "dataset", "space"]

# up to this many rows are streamed: large datasets then cost only their first rows; more are downloaded once and kept in the Hub's cache
STREAMED_ROWS = 5_000
EXAMPLES: dict[Kind, str] = {
    "model": "unsloth/DeepSeek-R1-Distill-Llama-8B",
    "dataset": "FreedomIntelligence/medical-o1-reasoning-SFT",
    "space": "owner/deepdoctor",
}
ROOM: dict[Kind, str] = {
    "model": "set HF_HOME to a folder on a larger disk and start the app again",
    "dataset": "set first rows to at most 5,000 to stream it",
    "space": "choose another disk",
}
INSTEAD: dict[Kind, str] = {
    "model": "The embedded model nano and local folders work without it.",
    "dataset": "The bundled rows and files work without it.",
    "space": "The app runs on this machine without it.",
}
XET_CUT_OFF = ("CAS Client Error", "error sending request")
KEPT = "What is on disk is kept, and what has been uploaded is not sent again."
_LISTED = re.compile(r"\[(.*?)\]", re.DOTALL)


def hub_endpoint() -> str | None:
    """The Hub's address if HF_ENDPOINT names one; None is the library's own. Read on each use: the library reads it at import only."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def hub_api(token: str | None = None) -> "HfApi":
    """The Hub's client; without a token it takes HF_TOKEN's, or that of an earlier login."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint(), token=token)


def read_hub(config: "DatasetConfig", largest: int, load: Callable[..., Any] | None = None) -> Generator[dict[str, Any], None, None]:
    """The rows of a Hub dataset's split, in order.

    `load` is `datasets.load_dataset` unless another is fed. Raises DatasetError that says what is missing, and what there is instead;
    a split of more than `largest` rows is refused before it is read, unless `first_rows` is set.
    """
    if Path(config.name).exists():
        # the loader would prefer it to the Hub, and the rows would bear the wrong name and revision
        raise DatasetError(
            f"A local folder or file is called {config.name} too. Choose it as a file, or start the app from another folder."
        )
    try:
        load_dataset = load or _load_dataset()
        streaming = config.first_rows is not None and config.first_rows <= STREAMED_ROWS
        dataset = load_dataset(
            config.name, config.config or None, split=config.split, revision=config.revision or None, streaming=streaming
        )
        if not streaming and not config.first_rows and len(dataset) > largest:
            raise DatasetError(f"{config.name} has {len(dataset):,} rows, more than {largest:,}. Set first rows to read only a part.")
        yield from dataset
    except DatasetError:
        raise
    except Exception as error:
        raise hub_error(error, config) from error


def _load_dataset() -> Callable[..., Any]:
    from datasets import load_dataset

    return load_dataset


def hub_error(error: BaseException, config: "DatasetConfig") -> DatasetError:
    """The user's words for anything that loading a Hub dataset may raise."""
    _, said, names = _told_by(error)
    wanted = Wanted("dataset", config.name, config.revision)
    return DatasetError(_about_rows(said, names, config) or trouble(error, wanted) or other_trouble(error, wanted))


def _about_rows(said: str, names: set[str], config: "DatasetConfig") -> str | None:
    if {"EmptyDatasetError", "DataFilesNotFoundError"} & names:
        return f"{config.name} holds no data files that can be read as rows. Choose another dataset or revision."
    if "scripts are no longer supported" in said:
        return f"{config.name} is loaded by a script, which is not run here. Download its rows as a file, or choose another dataset."
    listed = _LISTED.search(said)
    known = ", ".join(re.findall(r"[^\s,'\"]+", listed[1])) if listed else "not told"
    if "Config name is missing" in said:
        return f"{config.name} has several configs; choose one of: {known}."
    if "BuilderConfig" in said and "not found" in said:
        return f"{config.name} has no config {config.config!r}; choose one of: {known}."
    if "Unknown split" in said or "Bad split" in said:
        return f"{config.name} has no split {config.split!r}; choose one of: {known}."
    return None


@dataclass(frozen=True)
class Wanted:
    """What was asked of the Hub: a repository of that kind, to `may` (read or write) it."""

    kind: Kind
    name: str
    revision: str | None = None
    may: Literal["read", "write"] = "read"

    @property
    def page(self) -> str:
        """Its address for people."""
        return f"https://huggingface.co/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.name}"


def trouble(error: BaseException, wanted: Wanted) -> str | None:
    """What went wrong at the Hub, in the user's words; None if `error` and its causes tell of nothing that is known here."""
    chain, said, names = _told_by(error)
    return _about_access(chain, said, names, wanted) or _about_disk(chain, said, wanted) or _about_network(chain, names, wanted)


def _about_access(chain: list[BaseException], said: str, names: set[str], wanted: Wanted) -> str | None:
    name = wanted.name
    if "GatedRepoError" in names or "gated dataset" in said:
        if _status(chain) == 403:
            return (
                f"{name} is gated, and your token's account has no access: accept its terms at {wanted.page} and wait until it is granted."
            )
        return f"{name} is gated: accept its terms at {wanted.page}, then set HF_TOKEN to a token of that account and start the app again."
    if "RevisionNotFoundError" in names or "Revision '" in said:
        return (
            f"{name} has no revision {wanted.revision!r}. Leave the revision empty for the newest, or give a branch, tag or commit of it."
        )
    if "HFValidationError" in names:
        return f"{name!r} cannot be a {wanted.kind}'s name. Expected owner/name, as in {EXAMPLES[wanted.kind]}."
    if {"DatasetNotFoundError", "RepositoryNotFoundError"} & names:
        return (
            f"There is no {wanted.kind} {name} on the Hub, or it is private. Check the spelling; for a private one, set a valid HF_TOKEN."
        )
    return None


def _about_disk(chain: list[BaseException], said: str, wanted: Wanted) -> str | None:
    # libraries that are not written in Python hand on the system's words only
    if any(isinstance(each, OSError) and each.errno in DISK_FULL for each in chain) or "No space left on device" in said:
        return f"The disk is full: the {wanted.kind} could not be kept. Free some space, or {ROOM[wanted.kind]}."
    return None


def _about_network(chain: list[BaseException], names: set[str], wanted: Wanted) -> str | None:
    instead, status = INSTEAD[wanted.kind] if wanted.may == "read" else KEPT, _status(chain)
    if "OfflineModeIsEnabled" in names:
        missing = f", and this {wanted.kind} is not in the cache" if wanted.may == "read" else ""
        return f"The Hub is switched off by HF_HUB_OFFLINE{missing}. Unset it and start again. {instead}"
    if status in (401, 403):
        return f"The Hub refused access (HTTP {status}). Check that HF_TOKEN is valid and may {wanted.may} this {wanted.kind}."
    if status == 429:
        return "The Hub asks to slow down (HTTP 429). Wait a few minutes and try again; with HF_TOKEN set the limits are wider."
    if status and status >= 500:
        return f"The Hub answered with an error (HTTP {status}). Try again later. {instead}"
    if {"TimeoutException", "TimeoutError", "Timeout"} & names:
        return f"The Hub did not answer in time. Check the network and try again. {instead}"
    if {"ConnectionError", "TransportError", "LocalEntryNotFoundError"} & names or _is_xet_cut_off(chain):
        return f"The Hub could not be reached. Check the network and try again. {instead}"
    return None


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later: the connection broke, or the Hub had an error of its own."""
    chain, _, names = _told_by(error)
    broke = bool({"ConnectionError", "TimeoutError", "TransportError"} & names) or _is_xet_cut_off(chain)
    return (_status(chain) or 0) >= 500 or (broke and "OfflineModeIsEnabled" not in names)


def _is_xet_cut_off(chain: list[BaseException]) -> bool:
    """Whether hf_xet, which moves large files, says in its words, and by no class of its own, that it was cut off."""
    return any(isinstance(each, RuntimeError) and any(words in str(each) for words in XET_CUT_OFF) for each in chain)


def other_trouble(error: BaseException, wanted: Wanted) -> str:
    """The words for what is not known here: the beginning of the error's own."""
    said = " ".join(str(error).split())[:300] or "no reason given"
    return f"{wanted.name} could not be {'read' if wanted.may == 'read' else 'written'}: {type(error).__name__}: {said}"


def _told_by(error: BaseException) -> tuple[list[BaseException], str, set[str]]:
    """An error with its causes, all that they say, and the names of all their classes: none of those is imported for it."""
    chain = _chain(error)
    return chain, "\n".join(str(each) for each in chain), {kind.__name__ for each in chain for kind in type(each).__mro__}


def _status(chain: list[BaseException]) -> int | None:
    found = (getattr(getattr(each, "response", None), "status_code", None) for each in chain)
    return next((status for status in found if status), None)


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
