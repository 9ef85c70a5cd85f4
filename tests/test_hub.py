"""What the Hub's libraries raise, in the user's words; and which rows are asked of it. No network: the loader is fed."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from deepdoctor.config import DatasetConfig
from deepdoctor.errors import DatasetError
from deepdoctor.hub import is_passing, read_hub

CONFIG = DatasetConfig(source="hub", name="owner/cases", config="en", split="train", revision="abc", first_rows=2)
ROW = {"Question": "q", "Complex_CoT": "c", "Response": "r"}


def answered(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/owner/cases"))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def failing(error: Exception) -> Callable[..., Any]:
    def load(*_args: Any, **_named: Any) -> Any:
        raise error

    return load


CASES: dict[str, tuple[Exception, list[str]]] = {
    "unknown": (
        DatasetNotFoundError("Dataset 'owner/cases' doesn't exist on the Hub or cannot be accessed."),
        ["no dataset owner/cases", "HF_TOKEN"],
    ),
    "unknown repository": (RepositoryNotFoundError("404", response=answered(404)), ["no dataset owner/cases"]),
    "gated, not signed in": (
        DatasetNotFoundError("Dataset 'owner/cases' is a gated dataset on the Hub. You must be authenticated to access it."),
        ["gated", "HF_TOKEN", "https://huggingface.co/datasets/owner/cases"],
    ),
    "gated, refused": (GatedRepoError("403", response=answered(403)), ["gated", "terms"]),
    "revision": (DatasetNotFoundError("Revision 'abc' doesn't exist for dataset 'owner/cases' on the Hub."), ["revision 'abc'", "empty"]),
    "revision of a file": (RevisionNotFoundError("404", response=answered(404)), ["revision 'abc'"]),
    "name": (HFValidationError("Repo id must be in the form 'repo_name'"), ["owner/name"]),
    "no files": (DataFilesNotFoundError("No (supported) data files found in owner/cases"), ["no data files"]),
    "empty repository": (EmptyDatasetError("The directory at owner/cases doesn't contain any data files"), ["no data files"]),
    "script": (RuntimeError("Dataset scripts are no longer supported, but found cases.py"), ["script"]),
    "config missing": (
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'zh']\nExample of usage:\n\t`x`"),
        ["several configs", "en, zh"],
    ),
    "config unknown": (ValueError("BuilderConfig 'en' not found. Available: ['default', 'zh_mix']"), ["no config 'en'", "default, zh_mix"]),
    "split unknown": (
        ValueError("Unknown split \"train\". Should be one of ['test', 'validation']."),
        ["no split 'train'", "test, validation"],
    ),
    "split unknown, streamed": (ValueError("Bad split: train. Available splits: ['test']"), ["no split 'train'", "test"]),
    "switched off": (
        caused(ConnectionError("Couldn't reach 'owner/cases'"), OfflineModeIsEnabled("offline")),
        ["HF_HUB_OFFLINE"],
    ),
    "no network": (
        caused(ConnectionError("Couldn't reach 'owner/cases' on the Hub"), LocalEntryNotFoundError("Cannot find the requested files")),
        ["could not be reached", "network"],
    ),
    "large file, no network": (
        RuntimeError("Data processing error: CAS Client Error: Request error: error sending request for url"),
        ["could not be reached", "network"],
    ),
    "no connection": (httpx.ConnectError("Name or service not known"), ["could not be reached"]),
    "timeout": (caused(ConnectionError("Couldn't reach"), httpx.ReadTimeout("The read operation timed out")), ["did not answer in time"]),
    "wrong token": (HfHubHTTPError("401", response=answered(401)), ["HTTP 401", "HF_TOKEN"]),
    "too fast": (HfHubHTTPError("429", response=answered(429)), ["HTTP 429", "minutes"]),
    "broken": (HfHubHTTPError("502", response=answered(502)), ["HTTP 502", "later"]),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), ["disk is full"]),
    "anything": (KeyError("features"), ["owner/cases could not be read", "KeyError", "features"]),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_in_the_users_words(name: str) -> None:
    error, words = CASES[name]
    with pytest.raises(DatasetError) as caught:
        list(read_hub(CONFIG, 100, failing(error)))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (httpx.ConnectError("refused"), True),
        (ConnectionError("Network error: error sending request for url"), True),  # as hf_xet says it of an upload
        (RuntimeError("Data processing error: CAS Client Error: Request error"), True),  # and of a download
        (HfHubHTTPError("502", response=answered(502)), True),
        (HfHubHTTPError("403", response=answered(403)), False),
        (OfflineModeIsEnabled("offline"), False),
        (RuntimeError("The disk caught fire"), False),
    ],
)
def test_what_may_succeed_a_moment_later(error: Exception, passing: bool) -> None:
    assert is_passing(error) == passing


def test_an_error_in_the_middle_of_the_rows_is_translated_too() -> None:
    def rows(*_args: Any, **_named: Any) -> Any:
        yield ROW
        raise httpx.ReadTimeout("slow")

    reader = read_hub(CONFIG, 100, rows)
    assert next(reader) == ROW
    with pytest.raises(DatasetError, match="did not answer in time"):
        next(reader)


@pytest.mark.parametrize(("first_rows", "streaming"), [(1, True), (5_000, True), (5_001, False), (None, False)])
def test_few_rows_are_streamed(first_rows: int | None, streaming: bool) -> None:
    asked: list[tuple] = []

    def load(*args: Any, **named: Any) -> list[dict]:
        asked.append((args, named))
        return [ROW]

    assert list(read_hub(CONFIG.changed(first_rows=first_rows), 100, load)) == [ROW]
    assert asked == [(("owner/cases", "en"), {"split": "train", "revision": "abc", "streaming": streaming})]


def test_an_empty_config_and_revision_are_left_to_the_hub() -> None:
    asked: list[tuple] = []

    def load(*args: Any, **named: Any) -> list[dict]:
        asked.append((args[1], named["revision"]))
        return [ROW]

    list(read_hub(CONFIG.changed(config="", revision=None), 100, load))
    assert asked == [(None, None)]


def test_too_many_rows_are_refused_before_they_are_read() -> None:
    with pytest.raises(DatasetError, match=r"101 rows, more than 100\. Set first rows"):
        next(read_hub(CONFIG.changed(first_rows=None), 100, lambda *_args, **_named: [ROW] * 101))


def test_a_local_folder_is_not_taken_for_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "cases").mkdir(parents=True)
    with pytest.raises(DatasetError, match="local folder"):
        next(read_hub(CONFIG, 100, lambda *_args, **_named: [ROW]))
