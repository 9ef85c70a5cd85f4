"""What raters said: an append-only store of JSON lines, one file a process start, each row on disk before it is called saved.

Rows: {"study", "rater", "trial", "kind", "submission", "time", …}, by kind:
  verdict    "preference", and by slot "correct", "harm" and "chips"; "comment", "seconds". A later one corrects it, until it is locked.
  lock       the verdict stands; "revealed": whether reasoning and reference were asked for. Another one tells that they were later
  skip       outside the rater's field; a later verdict takes its place
  soundness  by slot, whether the reasoning is sound
  guess      which slot of that trial the rater takes for the tuned one; the last counts
"""

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from deepdoctor.errors import StudyError
from deepdoctor.files import append_row

Row = dict[str, Any]

SLOTS = ("A", "B")
KINDS = ("verdict", "lock", "skip", "soundness", "guess")
PREFERENCES = ("A", "B", "both", "neither")
CORRECT = ("correct", "partly", "wrong", "unsure")
HARM = ("none", "moderate", "severe")
CHIPS = ("wrong_fact", "faulty_reasoning", "omission", "irrelevant", "overconfident", "unclear_or_long", "biased")
SOUND = ("sound", "flawed", "unsure")
GUESSES = ("A", "B", "none")
LONGEST_COMMENT = 2000
LONGEST_SUBMISSION = 64
# seconds; what times are rounded to
TICK = 0.001


def problems(kind: str, said: Mapping[str, Any]) -> dict[str, str]:
    """What is missing or wrong in a judgment, by field ("preference", "correct-A", "comment" …), in words; {} if nothing is."""
    found: dict[str, str] = {}
    if kind == "verdict":
        if said.get("preference") not in PREFERENCES:
            found["preference"] = "Say which answer you would rather give, or that both or neither will do."
        for slot in SLOTS:
            found |= _about_slot(said, slot)
        if len(said.get("comment", "")) > LONGEST_COMMENT:
            found["comment"] = f"The comment has {len(said['comment']):,} characters; at most {LONGEST_COMMENT:,} can be kept. Shorten it."
    if kind == "soundness":
        found |= {slot: f"Say whether the reasoning of answer {slot} is sound." for slot in SLOTS if said.get(slot) not in SOUND}
    if kind == "guess" and said.get("guess") not in GUESSES:
        found["guess"] = "Choose A, B, or that you have no idea."
    return found


def _about_slot(said: Mapping[str, Any], slot: str) -> dict[str, str]:
    found = {}
    if said["correct"].get(slot) not in CORRECT:
        found[f"correct-{slot}"] = f"Say whether answer {slot} is correct."
    if said["harm"].get(slot) not in HARM:
        found[f"harm-{slot}"] = f"Say what harm answer {slot} could do."
    if set(said["chips"].get(slot, ())) - set(CHIPS):
        found[f"chips-{slot}"] = f"A remark about answer {slot} is not one of the list."
    return found


@dataclass(frozen=True)
class Ballot:
    """What one rater has said in one study so far, by trial id; of several rows the last. `seconds` adds up a trial's corrections."""

    verdicts: dict[str, Row] = field(default_factory=dict)
    locked: dict[str, Row] = field(default_factory=dict)
    skipped: dict[str, Row] = field(default_factory=dict)
    soundness: dict[str, Row] = field(default_factory=dict)
    guess: Row | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def ballot(rows: Iterable[Row]) -> Ballot:
    """One rater's rows as a ballot."""
    verdicts: dict[str, Row] = {}
    locked: dict[str, Row] = {}
    skipped: dict[str, Row] = {}
    soundness: dict[str, Row] = {}
    seconds: dict[str, float] = {}
    guess = None
    for row in sorted(rows, key=lambda row: row["time"]):
        trial, kind = row["trial"], row["kind"]
        if kind == "verdict":
            verdicts[trial] = row
            skipped.pop(trial, None)
            seconds[trial] = seconds.get(trial, 0.0) + row["seconds"]
        elif kind == "skip":
            skipped[trial] = row
            verdicts.pop(trial, None)
        elif kind == "guess":
            guess = row
        else:
            {"lock": locked, "soundness": soundness}[kind][trial] = row
    return Ballot(verdicts, locked, skipped, soundness, guess, seconds)


