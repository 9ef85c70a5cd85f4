"""Rows out of a Hugging Face Hub dataset, and whatever goes wrong there in the user's words. Light at import: datasets is loaded on use."""

import errno
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepdoctor.errors import DatasetError

if TYPE_CHECKING:
    from deepdoctor.config import DatasetConfig

# up to this many rows are streamed: large datasets then cost only their first rows; more are downloaded once and kept in the Hub's cache
STREAMED_ROWS = 5_000
_LISTED = re.compile(r"\[(.*?)\]", re.DOTALL)


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
    chain = _chain(error)
    said = "\n".join(str(each) for each in chain)
    names = {kind.__name__ for each in chain for kind in type(each).__mro__}
    return DatasetError(
        _about_access(said, names, config) or _about_choice(said, config) or _about_network(chain, names) or _other(error, config)
    )


def _about_access(said: str, names: set[str], config: "DatasetConfig") -> str | None:
    name = config.name
    if "GatedRepoError" in names or "gated dataset" in said:
        page = f"https://huggingface.co/datasets/{name}"
        return f"{name} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account and start the app again."
    if "RevisionNotFoundError" in names or "Revision '" in said:
        return (
            f"{name} has no revision {config.revision!r}. Leave the revision empty for the newest, or give a branch, tag or commit of it."
        )
    if "HFValidationError" in names:
        return f"{name!r} cannot be a dataset's name. Expected owner/name, as in FreedomIntelligence/medical-o1-reasoning-SFT."
    if "EmptyDatasetError" in names or "DataFilesNotFoundError" in names:
        return f"{name} holds no data files that can be read as rows. Choose another dataset or revision."
    if {"DatasetNotFoundError", "RepositoryNotFoundError"} & names:
        return f"There is no dataset {name} on the Hub, or it is private. Check the spelling; for a private one, set a valid HF_TOKEN."
    if "scripts are no longer supported" in said:
        return f"{name} is loaded by a script of its own, which is not run here. Download its rows as a file, or choose another dataset."
    return None


def _about_choice(said: str, config: "DatasetConfig") -> str | None:
    listed = _LISTED.search(said)
    known = ", ".join(re.findall(r"[^\s,'\"]+", listed[1])) if listed else "not told"
    if "Config name is missing" in said:
        return f"{config.name} has several configs; choose one of: {known}."
    if "BuilderConfig" in said and "not found" in said:
        return f"{config.name} has no config {config.config!r}; choose one of: {known}."
    if "Unknown split" in said or "Bad split" in said:
        return f"{config.name} has no split {config.split!r}; choose one of: {known}."
    return None


def _about_network(chain: list[BaseException], names: set[str]) -> str | None:
    instead = "The bundled rows and files work without it."
    if "OfflineModeIsEnabled" in names:
        return f"The Hub is switched off by HF_HUB_OFFLINE, and this dataset is not in the cache. Unset it and start again. {instead}"
    for each in chain:
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status in (401, 403):
            return f"The Hub refused access (HTTP {status}). Check that HF_TOKEN is valid and may read this dataset."
        if status == 429:
            return "The Hub asks to slow down (HTTP 429). Wait a few minutes and load again; with HF_TOKEN set the limits are wider."
        if status:
            return f"The Hub answered with an error (HTTP {status}). Load again later. {instead}"
        if isinstance(each, OSError) and each.errno == errno.ENOSPC:
            return "The disk is full: the dataset could not be kept. Free some space, or set first rows to at most 5,000 to stream it."
    if {"TimeoutException", "TimeoutError", "Timeout"} & names:
        return f"The Hub did not answer in time. Check the network and load again. {instead}"
    if {"ConnectionError", "TransportError", "LocalEntryNotFoundError"} & names:
        return f"The Hub could not be reached. Check the network and load again. {instead}"
    return None


def _other(error: BaseException, config: "DatasetConfig") -> str:
    said = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{config.name} could not be read: {type(error).__name__}: {said}"


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
