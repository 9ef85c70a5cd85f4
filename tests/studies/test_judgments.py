"""The store of judgments: each verdict exactly once, corrected until locked, and nothing lost that was called saved."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deepdoctor.errors import StudyError
from deepdoctor.studies.judgments import Judgments, problems
from deepdoctor.studies.study import Study
from tests.studies.prepared import other, prepared, verdict

RATER = "a" * 24
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return prepared(tmp_path, 1)


@pytest.fixture
def store(tmp_path: Path) -> Judgments:
    return Judgments(tmp_path)


def test_a_verdict_is_on_disk_when_it_is_stored(study: Study, store: Judgments, tmp_path: Path) -> None:
    assert store.add(verdict(study, RATER, "t1", comment="Ünïcode, =SUM(A1)"))
    (file,) = (tmp_path / "judgments").glob("*.jsonl")
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert row["comment"] == "Ünïcode, =SUM(A1)"
    assert row["time"] > 0
    assert f"-{os.getpid()}-" in file.name
    assert Judgments(tmp_path).rows(study.id) == [row]


def test_the_same_form_counts_once_and_a_new_one_corrects(study: Study, store: Judgments) -> None:
    assert store.add(verdict(study, RATER, "t1", "first"))
    assert not store.add(verdict(study, RATER, "t1", "first", seconds=21.0)), "how long it took is no content"
    assert store.add(verdict(study, RATER, "t1", "second", preference="neither", seconds=5.0))
    said = store.ballot(study.id, RATER)
    assert (said.verdicts["t1"]["preference"], said.seconds["t1"]) == ("neither", 25.0)
    assert len(store.rows(study.id)) == 2


@pytest.mark.parametrize("changes", [{"preference": "B"}, {"harm": {"A": "severe", "B": "none"}}, {"comment": "Looked again"}])
def test_the_same_form_with_other_words_corrects(study: Study, store: Judgments, changes: dict) -> None:
    """A browser's Back shows the form again with its old token: what is changed there is meant."""
    store.add(verdict(study, RATER, "t1", "form"))
    for _ in range(2):
        store.add(verdict(study, RATER, "t1", "form", **changes))
    stands = store.ballot(study.id, RATER).verdicts["t1"]
    assert {name: stands[name] for name in changes} == changes
    assert len(store.rows(study.id)) == 2
    store.add(other(stands, "lock"))
    assert not store.add(verdict(study, RATER, "t1", "form", **changes)), "what stands is not refused"
    with pytest.raises(StudyError, match="locked and stands as it was"):
        store.add(verdict(study, RATER, "t1", "form"))


def test_the_same_form_judges_again_after_a_skip_and_changes_what_comes_after(study: Study, store: Judgments) -> None:
    row = verdict(study, RATER, "t1", "form")
    skip = {**other(row, "skip"), "submission": "form"}
    assert [store.add(each) for each in (row, skip, skip, row)] == [True, True, False, True]
    assert (list(store.ballot(study.id, RATER).verdicts), list(store.ballot(study.id, RATER).skipped)) == (["t1"], [])
    store.add(other(row, "lock", revealed=False))
    assert store.add(other(row, "lock", revealed=True)), "shown after all, from the same page"
    for said in ({"A": "sound", "B": "flawed"}, {"A": "sound", "B": "sound"}):
        assert [store.add(other(row, "soundness", **said)) for _ in range(2)] == [True, False]
    for guess in ("A", "none"):
        assert [store.add(other(row, "guess", guess=guess)) for _ in range(2)] == [True, False]
    said_last = store.ballot(study.id, RATER)
    assert (said_last.soundness["t1"]["B"], said_last.guess and said_last.guess["guess"]) == ("sound", "none")


def test_a_correction_counts_though_the_clock_was_set_back(study: Study, tmp_path: Path) -> None:
    told = iter([1000.0, 998.0, 998.1, 997.0, 2000.0])
    store = Judgments(tmp_path, clock=lambda: next(told))
    for number, preference in enumerate(("A", "B", "neither")):
        assert store.add(verdict(study, RATER, "t1", f"form-{number}", preference=preference))
        assert store.ballot(study.id, RATER).verdicts["t1"]["preference"] == preference
    store.add(other(verdict(study, RATER, "t2"), "skip"))
    store.add(verdict(study, "b" * 24, "t1"))
    rows = Judgments(tmp_path).rows(study.id)
    assert [(row["trial"], row["time"]) for row in rows] == [
        ("t1", 1000.0),
        ("t1", 1000.001),
        ("t1", 1000.002),
        ("t2", 1000.003),
        ("t1", 2000.0),
    ]