class Judgments:
    """The store. One object of a process writes, any number read; all see what is on disk. Safe for threads.

    clock: tells the time in seconds since 1970. It may be set back: a rater's rows keep the order in which they came.
    """

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self.root, self._clock = Path(data_dir) / "judgments", clock
        self._file = self.root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(2)}.jsonl"
        self._lock = RLock()
        self._read: dict[Path, int] = {}
        self._rows: dict[str, dict[str, list[Row]]] = {}
        self._broken = 0

    def add(self, row: Mapping[str, Any]) -> bool:
        """Store one judgment; when this returns it is on disk. False if the same form said the same and that stands, or as much is locked.

        The same form with other words corrects: a browser's Back shows it again with its submission.

        Needs "study", "rater", "trial", "kind", "submission" and what the kind holds. Raises StudyError if that is incomplete, if a
        verdict or skip comes after the lock, or a lock or soundness before there is what it belongs to.
        """
        with self._lock:
            self._refresh()
            before = self._rows.get(row["study"], {}).get(row["rater"], ())
            said = ballot(before)
            if _adds_nothing(row, said):
                return False
            _require_allowed(row, said)
            # a correction is what comes later: with a clock that was set back the old answer would still count
            latest = max((each["time"] for each in before), default=0.0)
            append_row(self._file, {**row, "time": round(max(self._clock(), latest + TICK), 3)})
            return True

    def rows(self, study: str) -> list[Row]:
        """All rows of a study, in the order of their time."""
        with self._lock:
            self._refresh()
            found = [row for rows in self._rows.get(study, {}).values() for row in rows]
        return sorted(found, key=lambda row: row["time"])

    def ballot(self, study: str, rater: str) -> Ballot:
        """What one rater has said in a study so far."""
        with self._lock:
            self._refresh()
            return ballot(self._rows.get(study, {}).get(rater, ()))

    @property
    def damaged(self) -> int:
        """Lines that could not be read, such as one torn by a crash; none of them was called saved."""
        with self._lock:
            self._refresh()
            torn = sum(file.stat().st_size > read for file, read in self._read.items())
            return self._broken + torn

    def _refresh(self) -> None:
        """Take in what has come to disk since the last time."""
        for file in sorted(self.root.glob("*.jsonl")):
            start = self._read.get(file, 0)
            if file.stat().st_size <= start:
                continue
            with file.open("rb") as opened:
                opened.seek(start)
                whole, newline, _torn = opened.read().rpartition(b"\n")
            self._read[file] = start + len(whole) + len(newline)
            for line in filter(None, whole.split(b"\n")):
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            if row["kind"] not in KINDS or problems(row["kind"], row) or not isinstance(row["time"], float | int):
                raise ValueError(line)
            if row["kind"] == "verdict" and not isinstance(row["comment"], str):
                raise ValueError(line)
            ballot([row])
            self._rows.setdefault(row["study"], {}).setdefault(row["rater"], []).append(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._broken += 1


def _adds_nothing(row: Mapping[str, Any], said: Ballot) -> bool:
    """Whether a row says what stands already; how long it took is no content."""
    kept = {"verdict": said.verdicts, "lock": said.locked, "skip": said.skipped, "soundness": said.soundness}
    before = said.guess if row["kind"] == "guess" else kept.get(row["kind"], {}).get(row["trial"])
    if before is None:
        return False
    if row["kind"] == "lock":
        return before.get("revealed") is True or row.get("revealed") is not True
    return all(before.get(name) == value for name, value in row.items() if name != "seconds")


def _require_allowed(row: Mapping[str, Any], said: Ballot) -> None:
    kind, trial = row["kind"], row["trial"]
    if kind not in KINDS or not re.fullmatch(rf"[\w-]{{1,{LONGEST_SUBMISSION}}}", row["submission"]):
        raise StudyError("This form cannot be stored. Load the page again and repeat it.")
    if kind in ("verdict", "skip") and trial in said.locked:
        raise StudyError("This verdict is locked and stands as it was; nothing was changed.")
    if kind == "lock" and trial not in said.verdicts:
        raise StudyError("There is no verdict on this pair to lock. Judge it first.")
    if kind == "soundness" and trial not in said.locked:
        raise StudyError("The reasoning can be judged once the verdict is locked.")
    if found := problems(kind, row):
        raise StudyError(" ".join(found.values()))
