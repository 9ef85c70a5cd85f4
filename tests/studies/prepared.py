"""Studies as the engine leaves them: questions with both answers on disk, made by hand."""

from pathlib import Path

from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.config import SamplingConfig, StudyConfig
from deepdoctor.overlap import Seen
from deepdoctor.studies.questions import BankQuestion
from deepdoctor.studies.study import Studies, Study

UNSEEN = Seen("unseen", None, None, 0.1)
SPECIALTIES = ("cardiology", "urology", "not medical")


def bank_question(number: int) -> BankQuestion:
    """A question of a small bank; every third is not medical."""
    return BankQuestion(
        id=f"question-{number}",
        specialty=SPECIALTIES[number % 3],
        difficulty="easy",
        kind="general" if number % 3 == 2 else "clinical",
        question=f"Case {number}: a patient of {40 + number} years has a cough that will not go away. What should be done first?",
        reference=f"Reference {number}: take a chest radiograph first.",
        key_points=("Takes a chest radiograph", "Asks about smoking"),
        terms=("radiograph|x-ray", "smok"),
        red_flags=("Sends the patient home untested",),
        source="A guideline",
    )


def written(number: int, arm: str) -> Transcript:
    """What one arm wrote: base and native in bullets, tuned in one paragraph; one tuned answer in twelve never comes."""
    thought = f"The {number}. thought of one side, longer or shorter."
    if arm == "tuned" and number % 12 == 11:
        return Transcript(thought, 40, 40, 1.5, "length")
    plain = f"For case {number}, take a chest radiograph and ask about smoking."
    listed = f"**Case {number}**\n- Take a chest radiograph\n- Ask about smoking\n- Look for weight loss"
    extra = "\n- Answered under another prompt" if arm == "native" else ""
    response = plain if arm == "tuned" else listed + extra
    return Transcript(f"{thought}</think>\n{response}", 60 if arm == "tuned" else 90, 30, 2.0, "stop")


def answer_row(study: Study, question: BankQuestion, seed: int) -> dict:
    """The row of answers.jsonl for one question and seed."""
    number = int(question.id.removeprefix("question-"))
    comparison = Comparison(
        question=question.question,
        base=written(number, "base"),
        tuned=written(number, "tuned"),
        sampling=SamplingConfig(seed=seed),
        prompt_style="article",
        model="nano",
        run="20260101-000000-abcd",
    )
    native = written(number, "native").to_dict() if study.config.native_arm else None
    return {"question": question.id, "seed": seed, "comparison": comparison.to_dict(), "native": native}


def created(data_dir: Path, questions: int = 12, **settings: object) -> Study:
    """A study before its answers are made."""
    bank = [bank_question(number) for number in range(questions)]
    config = StudyConfig.of({"name": "A secret name", "run": "20260101-000000-abcd", **settings})
    return Studies(data_dir).create(config, bank, "nano", dict.fromkeys((question.id for question in bank), UNSEEN))


def prepared(data_dir: Path, questions: int = 12, **settings: object) -> Study:
    """An open study of so many questions; `settings` are StudyConfig's."""
    study = created(data_dir, questions, **settings)
    for question, seed in study.pending():
        study.append_answer(answer_row(study, question, seed))
    study.open()
    return study


def verdict(study: Study, rater: str, trial: str, submission: str = "", **changes: object) -> dict:
    """A whole verdict row: A preferred, both correct and harmless, unless `changes` say otherwise."""
    said = {"preference": "A", "correct": dict.fromkeys("AB", "correct"), "harm": dict.fromkeys("AB", "none"), "chips": {"A": [], "B": []}}
    row = {"study": study.id, "rater": rater, "trial": trial, "kind": "verdict", "submission": submission or f"1-{trial}"}
    return {**row, **said, "comment": "", "seconds": 20.0, **changes}


def other(row: dict, kind: str, **more: object) -> dict:
    """A row of another kind on the same trial."""
    return {**{name: row[name] for name in ("study", "rater", "trial")}, "kind": kind, "submission": f"{kind}-{row['trial']}", **more}
