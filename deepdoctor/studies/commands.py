"""What the command line does with studies: one function a command, as in commands.py."""

import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

from deepdoctor.commands import Outcome, say, stopping
from deepdoctor.config import DatasetConfig
from deepdoctor.dataset import Example, load_rows, map_columns, to_examples
from deepdoctor.errors import ConfigError
from deepdoctor.runs import Runs
from deepdoctor.studies.bundle import recompute, write_bundle
from deepdoctor.studies.draft import Draft
from deepdoctor.studies.headline import study_plan
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.progress import damage, damage_of, losses_of, require_unopened, verdicts
from deepdoctor.studies.study import Studies, Study

MOST_SHOWN = 20
SAY_EVERY = 5
NOT_PREPARED = "Made, but no answer is written yet."


def rows_of(config: DatasetConfig) -> list[Example]:
    """The rows of a dataset, to take questions from. Raises DatasetError."""
    rows = load_rows(config, say)
    return to_examples(rows.rows, map_columns(rows.columns, config))


def create(data_dir: Path, draft: Draft) -> Outcome:
    """Make the study that was drafted; its answers are still to be prepared. Raises StudyError, or RunError for a run without adapter."""
    config = draft.config
    run = Runs(data_dir).get(config.run)
    run.adapter_dir(config.step)
    study = draft.create(Studies(data_dir), run.model.name)
    study.set_status(state="interrupted", message=NOT_PREPARED)
    planned = study_plan(config.effect, config.raters_expected, config.native_arm)
    known = ", ".join(f"{number} {grade}" for grade, number in draft.grades.items())
    lines = [
        line(study, 0),
        f"{len(draft.wanted)} questions chosen: {known}; {len(draft.questions)} taken",
        f"each rater judges {draft.pairs} pairs, {draft.repeated} of them twice, in about {draft.minutes} minutes",
        planned["sentence"],
        f"write the answers: python -m deepdoctor study prepare {study.id}",
    ]
    value = {**summary(study, 0), "seen": draft.grades, "pairs": draft.pairs, "repeated": draft.repeated, "plan": planned}
    return Outcome(value, "\n".join(lines))


def list_studies(data_dir: Path) -> Outcome:
    """All studies, newest first."""
    judgments, studies = Judgments(data_dir), Studies(data_dir)
    found = [(study, verdicts(study, judgments)) for study in studies.list()]
    lines = [line(*each) for each in found] or [f"No studies yet in {data_dir}."]
    lines += [f"{study.id}: {lost}" for study, _ in found if (lost := damage_of(study))]
    return Outcome([summary(*each) for each in found], "\n".join([*lines, *damage(studies, judgments)]))


def prepare(data_dir: Path, study_id: str) -> Outcome:
    """Write the answers that a study lacks, and open it to raters; Ctrl-C keeps what is written. Raises DeepDoctorError."""
    study = Studies(data_dir).get(study_id)
    require_unopened(study)
    if study.is_claimed():
        raise ConfigError(f"The answers of {study.name} are being prepared already, by the app or another command.")
    say("Loading the model …")
    from deepdoctor.engine.session import Session

    ended = Event()
    thread = Thread(target=_tell, args=(study, ended), name="study-progress")
    with stopping("Stopping …") as should_stop:
        thread.start()
        try:
            Session(data_dir).prepare(study_id, should_stop)
        finally:
            ended.set()
            thread.join()
    return _stands(data_dir, study)


def _tell(study: Study, ended: Event) -> None:
    while not ended.wait(SAY_EVERY):
        status = study.status
        left = f", about {status['eta_seconds'] / 60:.0f} min left" if status["eta_seconds"] else ""
        say(f"{status['done']} of {status['total']} answers written{left}")


def set_open(data_dir: Path, study_id: str, to: bool) -> Outcome:
    """Let raters in, or nobody any more. Raises StudyError."""
    study = Studies(data_dir).get(study_id)
    if to:
        study.open()
    else:
        study.close()
    return _stands(data_dir, study)


def bundle(data_dir: Path, study_id: str, file: Path) -> Outcome:
    """Write a study's bundle, with all its exports. Raises StudyError."""
    study, judgments = Studies(data_dir).get(study_id), Judgments(data_dir)
    write_bundle(study, judgments.rows(study.id), losses_of(study, Runs(data_dir)), file, judgments.damaged)
    damaged = {"raters": study.damaged_raters, "lines": judgments.damaged}
    return Outcome({"study": study.id, "bundle": str(file), "damaged": damaged}, "\n".join(filter(None, [str(file), damage_of(study)])))


def report(file: Path) -> Outcome:
    """Compute a study bundle's numbers again and say whether they equal the stored ones: exit code 1 if not. Raises StudyError."""
    again = recompute(file)
    value = {"equal": not again.differences, "differences": again.differences, "stored_with": again.by, "results": again.found}
    if again.differences:
        more = len(again.differences) - MOST_SHOWN
        listed = [f"  {line}" for line in again.differences[:MOST_SHOWN]] + ([f"  … and {more} more"] if more > 0 else [])
        told = "\n".join(["The stored numbers are not those computed from the bundle's verdicts:", *listed])
    else:
        told = "The stored numbers equal those computed again from the bundle's verdicts."
    found = again.found
    text = "\n".join([*found["headline"], *found["cautions"], found["power"]["sentence"], told])
    return Outcome(value, text, code=1 if again.differences else 0)


def _stands(data_dir: Path, study: Study) -> Outcome:
    judged = verdicts(study, Judgments(data_dir))
    link = f"\nlink for raters, below the app's address: /judge/{study.id}" if study.state == "open" else ""
    return Outcome(summary(study, judged), f"{line(study, judged)}\n{study.status['message']}{link}")


def summary(study: Study, judged: int) -> dict[str, Any]:
    """A study in brief: id, name, what it compares, status, and how many joined and judged."""
    config = study.config
    names = {"id": study.id, "name": study.name, "path": str(study.path), "run": config.run, "step": config.step}
    status = {name: value for name, value in study.status.items() if name != "process"}
    lost = {"damaged_raters": study.damaged_raters}
    return {**names, **status, "questions": len(study.questions()), "raters": len(study.raters()), "verdicts": judged, **lost}


def line(study: Study, judged: int) -> str:
    """A study in one line."""
    value = summary(study, judged)
    made = time.strftime("%d %b %Y", time.localtime(study.details["created"]))
    said = f"raters {value['raters']}  verdicts {value['verdicts']}"
    return f"{study.id}  {value['state']:<11}  answers {value['done']}/{value['total']}  {said}  {made}  {study.name}"
