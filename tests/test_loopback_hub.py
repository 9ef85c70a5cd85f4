"""The loopback Hub takes what the real client sends for every kind of repository, and refuses what the Hub refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, CommitScheduler, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.loopback_hub import LoopbackHub


@pytest.fixture
def api(loopback_hub: LoopbackHub) -> HfApi:
    """The client of the user doctor."""
    return HfApi(endpoint=loopback_hub.url, token=loopback_hub.add_user("doctor", "clinic"))


def test_a_space_is_made_filled_and_read_back(loopback_hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    for name, content in {"app.py": "print()", "README.md": "---\nsdk: gradio\n---\n", "ui/empty.css": ""}.items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_text(content)
    url = api.create_repo("doctor/app", repo_type="space", space_sdk="gradio", private=True)
    assert (url.repo_type, url.repo_id) == ("space", "doctor/app")
    api.upload_folder(repo_id="doctor/app", folder_path=tmp_path / "space", repo_type="space")
    assert loopback_hub.files("doctor/app", "space") == {"app.py": b"print()", "README.md": b"---\nsdk: gradio\n---\n", "ui/empty.css": b""}
    assert loopback_hub.repos["space", "doctor/app"].made_with["sdk"] == "gradio"
    assert api.repo_info("doctor/app", repo_type="space").private
    api.delete_repo("doctor/app", repo_type="space")
    assert not api.repo_exists("doctor/app", repo_type="space")


def test_a_dataset_grows_by_a_commit_scheduler(loopback_hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    scheduler = CommitScheduler(repo_id="clinic/judgments", repo_type="dataset", folder_path=tmp_path / "rows", hf_api=api, private=True)
    for row in ("one", "two"):
        with (tmp_path / "rows" / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        scheduler.push_to_hub()
    scheduler.stop()
    assert loopback_hub.files("clinic/judgments", "dataset")["rows.jsonl"] == b'"one"\n"two"\n'
    assert {commit.title for commit in loopback_hub.repos["dataset", "clinic/judgments"].commits[1:]} == {"Scheduled Commit"}


def test_commits_revisions_and_deletions(loopback_hub: LoopbackHub, api: HfApi) -> None:
    repo = loopback_hub.add_repo("doctor/model", {"a.txt": b"a", "folder/b.txt": b"b", "w.safetensors": b"w"})
    before = repo.commits[-1].id
    api.create_commit("doctor/model", [CommitOperationDelete("folder/")], commit_message="tidy", parent_commit=before)
    assert sorted(api.list_repo_files("doctor/model")) == [".gitattributes", "a.txt", "w.safetensors"]
    assert "folder/b.txt" in api.list_repo_files("doctor/model", revision=before)
    assert [branch.target_commit for branch in api.list_repo_refs("doctor/model").branches] == [repo.commits[-1].id]
    [info] = api.get_paths_info("doctor/model", ["w.safetensors", "nothing"])
    assert info.lfs.size == 1  # type: ignore[union-attr]
    add = CommitOperationAdd("c.txt", b"c")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("doctor/model", [add], commit_message="late", parent_commit=before)


Call = Callable[[HfApi], object]
REFUSED: dict[str, tuple[Call, type[Exception], str]] = {
    "private": (lambda api: api.model_info("other/private"), RepositoryNotFoundError, "404"),
    "private, no token": (lambda api: api.model_info("other/private", token=False), RepositoryNotFoundError, "401"),
    "wrong token": (lambda api: api.model_info("other/open", token="hf_wrong"), HfHubHTTPError, "Invalid credentials"),
    "another's": (lambda api: api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id="other/open"), HfHubHTTPError, "403"),
    "another's name": (lambda api: api.create_repo("other/new"), HfHubHTTPError, "403"),
    "there already": (lambda api: api.create_repo("doctor/mine"), HfHubHTTPError, "409"),
    "revision": (lambda api: api.model_info("other/open", revision="v1"), RevisionNotFoundError, "404"),
    "file": (lambda api: api.hf_hub_download("other/open", "nothing"), EntryNotFoundError, "404"),
    "gated": (lambda api: api.hf_hub_download("other/gated", "a.txt"), GatedRepoError, "403"),
    "card": (
        lambda api: api.upload_file(path_or_fileobj=b"---\nlanguage: English\n---\n", path_in_repo="README.md", repo_id="doctor/mine"),
        ValueError,
        "language",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_what_the_hub_refuses(name: str, loopback_hub: LoopbackHub, api: HfApi) -> None:
    loopback_hub.add_repo("other/private", private=True)
    loopback_hub.add_repo("other/open")
    loopback_hub.add_repo("other/gated", {"a.txt": b"a"}, gated=True)
    loopback_hub.add_repo("doctor/mine")
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call(api)


def test_an_lfs_file_must_be_what_its_name_says(loopback_hub: LoopbackHub) -> None:
    assert httpx.put(f"{loopback_hub.url}/lfs/{'0' * 64}", content=b"other").status_code == 400
    assert not loopback_hub.stored


def test_code_that_names_no_endpoint_reaches_it_too(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    loopback_hub.add_repo("owner/model", {"config.json": b"{}"})
    file = Path(hf_hub_download("owner/model", "config.json"))
    assert file.read_bytes() == b"{}"
    assert file.is_relative_to(tmp_path)
