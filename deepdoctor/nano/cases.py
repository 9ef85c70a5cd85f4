"""Cases: a patient, three or four of a condition's findings, and one thing asked about them. Seeded, pure Python.

A combination is a condition's name with the set of findings shown. One or two combinations of every condition are held out:
they occur in no training row and in no pretraining document, whatever is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from random import Random

from deepdoctor.nano.knowledge import ASKED, Condition

SPLIT_SEED = 3407
Combination = tuple[str, frozenset[str]]

SHOWCASE_CONDITION = "stress urinary incontinence"
SHOWCASE_FINDINGS = (
    "leakage of urine on coughing or sneezing",
    "no leakage at night",
    "urethral hypermobility on the Q-tip test",
)
SHOWCASE_QUESTION = (
    "A 61-year-old woman with a long history of involuntary urine loss during activities like coughing or sneezing but no leakage at night "
    "undergoes a gynecological exam and Q-tip test. Based on these findings, what would cystometry most likely reveal about her residual "
    "volume and detrusor contractions?"
)

QUESTIONS: dict[str, tuple[str, ...]] = {
    "diagnosis": (
        "What is the most likely diagnosis?",
        "Which condition best explains this picture?",
        "What is the most probable diagnosis?",
        "Which diagnosis fits best?",
        "Which diagnosis should be suspected first?",
        "What condition is most likely present?",
    ),
    "test": (
        "What is the best next test?",
        "Which test should be done next?",
        "Which investigation should be arranged next?",
        "What is the most useful next investigation?",
        "Which test would help most at this point?",
        "What test should be ordered next?",
    ),
    "result": (
        "What would {test} most likely show?",
        "What would you expect {test} to reveal?",
        "What should be expected from {test}?",
        "What would the best next test be expected to show?",
        "What would the most useful next investigation most likely show?",
        "What finding would {test} most likely demonstrate?",
    ),
    "mechanism": (
        "What mechanism best explains these findings?",
        "What is the underlying mechanism?",
        "Which process in the body is most likely responsible?",
        "What is the most likely pathophysiology?",
        "Why does this happen, in terms of mechanism?",
        "What underlying process is the most likely cause?",
    ),
    "treatment": (
        "What is the most appropriate first treatment?",
        "Which treatment should be started first?",
        "What is the best initial treatment?",
        "What treatment is recommended first?",
        "What should be the first step in treatment?",
        "Which initial management is most appropriate?",
    ),
}

WITH_BACKGROUND = (
    "{A_patient} with a history of {background} presents with {listed}. {Ask}",
    "{A_patient} presents with {listed}. {He} has a history of {background}. {Ask}",
    "{A_patient}, who has a history of {background}, is found to have {listed}. {Ask}",
    "{A_patient} is seen because of {listed}. The past history includes {background}. {Ask}",
    "A doctor is asked to see {a_patient} because of {listed}. There is a history of {background}. {Ask}",
    "In {a_patient} with a history of {background}, assessment shows {listed}. {Ask}",
    "{Listed} are noted in {a_patient} with a history of {background}. {Ask}",
    "You are seeing {a_patient}. The history is one of {background}. The findings are {first}, together with {rest}. {Ask}",
    "{A_patient} with a history of {background} presents with {first}. Further assessment reveals {rest}. {Ask}",
    "Patient: {a_patient}. Background: {background}. Findings: {semicolons}. {Ask}",
)
WITHOUT_BACKGROUND = (
    "{A_patient} presents with {listed}. {Ask}",
    "{A_patient} is found to have {listed}. {Ask}",
    "{A_patient} comes in with {first}. Also noted: {rest}. {Ask}",
    "In {a_patient} with {listed}, {ask}",
    "{stem} in {a_patient} with {listed}?",
    "You are called to see {a_patient} with {first}. The other findings are {rest}. {Ask}",
    "Assessment of {a_patient} shows {listed}. {Ask}",
    "Patient: {a_patient}. Findings: {semicolons}. {Ask}",
)


@dataclass(frozen=True)
class Patient:
    """Who it is about: age in `unit`, a noun (woman, man, girl, boy), and one phrase of background or none."""

    age: int
    unit: str
    noun: str
    background: str | None = None

    def __str__(self) -> str:
        return f"{_article(self.age)} {self.age}-{self.unit}-old {self.noun}"

    @property
    def pronouns(self) -> tuple[str, str, str]:
        """Such as (he, him, his)."""
        return ("she", "her", "her") if self.noun in ("woman", "girl") else ("he", "him", "his")


@dataclass(frozen=True)
class Case:
    """One question about one patient. `findings` are three or four of the condition's six, in the order shown."""

    condition: Condition
    asked: str
    findings: tuple[str, ...]
    patient: Patient
    question: str

    @property
    def key_term(self) -> str:
        """The words an answer must contain to have named what was asked."""
        return self.condition.key_term(self.asked)

    @property
    def combination(self) -> Combination:
        """What decides on which side of the split this case lies."""
        return self.condition.name, frozenset(self.findings)

    @property
    def leaks(self) -> bool:
        """Whether the question already contains what it asks for."""
        return self.key_term.lower() in self.question.lower()

    @cached_property
    def words(self) -> dict[str, str]:
        """The fields that templates of questions and voices are filled with; a capital means a capital first letter."""
        he, him, his = self.patient.pronouns
        condition = self.condition
        words = {
            "he": he,
            "him": him,
            "his": his,
            "a_patient": str(self.patient),
            "noun": self.patient.noun,
            "background": self.patient.background or "",
            "listed": listed(self.findings),
            "name": condition.name,
            "test": condition.test,
            "result": condition.result,
            "mechanism": condition.mechanism,
            "treatment": condition.treatment,
        }
        return with_capitals(words)


