"""What happens on the studies tab: studies drafted, made, prepared, opened, closed and deleted; results drawn and exported."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from deepdoctor.config import DatasetConfig, SamplingConfig, StudyConfig
from deepdoctor.errors import AccessError, ConfigError, DeepDoctorError, EngineError, StudyError
from deepdoctor.runs import Run
from deepdoctor.studies.bundle import study_results, unpacked, write_bundle
from deepdoctor.studies.draft import SOURCES, Choice, Draft, draft, questions_of
from deepdoctor.studies.headline import study_plan
from deepdoctor.studies.progress import damage, damage_of, losses_of, progress
from deepdoctor.studies.questions import BankQuestion
from deepdoctor.studies.study import Study
from deepdoctor.ui import study_view
from deepdoctor.ui.choices import FINAL, run_updates, step_choices
from deepdoctor.ui.components import note, user_errors
from deepdoctor.ui.context import Context, name_of
from deepdoctor.ui.form import Form, problems_of
from deepdoctor.ui.loaded import Loaded, Recent

MOST_LISTED = 100
# what a draft is made from, before the settings of both forms
DRAFTED = ("dataset", "run", "step", "sources", "file", "specialties", "kinds", "difficulties", "most", "ids")
MOST_PICKED = 1000
SEE = "see studies"
RATERS_MAY = "Raters need no access here: the link that they were sent is enough."
NOTHING_SEEN: tuple[Any, ...] = ()
NO_PROBLEMS: dict[str, dict[str, str]] = {"study": {}, "sampling": {}}
Profile = gr.OAuthProfile | None
OPENED = 8 + len(study_view.PARTS)
NO_RESULTS = (gr.update(visible=False), *[""] * len(study_view.PARTS))


class StudiesEvents:
    """Handlers of the studies tab. `chosen` is the id of the study that a viewer has open, or ""."""

    def __init__(self, context: Context, loaded: Loaded, form: Form, sampling: Form) -> None:
        self.context, self.loaded, self.form, self.sampling = context, loaded, form, sampling
        self._results = Recent(8)

    # What is drawn

    def refresh(self, profile: Profile, chosen: str, seen: tuple[Any, ...]) -> Any:
        """Outputs: what is told above, all that is shown; run, checkpoint; list; then those of `_opened_updates`; seen.

        What this viewer has seen is not sent again.
        """
        try:
            self.context.access.require(name_of(profile), SEE)
        except AccessError as error:
            return [note(f"{error} {RATERS_MAY}"), gr.update(visible=False), *[gr.skip()] * (3 + OPENED), seen]
        found = [(study, progress(study, self.context.judgments)) for study in self.context.studies.list()[:MOST_LISTED]]
        runs = self.runs()
        prints = {study.id: study_view.fingerprint(study, raters) for study, raters in found}
        above = self._above()
        now = ([(run.id, run.name, step_choices(run)) for run in runs], (chosen, prints), (chosen, prints.get(chosen)), above)
        before = seen or (None, None, None, None)
        if now == before:
            return gr.skip()
        opened = next((each for each in found if each[0].id == chosen), None)
        return [
            above,
            gr.update(visible=True),
            *(run_updates(runs) if now[0] != before[0] else [gr.skip()] * 2),
            study_view.studies_table(found, chosen) if now[1] != before[1] else gr.skip(),
            *(self._opened_updates(opened) if now[2] != before[2] else [gr.skip()] * OPENED),
            now,
        ]

    def _above(self) -> str:
        """What is damaged, and how far the copy on the Hub is, as HTML."""
        damaged = "".join(note(each, "warn") for each in damage(self.context.studies, self.context.judgments))
        copy = self.context.copy
        return damaged + (note(copy.told, "bad" if copy.failing else "") if copy else "")

    def runs(self) -> list[Run]:
        """The runs that have an adapter for the base model in use, newest first."""
        model = self.context.engine.model.name
        return [run for run in self.context.runs.list() if run.model.name == model and step_choices(run)]

    def _opened_updates(self, opened: study_view.Listed | None) -> list[Any]:
        """The opened part, its standing; prepare, stop, open, close, delete; the results' part, and its PARTS."""
        if opened is None:
            return [gr.update(visible=False), "", *[gr.skip()] * 5, *NO_RESULTS]
        try:
            return self._whole_updates(opened)
        except (DeepDoctorError, KeyError, TypeError, ValueError) as error:
            # one that is damaged keeps nobody from the others
            told = note(f"The study {opened[0].name} cannot be shown: {str(error).rstrip('.')}. Put its files back, or delete it.", "bad")
            return [gr.update(visible=True), told, *(gr.update(visible=each) for each in (False, False, False, False, True)), *NO_RESULTS]

    def _whole_updates(self, opened: study_view.Listed) -> list[Any]:
        study, raters = opened
        state, ready = study.state, study.state in ("open", "closed")
        buttons = (state in ("interrupted", "failed"), state == "preparing", state == "closed", state == "open", state != "preparing")
        parts = self._parts(study) if ready else dict.fromkeys(study_view.PARTS, "")
        return [
            gr.update(visible=True),
            study_view.standing(study, raters, self.context.access.place == "local"),
            *(gr.update(visible=each) for each in buttons),
            gr.update(visible=ready),
            *(parts[name] for name in study_view.PARTS),
        ]

    def _parts(self, study: Study) -> dict[str, str]:
        """The results of a study as HTML by part, computed again only when somebody has judged."""
        rows = self.context.judgments.rows(study.id)

        def make() -> dict[str, str]:
            found, _judged = study_results(study, rows, losses_of(study, self.context.runs))
            return study_view.result_parts(found, study)

        return self._results.get((study.id, study.state, len(rows), len(study.raters())), make)

    # A draft

    @user_errors
    def steps_of(self, profile: Profile, run: str | None) -> Any:
        """The checkpoints of a run that was just chosen."""
        self.context.access.require(name_of(profile), SEE)
        steps = step_choices(self.context.runs.get(run)) if run else []
        return gr.update(choices=steps, value=steps[0][1] if steps else None)

    def review(self, profile: Profile, before: dict[str, dict[str, str]], *given: Any) -> list[Any]:
        """Outputs: plan, specialties, single questions, problems, then the inputs of both forms with what is wrong told at each."""
        try:
            self.context.access.require(name_of(profile), "make a study")
        except AccessError as error:
            return [note(str(error)), *[gr.skip()] * (3 + len(self.form.inputs) + len(self.sampling.inputs))]
        asked, problems = _asked(given), self._problems(given)
        choices: Any = gr.skip()
        picks: Any = gr.skip()
        try:
            if any(problems.values()):
                words = note(_count(problems), "bad")
            else:
                questions = self._questions(asked)
                known = sorted({question.specialty for question in questions if question.specialty})
                asked["specialties"] = [each for each in asked["specialties"] or () if each in known]
                choices = gr.update(choices=known, value=asked["specialties"])
                filters = replace(_choice(asked), ids=())
                left = {question.id: study_view.short(question) for question in questions if filters.takes(question)}
                asked["ids"] = [each for each in asked["ids"] or () if each in left]
                picks = gr.update(choices=[(label, each) for each, label in left.items()][:MOST_PICKED], value=asked["ids"])
                made = self._draft(asked, given, questions)
                words = study_view.plan(made, study_plan(made.config.effect, made.config.raters_expected, made.config.native_arm))
        except DeepDoctorError as error:
            words = note(str(error), "warn")
        return [words, choices, picks, problems, *self._tell(problems, before)]

    def _problems(self, given: Sequence[Any]) -> dict[str, dict[str, str]]:
        study, sampling = self._values(given)
        return {
            "study": problems_of(StudyConfig, self.form.given(study, {"run": "chosen apart"})),
            "sampling": problems_of(SamplingConfig, self.sampling.given(sampling)),
        }

    def _values(self, given: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """What stands in the inputs of each form."""
        start, end = len(DRAFTED), len(DRAFTED) + len(self.form.inputs)
        return given[start:end], given[end:]

    def _tell(self, problems: Mapping[str, Mapping[str, str]], before: Mapping[str, Mapping[str, str]]) -> list[Any]:
        study = self.form.tell(problems["study"], before["study"])
        return [*study, *self.sampling.tell(problems["sampling"], before["sampling"])]

    def _questions(self, asked: Mapping[str, Any]) -> list[BankQuestion]:
        sources = [source for source in SOURCES if source in (asked["sources"] or ())]
        rows = self.loaded.table(DatasetConfig.of(asked["dataset"])).examples if "rows" in sources else []
        return questions_of(sources, Path(asked["file"]) if asked["file"] else None, rows)

    def _draft(self, asked: Mapping[str, Any], given: Sequence[Any], questions: list[BankQuestion]) -> Draft:
        """What the study would be. Raises DeepDoctorError."""
        if not asked["run"]:
            raise ConfigError("Choose the run whose adapter is the tuned side. There is none yet? Train one on the Train tab.")
        run, step = self.context.runs.get(asked["run"]), None if asked["step"] in (None, FINAL) else int(asked["step"])
        run.adapter_dir(step)
        study, sampling = self._values(given)
        config = self.form.read(study, {"run": run.id, "step": step, "sampling": self.sampling.read(sampling)})
        assert isinstance(config, StudyConfig)
        return draft(config, questions, _choice(asked), run.training_questions())

    @user_errors
    def create(self, profile: Profile, *given: Any) -> list[Any]:
        """Make the study and have it prepared. Outputs: notice, chosen, form, then the inputs of both forms."""
        self.context.access.require(name_of(profile), "make a study")
        if any((problems := self._problems(given)).values()):
            told = note(f"Not made. {_count(problems)}", "bad")
            return [told, gr.skip(), gr.skip(), *self._tell(problems, NO_PROBLEMS)]
        asked = _asked(given)
        made = self._draft(asked, given, self._questions(asked))
        study = made.create(self.context.studies, self.context.runs.get(made.config.run).model.name)
        self._prepare(study)
        told = note(f"Made {study.name}; it is opened above.", "ok")
        return [told, study.id, gr.update(open=False), *[gr.skip()] * (len(self.form.inputs) + len(self.sampling.inputs))]

    def _prepare(self, study: Study) -> None:
        with suppress(EngineError):  # told where the study stands
            self.context.engine.prepare(study.id)

    # An opened study

    @user_errors
    def pick(self, profile: Profile, event: gr.EventData) -> list[Any]:
        """A study was opened in the list. Outputs: chosen, question, what is told of it and of its exports, exports."""
        self.context.access.require(name_of(profile), SEE)
        study = self.context.studies.get(str((event._data or {}).get("open", "")))
        return [study.id, gr.update(visible=False), "", study_view.EXPORTED, gr.update(value=None, visible=False)]

    def _opened(self, profile: Profile, chosen: str, action: str) -> Study:
        """The opened study, for who may do that to it."""
        self.context.access.require(name_of(profile), action)
        if not chosen:
            raise StudyError("Open a study first.")
        return self.context.studies.get(chosen)

    @user_errors
    def prepare(self, profile: Profile, chosen: str) -> str:
        """Have the engine write what is missing. Output: what is told."""
        study = self._opened(profile, chosen, "prepare a study")
        if study.state not in ("interrupted", "failed"):
            raise StudyError(f"The study {study.name} is {study.state}; there is nothing to prepare.")
        self._prepare(study)
        return ""

    @user_errors
    def stop(self, profile: Profile, chosen: str) -> str:
        """Stop preparing. Output: what is told."""
        study = self._opened(profile, chosen, "stop preparing a study")
        self.context.engine.stop_preparing(study.id)
        return note(f"Stopping {study.name}; what is written stays.")

    @user_errors
    def let_in(self, profile: Profile, chosen: str) -> str:
        """Open a closed study again. Output: what is told."""
        self._opened(profile, chosen, "open a study").open()
        return ""

    @user_errors
    def close(self, profile: Profile, chosen: str) -> str:
        """Let nobody judge any more. Output: what is told."""
        self._opened(profile, chosen, "close a study").close()
        return ""

    @user_errors
    def ask_to_delete(self, profile: Profile, chosen: str) -> list[Any]:
        """Ask before anything is removed. Outputs: question, its words."""
        study = self._opened(profile, chosen, "delete a study")
        return [gr.update(visible=True), note(study_view.asked_to_delete(study, self.context.copy), "bad")]

    @user_errors
    def delete(self, profile: Profile, chosen: str) -> list[Any]:
        """Remove the opened study. Outputs: chosen, question."""
        study = self._opened(profile, chosen, "delete a study")
        self.context.studies.delete(study.id)
        if self.context.copy:
            self.context.copy.soon()
        return ["", gr.update(visible=False)]

    @user_errors
    def export(self, profile: Profile, chosen: str) -> Iterator[list[Any]]:
        """Write the bundle and, from it, every export as a file of its own. Outputs: what is told, the files."""
        study = self._opened(profile, chosen, "export a study")
        yield [note("Writing the exports …"), gr.update(visible=False)]
        folder, judgments = Path(tempfile.mkdtemp(prefix="deepdoctor-")), self.context.judgments
        bundle = folder / f"study-{study.id}.zip"
        write_bundle(study, judgments.rows(study.id), losses_of(study, self.context.runs), bundle, judgments.damaged)
        files, counts = unpacked(bundle, folder)
        lost = damage_of(study)
        told = note(study_view.counted(counts), "ok") + (note(lost, "warn") if lost else "")
        yield [told, gr.update(value=[str(bundle), *files], visible=True)]


def put_away() -> Any:
    """Take the question away."""
    return gr.update(visible=False)


def _asked(given: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(DRAFTED, given, strict=False))


def _choice(asked: Mapping[str, Any]) -> Choice:
    specialties, kinds, difficulties, ids = (tuple(asked[name] or ()) for name in ("specialties", "kinds", "difficulties", "ids"))
    return Choice(specialties, kinds, difficulties, asked["most"] or None, ids)


def _count(problems: Mapping[str, Mapping[str, str]]) -> str:
    told = [told for part in problems.values() for told in part.values()]
    return told[0] if len(told) == 1 else f"{len(told)} settings need attention."
