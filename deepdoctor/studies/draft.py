"""A study before it is made: the questions it would take, graded against training, and what it would ask of each rater."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import get_args

from deepdoctor.config import StudyConfig
from deepdoctor.dataset import Example, held_out_examples
from deepdoctor.errors import ConfigError, StudyError
from deepdoctor.overlap import Grade, Seen
from deepdoctor.studies.questions import BankQuestion, bundled_bank, from_examples, grade, read_bank, require_unique
from deepdoctor.studies.study import Studies, Study
from deepdoctor.studies.trials import repeats

SOURCES = {
    "bundled": "Bundled question bank",
    "held_out": "Held-out teaching cases",
    "rows": "Rows of the dataset in use",
    "file": "A file of your own",
}
NO_ROWS = (
    "This run does not record the rows it was trained on (questions.json is missing in its folder), so nothing tells which questions it "
    "has seen. Put the file back, or take a run that was trained here."
)
# half a minute for the form, and as long for reading
SECONDS_A_PAIR = 60


@dataclass(frozen=True)
class Choice:
    """Which questions are wanted: an empty filter takes all; `most` are drawn from what is left, None takes all of it.

    `ids` picks single questions among those that pass the other filters.
    """

    specialties: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ()
    most: int | None = None
    ids: tuple[str, ...] = ()

    def takes(self, question: BankQuestion) -> bool:
        """Whether the filters let a question through."""
        wanted = (
            (self.specialties, question.specialty),
            (self.kinds, question.kind),
            (self.difficulties, question.difficulty),
            (self.ids, question.id),
        )
        return all(not names or name in names for names, name in wanted)


@dataclass(frozen=True)
class Draft:
    """What a study would be. `wanted` passed the filters, `questions` the leak guard and the draw; `seen` grades all wanted ones by id."""

    config: StudyConfig
    wanted: list[BankQuestion]
    questions: list[BankQuestion]
    seen: dict[str, Seen]

    @property
    def grades(self) -> dict[Grade, int]:
        """How many wanted questions training knows, and how well."""
        found = Counter(seen.grade for seen in self.seen.values())
        return {name: found[name] for name in get_args(Grade)}

    @property
    def pairs(self) -> int:
        """Pairs that each rater judges, repeats left out: one for each question and seed, also with the native arm."""
        return len(self.questions) * self.config.seeds_per_question

    @property
    def repeated(self) -> int:
        """Pairs that each rater is shown a second time."""
        return repeats(self.pairs, self.config.repeat_share)

    @property
    def minutes(self) -> int:
        """Roughly what one rater will need."""
        return round((self.pairs + self.repeated) * SECONDS_A_PAIR / 60)

    def create(self, studies: Studies, model: str) -> Study:
        """Make the study. Raises StudyError if no question is left."""
        # with none left, the wanted ones let it say why
        return studies.create(self.config, self.questions or self.wanted, model, self.seen)


def questions_of(sources: Iterable[str], file: Path | None, rows: Sequence[Example]) -> list[BankQuestion]:
    """The questions of several SOURCES together. Raises ConfigError for a source without its file, DatasetError for one that is no bank."""
    found: list[BankQuestion] = []
    for source in sources:
        if source == "bundled":
            found += bundled_bank()
        elif source == "held_out":
            found += held_out_questions()
        elif source == "rows":
            found += from_examples(rows)
        elif file is None:
            raise ConfigError("Choose the file with your own questions, or take another source.")
        else:
            found += read_bank(file)
    require_unique(found, "The chosen sources")
    return found


def held_out_questions() -> list[BankQuestion]:
    """The held-out teaching cases, of which no training of the embedded model saw the patient."""
    return [
        BankQuestion(
            id=f"held-out-{number}",
            specialty=case.specialty,
            difficulty="",
            kind="clinical",
            question=case.example.question,
            reference=case.example.response,
            key_points=(f"Names {case.key_term}",),
            terms=(case.key_term.lower(),),
            red_flags=(),
            source="deepdoctor/nano/conditions.toml",
        )
        for number, case in enumerate(held_out_examples(), start=1)
    ]


def draft(config: StudyConfig, questions: Iterable[BankQuestion], choice: Choice, training_questions: Sequence[str]) -> Draft:
    """Choose among the questions, as a study of that configuration would; the draw depends on its assignment seed.

    Raises ConfigError, or StudyError if there are no training questions to compare with: then all would wrongly count as unseen.
    """
    if not training_questions:
        raise StudyError(NO_ROWS)
    wanted = [question for question in questions if choice.takes(question)]
    if missing := set(choice.ids) - {question.id for question in wanted}:
        raise ConfigError(f"The picked question {min(missing)!r} is not among the chosen sources, or a filter leaves it out.", field="ids")
    seen = grade(wanted, training_questions)
    left = [question for question in wanted if not config.unseen_only or seen[question.id].grade == "unseen"]
    if choice.most is not None and choice.most < 1:
        raise ConfigError("A study takes at least one question; leave the number empty for all.", field="most")
    if choice.most is not None and choice.most < len(left):
        drawn = Random(config.seed).sample(range(len(left)), choice.most)
        left = [left[place] for place in sorted(drawn)]
    return Draft(config, wanted, left, seen)