def with_capitals(words: dict[str, str]) -> dict[str, str]:
    """The same words plus, under a capitalised name, each with a capital first letter."""
    return {**words, **{name[0].upper() + name[1:]: capital(value) for name, value in words.items()}}


def capital(text: str) -> str:
    """The text with a capital first letter; spellings such as pH keep theirs."""
    if len(text) > 1 and text[1].isupper():
        return text
    return text[:1].upper() + text[1:]


def listed(phrases: tuple[str, ...]) -> str:
    """A, B and C; with heavier joints where a phrase has a comma or an "and" of its own."""
    if len(phrases) < 3 and not any("," in phrase for phrase in phrases):
        return " and ".join(phrases)
    comma, last = ", ", " and "
    if any("," in phrase for phrase in phrases):
        comma, last = "; ", "; and "
    elif any(" and " in phrase for phrase in phrases):
        last = ", and "
    return comma.join(phrases[:-1]) + last + phrases[-1]


def combinations_of(condition: Condition) -> list[Combination]:
    """All 35 combinations of three or four of the six findings, in a fixed order."""
    return [(condition.name, frozenset(chosen)) for size in (3, 4) for chosen in combinations(condition.findings, size)]


def held_out_combinations(condition: Condition) -> list[Combination]:
    """The one or two combinations of a condition that no training row and no pretraining document shows."""
    random = Random(f"{SPLIT_SEED}/{condition.name}")
    showcase = (SHOWCASE_CONDITION, frozenset(SHOWCASE_FINDINGS))
    every = [each for each in combinations_of(condition) if each != showcase]
    return random.sample(every, random.choice((1, 2, 2)))


def training_combinations(condition: Condition) -> list[Combination]:
    """The combinations that training rows and pretraining documents are drawn from."""
    held_out = held_out_combinations(condition)
    return [each for each in combinations_of(condition) if each not in held_out]


def make_case(condition: Condition, asked: str, combination: Combination, random: Random) -> Case:
    """A case of that combination with a fresh patient and wording that does not give away what is asked."""
    for _ in range(40):
        # sorted before shuffling: the order of a frozenset of strings differs between processes
        findings = sorted(combination[1])
        random.shuffle(findings)
        case = Case(condition, asked, tuple(findings), _patient(condition, random), "")
        case = Case(condition, asked, case.findings, case.patient, _question(case, random))
        if not case.leaks:
            return case
    return case


def random_case(conditions: Sequence[Condition], random: Random) -> Case:
    """A case for training: any condition, anything asked, any combination that is not held out."""
    condition = random.choice(conditions)
    return make_case(condition, random.choice(ASKED), random.choice(training_combinations(condition)), random)


def showcase_case(conditions: Sequence[Condition]) -> Case:
    """The source article's showcase question as a case."""
    condition = next(each for each in conditions if each.name == SHOWCASE_CONDITION)
    return Case(condition, "result", SHOWCASE_FINDINGS, Patient(61, "year", "woman"), SHOWCASE_QUESTION)


def _patient(condition: Condition, random: Random) -> Patient:
    nouns = {"person": ("woman", "man"), "child": ("girl", "boy")}.get(condition.sex, (condition.sex,))
    background = random.choice(condition.background) if random.random() < 0.6 else None
    return Patient(random.randint(*condition.ages), condition.age_unit, random.choice(nouns), background)


def _question(case: Case, random: Random) -> str:
    ask = random.choice(QUESTIONS[case.asked]).format_map(case.words)
    template = random.choice(WITH_BACKGROUND if case.patient.background else WITHOUT_BACKGROUND)
    extra = {
        "Ask": ask,
        "ask": ask[0].lower() + ask[1:],
        "stem": ask.removesuffix("?"),
        "first": case.findings[0],
        "rest": listed(case.findings[1:]),
        "semicolons": "; ".join(case.findings),
    }
    return template.format_map({**case.words, **extra})


def _article(age: int) -> str:
    return "an" if age in (8, 11, 18) or 80 <= age <= 89 else "a"
