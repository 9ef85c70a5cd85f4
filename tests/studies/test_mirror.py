"""The copy on the Hub: private, soon after a judgment, back on a fresh disk, and without what was deleted for good."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from deepdoctor.errors import StudyError
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.mirror import keep_copy
from deepdoctor.studies.study import Studies
from tests.conftest import free_port, start_app, stop_app
from tests.engine.tiny import until
from tests.loopback_hub import LoopbackHub
from tests.studies.prepared import prepared, verdict

REPO = "ada/judgments"


def test_a_private_dataset_keeps_a_copy_and_gives_it_back(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("ada")
    first, second = tmp_path / "first", tmp_path / "second"
    study = prepared(first, 2)
    rater = study.join("Dr. Ben", "Urology", 3)
    (first / "runs").mkdir()
    (first / "runs" / "config.json").write_text("{}")
    copy = keep_copy(first, "ada/judgments", token, loopback_hub.url)
    store = Judgments(first)
    store.add(verdict(study, rater.token, rater.trials[0].id))
    copy.close()
    repo = loopback_hub.repos["dataset", "ada/judgments"]
    assert repo.private
    assert not any(path.startswith("runs") for path in loopback_hub.files("ada/judgments", "dataset"))

    keep_copy(second, "ada/judgments", token, loopback_hub.url).close()
    again = Studies(second).get(study.id)
    assert again.rater(rater.token) == rater
    assert len(again.answers()) == 2
    assert Judgments(second).rows(study.id) == store.rows(study.id)


def test_what_is_on_disk_is_not_overwritten_by_the_copy(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("ada")
    loopback_hub.add_repo("ada/judgments", {"judgments/old.jsonl": b"{}\n", "judgments/new.jsonl": b"{}\n"}, "dataset", private=True)
    (tmp_path / "judgments").mkdir()
    (tmp_path / "judgments" / "old.jsonl").write_text("{}\n{}\n")
    keep_copy(tmp_path, "ada/judgments", token, loopback_hub.url).close()
    assert {file.name: file.read_text() for file in (tmp_path / "judgments").glob("*")} == {"old.jsonl": "{}\n{}\n", "new.jsonl": "{}\n"}


def test_a_copy_that_cannot_be_kept_is_told_at_the_start(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("ada")
    loopback_hub.add_repo("ada/open", {"judgments/a.jsonl": b"{}\n"}, "dataset")
    with pytest.raises(StudyError, match="ada/open is public"):
        keep_copy(tmp_path, "ada/open", token, loopback_hub.url)
    with pytest.raises(StudyError, match="HF_TOKEN may write"):
        keep_copy(tmp_path, "ben/judgments", token, loopback_hub.url)
    with pytest.raises(StudyError, match="Check JUDGMENTS_REPO"):
        keep_copy(tmp_path, "no/such/name", token, loopback_hub.url)
    with pytest.raises(StudyError, match="cannot be used"):
        keep_copy(tmp_path, "ada/judgments", token, f"http://127.0.0.1:{free_port()}")


def lines(hub: LoopbackHub) -> int:
    """How many judgments the copy holds."""
    if ("dataset", REPO) not in hub.repos:
        return 0
    return sum(content.count(b"\n") for path, content in hub.files(REPO, "dataset").items() if path.startswith("judgments/"))


def test_what_is_saved_is_copied_soon_but_not_too_often(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("ada")
    study = prepared(tmp_path, 6)
    rater = study.join("Dr. Ben", "Urology", 3)
    copy = keep_copy(tmp_path, REPO, token, loopback_hub.url, apart=1.5)
    try:
        assert until(lambda: "last at" in copy.told)
        store, commits, began = Judgments(tmp_path), loopback_hub.asked("/commit/"), time.monotonic()
        for trial in rater.trials[:5]:
            store.add(verdict(study, rater.token, trial.id))
            copy.soon()
        assert until(lambda: lines(loopback_hub) == 5), "nobody waited for the five minutes"
        assert time.monotonic() - began < 30
        assert loopback_hub.asked("/commit/") - commits <= 1 + (time.monotonic() - began) / 1.5, "not one for each verdict"
        assert "within about a minute" in copy.told
    finally:
        copy.close()


def test_a_copy_that_fails_is_told_and_tried_again(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("ada")
    study = prepared(tmp_path, 2)
    rater = study.join("Dr. Ben", "Urology", 3)
    copy = keep_copy(tmp_path, REPO, token, loopback_hub.url, apart=1.0)
    try:
        assert until(lambda: "last at" in copy.told)
        loopback_hub.faults["refuse_commit"] = 1
        Judgments(tmp_path).add(verdict(study, rater.token, rater.trials[0].id))
        copy.soon()
        assert until(lambda: copy.failing or lines(loopback_hub) == 1)
        assert until(lambda: not copy.failing), "once more, without another judgment"
        assert loopback_hub.faults["refuse_commit"] == 0
        assert lines(loopback_hub) == 1
    finally:
        copy.close()


def test_a_failing_copy_says_what_is_at_stake(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("ada")
    prepared(tmp_path, 1)
    loopback_hub.add_repo(REPO, {}, "dataset", private=True)
    loopback_hub.faults["refuse_commit"] = 1000
    copy = keep_copy(tmp_path, REPO, token, loopback_hub.url)
    assert until(lambda: copy.failing)
    assert "on this machine only" in copy.told
    assert "tried again every minute" in copy.told
    loopback_hub.faults.clear()
    copy.close()
    assert not copy.failing
    assert loopback_hub.files(REPO, "dataset")


def test_a_deleted_study_goes_from_the_copy_and_does_not_come_back(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("ada")
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    kept, deleted = prepared(first, 1), prepared(first, 1)
    deleted.join("Dr. Ben", "Urology", 3)
    keep_copy(first, REPO, token, loopback_hub.url).close()
    before = loopback_hub.files(REPO, "dataset")
    assert any(path.startswith(f"studies/{deleted.id}/raters/") for path in before)

    copy = keep_copy(first, REPO, token, loopback_hub.url)
    Studies(first).delete(deleted.id)
    copy.close()
    after = loopback_hub.files(REPO, "dataset")
    assert not any(deleted.id in path for path in after)
    assert not any(b"Dr. Ben" in content for content in after.values())
    assert any(kept.id in path for path in after)
    keep_copy(second, REPO, token, loopback_hub.url).close()
    assert [study.id for study in Studies(second).list()] == [kept.id]

    # the machine was lost between the note and the cleaning: the copy still holds the study
    loopback_hub.add_repo("ada/half", before | {"studies/deleted.jsonl": after["studies/deleted.jsonl"]}, "dataset", private=True)
    keep_copy(third, "ada/half", token, loopback_hub.url).close()
    assert [study.id for study in Studies(third).list()] == [kept.id]
    assert not any(deleted.id in path for path in loopback_hub.files("ada/half", "dataset")), "and is cleaned now"


def test_a_verdict_outlives_the_machine(tmp_path: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app itself, ended by force once the copy has what it called saved; then again on an empty disk."""
    monkeypatch.setenv("HF_TOKEN", loopback_hub.add_user("ada"))
    monkeypatch.setenv("JUDGMENTS_REPO", REPO)
    first, second = tmp_path / "first", tmp_path / "second"
    study = prepared(first / "data", 2)
    known = study.join("Dr. Ben", "Urology", 3)
    home = f"/judge/{study.id}/{known.token}"
    second.mkdir()
    app = start_app(first)
    try:
        with httpx.Client(base_url=app.url, timeout=30) as rater:
            said = {"preference": "A", "correct-A": "correct", "correct-B": "wrong", "harm-A": "none", "harm-B": "severe"}
            form = {**said, "submission": f"{int(time.time() * 1000)}-form", "action": "save"}
            assert rater.post(f"{home}/{known.trials[0].id}", data=form).status_code == 303
        assert until(lambda: lines(loopback_hub) == 1), "copied soon, not after five minutes"
    finally:
        os.killpg(app.process.pid, signal.SIGKILL)
        app.process.wait()
    rows = Judgments(first / "data").rows(study.id)
    assert [row["preference"] for row in rows] == ["A"]

    again = start_app(second)
    try:
        assert Judgments(second / "data").rows(study.id) == rows
        page = httpx.get(f"{again.url}{home}", timeout=30)
        assert page.status_code == 200
        assert "Lock" in page.text, "the rater goes on where they were: at the saved verdict"
    finally:
        stop_app(again)


def test_files_that_vanish_while_they_are_copied_are_left_out(tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    """Studies are deleted whenever somebody likes; a copy under way neither fails nor tells of them."""
    token = loopback_hub.add_user("ada")
    kept = prepared(tmp_path, 1)
    copy = keep_copy(tmp_path, REPO, token, loopback_hub.url)
    coming_and_going = tmp_path / "studies" / "passing" / "raters"
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            coming_and_going.mkdir(parents=True, exist_ok=True)
            for number in range(30):
                (coming_and_going / f"{number}.json").write_text("{}")
            shutil.rmtree(coming_and_going)

    others = threading.Thread(target=come_and_go)
    others.start()
    try:
        for _ in range(40):
            copy.scheduler.trigger().result(30)
            assert not copy.failing
    finally:
        over.set()
        others.join()
        copy.close()
    assert any(kept.id in path for path in loopback_hub.files(REPO, "dataset"))
