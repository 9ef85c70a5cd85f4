"""A model comes from the Hub as a whole folder, is told in bytes, and each way to fail has its own words. The Hub is a loopback one."""

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepdoctor.download import Bar, Progress, fetch_model, is_cached
from deepdoctor.errors import ModelError
from deepdoctor.hub import Wanted, trouble
from tests.engine.full_disk import largest_file
from tests.loopback_hub import LoopbackHub

WEIGHTS = bytes(range(256)) * 2000
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickled",
    "consolidated.safetensors": b"again",
    "original/params.json": b"{}",
    "model-Q4.gguf": b"other",
    "README.md": b"# A model",
}
WANTED = {"config.json", "tokenizer.json", "model.safetensors"}
Told = list[tuple[str, float | None]]


def unheard(_words: str, _fraction: float | None) -> None:
    """A Report for tests that do not listen."""


def hearing() -> tuple[Told, Callable[[str, float | None], None]]:
    """A Report, and what it is told."""
    told: Told = []
    return told, lambda words, fraction: told.append((words, fraction))


def test_only_what_is_loaded_comes(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo("owner/model", FILES)
    folder = fetch_model("owner/model", None, unheard)
    assert {file.name for file in folder.iterdir()} == WANTED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_it_tells_bytes_and_fractions(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo("owner/model", FILES)
    told, report = hearing()
    fetch_model("owner/model", None, report)
    assert told[0] == ("Looking for owner/model on the Hub", None)
    words, fraction = told[1]
    assert re.match(r"Downloading owner/model: 0\.\d of 0\.5 MB", words)
    assert fraction is not None
    assert 0 < fraction <= 1


def test_a_whole_snapshot_in_the_cache_is_taken_without_asking(loopback_hub: LoopbackHub) -> None:
    repo = loopback_hub.add_repo("owner/model", FILES)
    first = fetch_model("owner/model", None, unheard)
    asked = len(loopback_hub.requests)
    assert fetch_model("owner/model", None, unheard) == first
    assert fetch_model("owner/model", repo.commits[-1].id, unheard) == first
    assert len(loopback_hub.requests) == asked
    loopback_hub.stop()
    assert fetch_model("owner/model", None, unheard) == first


def test_only_a_whole_snapshot_counts_as_cached(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo("owner/model", FILES)
    assert not is_cached("owner/model")
    assert not is_cached("no name")
    folder = fetch_model("owner/model", None, unheard)
    assert is_cached("owner/model")
    assert not is_cached("owner/model", "old")
    (folder / "model.safetensors").unlink()
    assert not is_cached("owner/model")
    assert loopback_hub.asked("/old") == 0, "the Hub is not asked"


def test_what_is_missing_in_the_cache_comes_alone(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo("owner/model", FILES)
    folder = fetch_model("owner/model", None, unheard)
    (folder / "config.json").unlink()
    fetch_model("owner/model", None, unheard)
    assert (folder / "config.json").exists()
    assert loopback_hub.asked("GET /owner/model/resolve/.*/model.safetensors") == 1


def test_a_cache_filled_file_by_file_is_whole_only_with_all_shards(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = {name: name.encode() for name in index["weight_map"].values()}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **shards}
    repo = loopback_hub.add_repo("owner/model", files)
    snapshot = tmp_path / "hub-cache" / "models--owner--model" / "snapshots" / repo.commits[-1].id
    snapshot.mkdir(parents=True)
    for name in list(files)[:-1]:
        (snapshot / name).write_bytes(files[name])
    folder = fetch_model("owner/model", repo.commits[-1].id, unheard)
    assert loopback_hub.asked("^GET /owner/model/resolve") == 1
    assert {file.name for file in folder.iterdir()} == set(files)


def test_a_revision_is_taken_by_its_hash(loopback_hub: LoopbackHub) -> None:
    repo = loopback_hub.add_repo("owner/model", FILES)
    old = repo.commits[-1]
    repo.commit("without tokenizer", {path: file for path, file in old.files.items() if path != "tokenizer.json"})
    assert (fetch_model("owner/model", old.id, unheard) / "tokenizer.json").exists()
    assert not (fetch_model("owner/model", "main", unheard) / "tokenizer.json").exists()


def test_a_broken_connection_is_taken_up_where_it_broke(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo("owner/model", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    loopback_hub.faults["cut_download"] = 1
    folder = fetch_model("owner/model", None, unheard)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def gated(hub: LoopbackHub) -> None:
    hub.add_repo("owner/gated", FILES, gated=True)


def without_weights(hub: LoopbackHub) -> None:
    hub.add_repo("owner/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickled"})


def huge(hub: LoopbackHub) -> None:
    hub.declare(hub.add_repo("owner/huge", FILES), "model-2.safetensors", 10**16)


def private(hub: LoopbackHub) -> None:
    hub.add_repo("owner/private", FILES, private=True)


def plain(hub: LoopbackHub) -> None:
    hub.add_repo("owner/model", FILES)


FAILURES: dict[str, tuple[Callable[[LoopbackHub], None], str, str | None, str | None, str]] = {
    "malformed": (plain, "owner/model/main", None, None, r"'owner/model/main' cannot be a model's name\. Expected owner/name"),
    "unknown": (plain, "owner/nothing", None, None, r"no model owner/nothing on the Hub, or it is private.*HF_TOKEN"),
    "unknown, signed in": (plain, "owner/nothing", None, "hf_someone_write", "no model owner/nothing"),
    "private": (private, "owner/private", None, "hf_someone_write", "no model owner/private on the Hub, or it is private"),
    "gated, no token": (
        gated,
        "owner/gated",
        None,
        None,
        r"is gated: accept its terms at https://huggingface.co/owner/gated, then set HF_TOKEN",
    ),
    "gated, no access": (gated, "owner/gated", None, "hf_someone_write", r"is gated, and your token's account has no access: accept"),
    "revision": (plain, "owner/model", "v2", None, r"no revision 'v2'\. Leave the revision empty"),
    "wrong token": (plain, "owner/model", None, "hf_wrong", r"HTTP 401.*Check that HF_TOKEN is valid"),
    "no safetensors": (without_weights, "owner/pickled", None, None, "no weights in the safetensors format"),
    "disk too small": (huge, "owner/huge", None, None, r"needs 10,000,000\.0 GB, but only [\d,.]+ GB are free in .*hub-cache"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_has_its_own_words(name: str, loopback_hub: LoopbackHub) -> None:
    prepare, model, revision, token, words = FAILURES[name]
    prepare(loopback_hub)
    loopback_hub.add_user("someone")
    with pytest.raises(ModelError, match=words):
        fetch_model(model, revision, unheard, token)


def test_who_has_been_granted_access_gets_a_gated_model(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo("owner/gated", FILES, gated=True, granted=("doctor",))
    token = loopback_hub.add_user("doctor", role="read")
    assert (fetch_model("owner/gated", None, unheard, token) / "model.safetensors").exists()


def test_no_network(loopback_hub: LoopbackHub) -> None:
    loopback_hub.stop()
    with pytest.raises(ModelError, match=r"could not be reached\. Check the network.*nano"):
        fetch_model("owner/model", None, unheard)


def test_a_hub_in_trouble(loopback_hub: LoopbackHub) -> None:
    loopback_hub.faults["break"] = 100
    with pytest.raises(ModelError, match=r"HTTP 500.*later"):
        fetch_model("owner/model", None, unheard)


def test_a_disk_that_fills_up_while_downloading(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo("owner/model", FILES)
    with largest_file(100_000), pytest.raises(ModelError, match=r"The disk is full: the model could not be kept.*HF_HOME"):
        fetch_model("owner/model", None, unheard)
    folder = fetch_model("owner/model", None, unheard)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space"), RuntimeError("Data processing error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_told_whichever_library_found_it(error: Exception) -> None:
    assert "disk is full" in (trouble(error, Wanted("model", "owner/model")) or "")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_told_seldom_and_in_words() -> None:
    clock, (told, report) = Clock(), hearing()
    progress = Progress("owner/model", 16_100_000_000, report, clock)
    for step in range(1, 21):
        clock.now += 0.125
        progress.reached(step * 10_000_000)
    assert len(told) == 7
    words, fraction = told[-1]
    assert words == "Downloading owner/model: 0.2 of 16.1 GB, 80.0 MB/s, 3 min left"
    assert fraction == pytest.approx(0.19 / 16.1)


@pytest.mark.parametrize(("total", "words"), [(200_000_000, "1 s left"), (100_000_000 * 5000, "83 min left"), (10**13, "27.8 h left")])
def test_the_time_left_is_told_in_its_own_unit(total: int, words: str) -> None:
    clock, (told, report) = Clock(), hearing()
    progress = Progress("m", total, report, clock)
    clock.now += 1
    progress.reached(100_000_000)
    assert told[-1][0].endswith(words)


def test_bytes_that_come_again_do_not_count_again_and_files_are_not_bytes() -> None:
    told, report = hearing()
    progress = Progress("m", 1000, report)
    looks: dict[str, Any] = {"desc": "Downloading bytes", "unit_scale": True, "bar_format": "{bar}"}
    transfer, files = Bar(progress, unit="B", **looks), Bar(progress, desc="Fetching 3 files", total=3)
    for count in (600, -600, 300):
        transfer.update(count)
    with files as bar:
        bar.update(1)
        bar.refresh()
    assert progress.done == 600
    assert [fraction for _, fraction in told] == [0.6]