def test_a_correction_after_a_restart_counts_though_the_clock_was_set_back(study: Study, tmp_path: Path) -> None:
    assert Judgments(tmp_path, clock=lambda: 1000.0).add(verdict(study, RATER, "t1", "first"))
    again = Judgments(tmp_path, clock=lambda: 10.0)
    assert again.add(verdict(study, RATER, "t1", "second", preference="B"))
    assert Judgments(tmp_path).ballot(study.id, RATER).verdicts["t1"]["preference"] == "B"


def test_a_judgment_is_synced_to_disk_before_it_counts_as_stored(study: Study, store: Judgments, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    real = os.fsync

    def spy(handle: int) -> None:
        real(handle)
        synced.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))

    monkeypatch.setattr(os, "fsync", spy)
    assert store.add(verdict(study, RATER, "t1"))
    (file,) = store.root.glob("*.jsonl")
    assert store.root.stat().st_ino in {node for node, _ in synced}, "of a new file its name must be on disk too"
    for trial in ("t2", "t3"):
        synced.clear()
        assert store.add(verdict(study, RATER, trial))
        assert synced == [(file.stat().st_ino, file.stat().st_size)], "the whole file, this row included, was handed to the disk"


def test_a_locked_verdict_stands(study: Study, store: Judgments) -> None:
    row = verdict(study, RATER, "t1")
    with pytest.raises(StudyError, match="no verdict on this pair to lock"):
        store.add(other(row, "lock"))
    store.add(row)
    with pytest.raises(StudyError, match="once the verdict is locked"):
        store.add(other(row, "soundness", A="sound", B="flawed"))
    assert store.add(other(row, "lock"))
    assert not store.add({**other(row, "lock", revealed=False), "submission": "again"})
    assert store.add({**other(row, "lock", revealed=True), "submission": "read"})
    assert not store.add({**other(row, "lock", revealed=True), "submission": "read again"})
    assert not store.add({**other(row, "lock", revealed=False), "submission": "unread"})
    assert store.ballot(study.id, RATER).locked["t1"]["submission"] == "read"
    for late in ({**row, "submission": "late", "preference": "B"}, other(row, "skip")):
        with pytest.raises(StudyError, match="locked and stands"):
            store.add(late)
    assert store.add(other(row, "soundness", A="sound", B="flawed"))
    said = store.ballot(study.id, RATER)
    assert said.verdicts["t1"]["preference"] == "A"
    assert (said.soundness["t1"]["B"], list(said.locked)) == ("flawed", ["t1"])


def test_a_skip_gives_way_to_a_verdict_and_the_other_way_round(study: Study, store: Judgments) -> None:
    row = verdict(study, RATER, "t1")
    store.add(other(row, "skip"))
    assert list(store.ballot(study.id, RATER).skipped) == ["t1"]
    store.add(row)
    assert (list(store.ballot(study.id, RATER).skipped), list(store.ballot(study.id, RATER).verdicts)) == ([], ["t1"])
    store.add({**other(row, "skip"), "submission": "again"})
    assert (list(store.ballot(study.id, RATER).skipped), list(store.ballot(study.id, RATER).verdicts)) == (["t1"], [])


def test_raters_and_studies_are_kept_apart(study: Study, store: Judgments) -> None:
    store.add(verdict(study, RATER, "t1", "same"))
    assert store.add(verdict(study, "b" * 24, "t1", "same"))
    assert store.add({**verdict(study, RATER, "t1", "same"), "study": "another"})
    assert len(store.rows(study.id)) == 2
    assert len(store.ballot(study.id, RATER).verdicts) == 1
    assert store.rows("none") == []


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"preference": ""}, ["preference"]),
        ({"correct": {"A": "correct"}, "harm": {"A": "none", "B": "deadly"}}, ["correct-B", "harm-B"]),
        ({"chips": {"A": ["biased", "ugly"], "B": []}}, ["chips-A"]),
        ({"comment": "x" * 10_000}, ["comment"]),
        ({"preference": None, "correct": {}, "harm": {}}, ["preference", "correct-A", "harm-A", "correct-B", "harm-B"]),
    ],
)
def test_an_incomplete_verdict_is_not_stored(study: Study, store: Judgments, changes: dict, fields: list[str]) -> None:
    row = verdict(study, RATER, "t1", **changes)
    assert list(problems("verdict", row)) == fields
    with pytest.raises(StudyError):
        store.add(row)
    assert store.rows(study.id) == []
    assert store.add(verdict(study, RATER, "t1"))


