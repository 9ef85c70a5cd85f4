"""A study is a folder: questions, the answers to them, and for each rater the blinded pairs to judge, with the A/B map."""

import json
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deepdoctor.config import StudyConfig
from deepdoctor.errors import DeepDoctorError, StudyError
from deepdoctor.files import append_row, read_rows, write_json
from deepdoctor.overlap import Grade, Seen
from deepdoctor.processes import is_alive, this_process
from deepdoctor.studies.answers import require_one_adapter
from deepdoctor.studies.questions import BankQuestion, require_unique
from deepdoctor.studies.trials import (
    LONGEST_NAME,
    MOST_YEARS,
    TOKEN,
    Arm,
    Rater,
    Trial,
    assign,
    new_token,
    one_of_each,
    plain_name,
    same_name,
)

SCHEMA = 1
State = Literal["preparing", "interrupted", "failed", "open", "closed"]


@dataclass(frozen=True)
class Study:
    """One study on disk. Everything is read afresh on each call: another process may be writing it."""

    path: Path

    @property
    def id(self) -> str:
        """The folder's name, which is what a link carries: when it was made, and twelve unguessable characters."""
        return self.path.name

    @property
    def details(self) -> dict[str, Any]:
        """study.json: {"schema", "id", "created", "config", "model", "versions", "secret"}; the secret seeds the assignment."""
        return _read_json(self.path / "study.json")

    @property
    def config(self) -> StudyConfig:
        """What is compared, and how."""
        return StudyConfig.of(self.details["config"])

    @property
    def name(self) -> str:
        """What its maker calls it; raters do not see it."""
        return self.config.name.strip() or f"Study of {time.strftime('%d %b %H:%M', time.localtime(self.details['created']))}"

    @property
    def status(self) -> dict[str, Any]:
        """status.json: {"state", "done", "total", "message", "eta_seconds", "updated", "process"}; when it was "opened", "closed"."""
        return _read_json(self.path / "status.json")

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.status["state"]

    def set_status(self, **changes: Any) -> None:
        """Merge `changes` into status.json and stamp the time."""
        status = self.status if (self.path / "status.json").exists() else {}
        write_json(self.path / "status.json", {**status, **changes, "updated": time.time()})

    def claim(self) -> None:
        """Note that this process prepares the answers now."""
        self.set_status(state="preparing", message="Preparing the answers", process=this_process())

    def is_claimed(self) -> bool:
        """Whether the process that prepares the answers is still alive."""
        return is_alive(self.status.get("process"))

    def questions(self) -> list[BankQuestion]:
        """The questions, in order."""
        return [BankQuestion.from_dict(row) for row in _read_json(self.path / "questions.json", list)]

    def seen(self) -> dict[str, Grade]:
        """How well training knew each question, by question id."""
        return {row["id"]: row["seen"] for row in _read_json(self.path / "questions.json", list)}

    def answers(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Rows of answers.jsonl by question id and seed: {"question", "seed", "comparison", "native"}. Of repeated ones the last counts.

        "native" is a transcript with its "proof" (proof.BaseProof), or None; older studies have it without proof.
        """
        return {(row["question"], row["seed"]): row for row in read_rows(self.path / "answers.jsonl")[0]}

    def append_answer(self, row: Mapping[str, Any]) -> None:
        """Append one row of answers, on disk when this returns."""
        append_row(self.path / "answers.jsonl", dict(row))

    def pending(self) -> list[tuple[BankQuestion, int]]:
        """Questions and seeds that have no answer yet, in order."""
        answered = self.answers()
        seeds = self.config.seeds
        return [(question, seed) for question in self.questions() for seed in seeds if (question.id, seed) not in answered]

    def open(self) -> None:
        """Let raters in. Raises StudyError while answers are missing, or if they are not all of one adapter and base."""
        if missing := len(self.pending()):
            raise StudyError(f"{missing} {'answer is' if missing == 1 else 'answers are'} still missing. Prepare them first.")
        require_one_adapter(self.answers().values())
        opened = [*self.status.get("opened", ()), time.time()]
        self.set_status(state="open", message="Open to raters", eta_seconds=None, process=None, opened=opened)

    def close(self) -> None:
        """Let nobody judge any more; what was judged stays."""
        if self.state not in ("open", "closed"):
            raise StudyError("Only an open study can be closed.")
        self.set_status(state="closed", message="Closed", closed=[*self.status.get("closed", ()), time.time()])

    def join(self, name: str, specialty: str, years: int, token: str = "") -> Rater:
        """Make a rater with an own assignment. With the `token` of somebody who joined already nothing changes.

        Raises StudyError if the study is not open, a value is wrong, or the name is taken. Callers let one join at a time.
        """
        token = token or new_token()
        if known := self.rater(token):
            return known
        if self.state != "open":
            raise StudyError("This study is not open to raters.")
        name, specialty = plain_name(name), plain_name(specialty)
        if not (1 <= len(name) <= LONGEST_NAME and 1 <= len(specialty) <= LONGEST_NAME and 0 <= years <= MOST_YEARS):
            raise StudyError(f"A rater has a name and a specialty of 1 to {LONGEST_NAME} characters, and 0 to {MOST_YEARS} years.")
        if any(same_name(rater.name, name) for rater in self.raters()):
            raise StudyError(f"Somebody has joined as {name} already. If that was you, use your own link; if not, choose another name.")
        rater = Rater(token, name, specialty, years, time.time(), tuple(self._assigned(token)))
        write_json(self._rater_file(token), rater.to_dict())
        return rater

    def rater(self, token: str) -> Rater | None:
        """The rater with that token, or None. Raises StudyError if their file is damaged."""
        file = self._rater_file(token)
        return _rater(file) if file.exists() else None

    def raters(self) -> list[Rater]:
        """Everybody who joined and whose file can be read, in the order of joining."""
        return sorted((rater for rater in self._read_raters() if rater), key=lambda rater: rater.joined)

    @property
    def damaged_raters(self) -> int:
        """How many joined whose files cannot be read: what they said cannot be told apart without them."""
        return sum(rater is None for rater in self._read_raters())

    def _read_raters(self) -> Iterator[Rater | None]:
        for file in (self.path / "raters").glob("*.json"):
            try:
                yield _rater(file)
            except StudyError:
                yield None

    def _assigned(self, token: str) -> list[Trial]:
        config = self.config
        others: tuple[Arm, ...] = ("base", "native") if config.native_arm else ("base",)
        key = f"{config.seed}:{self.details['secret']}"
        pairs = one_of_each(list(self.answers()), others, key, len(self.raters()))
        return assign(pairs, config.repeat_share, f"{key}:{token}")

    def _rater_file(self, token: str) -> Path:
        if not TOKEN.fullmatch(token):
            raise StudyError("This is not a rater's link.")
        return self.path / "raters" / f"{token}.json"


class Studies:
    """All studies under one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.root = Path(data_dir) / "studies"

    def create(self, config: StudyConfig, questions: Iterable[BankQuestion], model: str, seen: Mapping[str, Seen]) -> Study:
        """Make a study's folder, in state "preparing". `seen` grades each question by its id; see questions.grade.

        Raises StudyError if no question remains, DatasetError if two share an id.
        """
        known = list(questions)
        require_unique(known, "The chosen questions")
        chosen = [question for question in known if seen[question.id].grade == "unseen" or not config.unseen_only]
        if not chosen:
            why = "training has seen all of them, or nearly" if known else "none was chosen"
            raise StudyError(f"The study would have no questions: {why}. Choose others, or allow questions that training has seen.")
        study = Study(self.root / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}")
        (study.path / "raters").mkdir(parents=True)
        graded = [{**question.to_dict(), **_graded(seen[question.id])} for question in chosen]
        write_json(study.path / "questions.json", graded)
        details = {"schema": SCHEMA, "id": study.id, "created": time.time(), "config": config.model_dump(), "model": model}
        total = len(chosen) * config.seeds_per_question
        study.set_status(state="preparing", done=0, total=total, message="Waiting for the engine", eta_seconds=None)
        # written last: with it the study is there
        write_json(
            study.path / "study.json", {**details, "versions": {"python": platform.python_version()}, "secret": secrets.token_hex(16)}
        )
        return study

    def get(self, study_id: str) -> Study:
        """The study with that id. Raises StudyError if there is none (an id is a folder's name, never a path)."""
        study = Study(self.root / study_id)
        if not re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{12}", study_id) or not (study.path / "study.json").exists():
            raise StudyError("There is no such study. Check the link, or ask whoever sent it.")
        return study

    def list(self) -> list[Study]:
        """All readable studies, newest first."""
        return [study for study in self._all() if _is_readable(study)]

    def damaged(self) -> Sequence[str]:
        """Ids of the studies that `list` leaves out because their files cannot be read, newest first."""
        return [study.id for study in self._all() if not _is_readable(study)]

    def _all(self) -> Iterator[Study]:
        return (Study(file.parent) for file in sorted(self.root.glob("*/study.json"), reverse=True))

    def delete(self, study_id: str) -> None:
        """Remove a study with its answers and raters, noting that; what they judged stays in the store.

        Raises StudyError while it is prepared or waits for that.
        """
        study = self.get(study_id)
        if study.state == "preparing":
            raise StudyError(f"The answers of {study.name} are being prepared, or wait for that; stop it before deleting the study.")
        self.note_deleted(study.id)
        shutil.rmtree(study.path)

    def note_deleted(self, study_id: str) -> None:
        """Note that a study is deleted for good, so that no copy of it comes back."""
        append_row(self.root / "deleted.jsonl", {"study": study_id, "time": time.time()})

    def deleted(self) -> set[str]:
        """Ids of the studies that were deleted for good."""
        return {str(row["study"]) for row in read_rows(self.root / "deleted.jsonl")[0] if "study" in row}

    def preparing(self) -> Sequence[Study]:
        """Studies whose answers are being prepared, or wait for that."""
        return [study for study in self.list() if study.state == "preparing"]

    def lost(self) -> Sequence[Study]:
        """Studies that say their answers are being prepared while no living process does that."""
        return [study for study in self.preparing() if not study.is_claimed()]


def _graded(seen: Seen) -> dict[str, Any]:
    return {"seen": seen.grade, "nearest": seen.nearest, "similarity": round(seen.similarity, 4)}


def _rater(file: Path) -> Rater:
    try:
        rater = Rater.from_dict(_read_json(file))
        if rater.token != file.stem or not isinstance(rater.joined, float):
            raise TypeError(rater.joined)
    except (StudyError, KeyError, TypeError):
        # its name is the key to the rater's page: it is told to nobody
        raise StudyError("The file of this rater cannot be read. What was saved is kept; tell whoever sent the link.") from None
    return rater


def _is_readable(study: Study) -> bool:
    """Whether what every list asks of a study is there."""
    try:
        whole = {"done", "total", "message", "updated"} <= study.status.keys() and study.status["state"] in get_args(State)
        return whole and bool(study.name) and bool(study.seen())
    except (DeepDoctorError, KeyError, TypeError):
        return False


def _read_json(file: Path, kind: type = dict) -> Any:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{file.parent.name}/{file.name} cannot be read: {error}") from None
    if not isinstance(values, kind):
        raise StudyError(f"{file.parent.name}/{file.name} cannot be read: it holds something else.")
    return values
