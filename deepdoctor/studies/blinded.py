"""What a study keeps from whoever could be its rater: its questions, asked or read anywhere else, would tell base from tuned."""

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from deepdoctor.errors import StudyError
from deepdoctor.overlap import Overlap
from deepdoctor.studies.study import Studies, Study

INDEXES_KEPT = 2
Stamp = tuple[Path, int]


class Blinded:
    """The questions of all studies that are not closed, whether they are still prepared or judged already. Safe for threads."""

    def __init__(self, studies: Studies) -> None:
        self.studies = studies
        self._index = lru_cache(maxsize=INDEXES_KEPT)(_read)

    def held(self, questions: Iterable[str]) -> set[str]:
        """Those of the questions that such a study asks, or that are much like one that it asks; how they are compared: overlap.py."""
        stamps = tuple(stamp for study in self.studies.list() for stamp in _stamps(study))
        if not stamps:
            return set()
        index = self._index(stamps)
        return {question for question in set(questions) if index.grade(question).grade != "unseen"}


def _stamps(study: Study) -> list[Stamp]:
    """The study's folder and when its questions were written; [] once it is closed, or if it was deleted this moment."""
    with suppress(StudyError, OSError):
        if study.state != "closed":
            return [(study.path, (study.path / "questions.json").stat().st_mtime_ns)]
    return []


def _read(stamps: tuple[Stamp, ...]) -> Overlap:
    asked: list[str] = []
    for path, _written in stamps:
        # a study whose questions cannot be read cannot be judged either
        with suppress(StudyError):
            asked += [question.question for question in Study(path).questions()]
    return Overlap(asked)