@pytest.mark.parametrize("changes", [{"kind": "praise"}, {"submission": ""}, {"submission": "x" * 65}, {"submission": "a b"}])
def test_what_no_form_sends_is_refused(study: Study, store: Judgments, changes: dict) -> None:
    with pytest.raises(StudyError, match="cannot be stored"):
        store.add({**verdict(study, RATER, "t1"), **changes})


def test_thirty_threads_store_each_verdict_once(study: Study, store: Judgments) -> None:
    stored: list[bool] = []

    def judge(rater: str) -> None:
        for trial in range(4):
            row = verdict(study, rater, f"t{trial}")
            twice = [threading.Thread(target=lambda row=row: stored.append(store.add(row))) for _ in range(2)]  # type: ignore[misc]
            for thread in twice:
                thread.start()
            for thread in twice:
                thread.join()

    threads = [threading.Thread(target=judge, args=(f"{number:024x}",)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stored) == [False] * 120 + [True] * 120
    assert len({(row["rater"], row["trial"]) for row in store.rows(study.id)}) == len(store.rows(study.id)) == 120


def test_torn_and_broken_lines_are_skipped_and_counted(study: Study, store: Judgments, tmp_path: Path) -> None:
    store.add(verdict(study, RATER, "t1"))
    (file,) = (tmp_path / "judgments").glob("*.jsonl")
    whole = json.dumps({**verdict(study, RATER, "t2"), "time": 1.0})
    incomplete = json.dumps({**verdict(study, RATER, "t3", preference=""), "time": 1.0})
    with file.open("a") as opened:
        opened.write(f'not JSON\n[]\n{{"kind": "verdict"}}\n{incomplete}\n{whole}\n{whole[:50]}')
    again = Judgments(tmp_path)
    assert {row["trial"] for row in again.rows(study.id)} == {"t1", "t2"}
    assert again.damaged == 5
    again.add(verdict(study, RATER, "t4"))
    assert {row["trial"] for row in store.rows(study.id)} == {"t1", "t2", "t4"}
    assert len(list((tmp_path / "judgments").glob("*.jsonl"))) == 2


@pytest.mark.parametrize("changes", [{"time": "noon"}, {"correct": ["correct"]}, {"comment": None}, {"seconds": "20"}, {"rater": ["a"]}])
def test_a_line_of_the_wrong_form_stops_nobody(study: Study, store: Judgments, tmp_path: Path, changes: dict) -> None:
    store.add(verdict(study, RATER, "t1"))
    (file,) = (tmp_path / "judgments").glob("*.jsonl")
    with file.open("a") as opened:
        opened.write(json.dumps({**verdict(study, RATER, "t2"), "time": 1.0, **changes}) + "\n")
    assert [row["trial"] for row in store.rows(study.id)] == ["t1"]
    assert store.damaged == 1
    assert store.add(verdict(study, RATER, "t3"))


def test_kill_9_loses_nothing_that_was_called_saved(study: Study, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from deepdoctor.studies.judgments import Judgments; from deepdoctor.studies.study import Studies\n"
        "from tests.studies.prepared import verdict\n"
        "store = Judgments(Path(sys.argv[1])); study = Studies(Path(sys.argv[1])).get(sys.argv[2])\n"
        "for number in range(10**6):\n"
        "    store.add(verdict(study, 'a' * 24, f't{number}', comment='x' * 2000)); print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path, study.id], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        told = [child.stdout.readline() for _ in range(50)]
        child.send_signal(signal.SIGKILL)
        told += child.stdout.readlines()
    saved = {int(line) for line in told if line.endswith("\n")}
    kept = {int(row["trial"][1:]) for row in Judgments(tmp_path).rows(study.id)}
    assert len(saved) >= 50
    assert saved <= kept
    assert len(kept) <= len(saved) + 1
