"""The studies tab: blinded studies made, prepared, given to raters, and their results read and exported."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from deepdoctor.config import SamplingConfig, StudyConfig
from deepdoctor.prompts import STYLES
from deepdoctor.studies.draft import SOURCES
from deepdoctor.studies.questions import DIFFICULTIES, KINDS
from deepdoctor.ui import study_view
from deepdoctor.ui.components import QUIET
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import Form, build_form
from deepdoctor.ui.loaded import Loaded
from deepdoctor.ui.studies_events import NO_PROBLEMS, NOTHING_SEEN, StudiesEvents, put_away

LATEST: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
SUFFIXES = [".toml", ".json", ".jsonl", ".csv", ".parquet"]
# names open; the focus stays where it was when the list is drawn anew
ON_CLICK = """
let held = null;
element.addEventListener('click', (event) => {
  const opened = event.target.closest('button[data-study]');
  if (opened) trigger('select', {open: opened.dataset.study});
});
element.addEventListener('focusin', (event) => { held = event.target.dataset.study; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) held = null; });
document.addEventListener('pointerdown', (event) => { if (!element.contains(event.target)) held = null; });
watch('value', () => {
  const again = held && [...element.querySelectorAll('[data-study]')].find((one) => one.dataset.study === held);
  if (again) again.focus({preventScroll: true});
});
"""
# a frame may refuse the clipboard: then the link is selected, to be copied by hand
COPY = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button[data-copy]');
  if (!button) return;
  const link = button.parentElement.querySelector('a');
  try {
    await navigator.clipboard.writeText(link.href);
    button.textContent = 'Copied';
  } catch {
    getSelection().selectAllChildren(link);
  }
});
"""


@dataclass(frozen=True)
class _Opened:
    """The opened study: its standing, buttons, the question before deleting, and what is told."""

    part: gr.Column
    standing: gr.HTML
    prepare: gr.Button
    stop: gr.Button
    open: gr.Button
    close: gr.Button
    delete: gr.Button
    question: gr.Column
    asked: gr.HTML
    really: gr.Button
    keep: gr.Button
    told: gr.HTML


@dataclass(frozen=True)
class _Results:
    """The opened study's results. `parts` are in the order of study_view.PARTS."""

    part: gr.Column
    parts: list[gr.HTML]
    export: gr.Button
    told: gr.HTML
    files: gr.File


@dataclass(frozen=True)
class _Draft:
    """The form of a new study. `asked` are in the order of studies_events.DRAFTED, the dataset left out."""

    fold: gr.Accordion
    asked: list[Any]
    form: Form
    sampling: Form
    plan: gr.HTML
    create: gr.Button
    notice: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """The inputs of both forms."""
        return [*self.form.inputs, *self.sampling.inputs]


def build(context: Context, dataset: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab and wire it. Nothing of any study is in the page before a visitor who may see it asks."""
    above = _html("")
    with gr.Column(visible=False) as body:
        with gr.Column(elem_classes="dd-card"):
            table = _html("", js_on_load=ON_CLICK, elem_id="dd-studies")
        opened, results = _opened(), _results()
        new = _draft(context)
    events = StudiesEvents(context, Loaded(), new.form, new.sampling)
    chosen, seen = gr.State(""), gr.State(NOTHING_SEEN)
    run, step = new.asked[:2]
    buttons = [opened.prepare, opened.stop, opened.open, opened.close, opened.delete]
    drawn = [above, body, run, step, table, opened.part, opened.standing, *buttons, results.part, *results.parts, seen]
    gr.on([tab.select, gr.Timer(2).tick], events.refresh, [chosen, seen], drawn, concurrency_limit=None, **QUIET)
    picked = table.select(events.pick, None, [chosen, opened.question, opened.told, results.told, results.files], **QUIET)
    picked.success(events.refresh, [chosen, seen], drawn, **QUIET)
    _wire_draft(events, new, dataset, tab, chosen)
    _wire_opened(events, opened, results, chosen)


def _opened() -> _Opened:
    with gr.Column(elem_classes="dd-card dd-run-open", visible=False, elem_id="dd-study") as part:
        standing = _html("", js_on_load=COPY, elem_id="dd-standing")
        with gr.Row(elem_classes="dd-run-buttons"):
            prepare = gr.Button("Prepare the answers", variant="primary", size="sm", min_width=150)
            stop = gr.Button("Stop preparing", size="sm", min_width=130)
            reopen = gr.Button("Open again", size="sm", min_width=110)
            close = gr.Button("Close to raters", size="sm", min_width=130)
            delete = gr.Button("Delete", variant="stop", size="sm", min_width=90)
        with gr.Column(visible=False) as question:
            asked = _html("")
            with gr.Row(elem_classes="dd-run-buttons"):
                really = gr.Button("Delete for good", variant="stop", size="sm", min_width=130)
                keep = gr.Button("Keep it", size="sm", min_width=130)
        told = _html("")
    return _Opened(part, standing, prepare, stop, reopen, close, delete, question, asked, really, keep, told)


def _results() -> _Results:
    with gr.Column(visible=False, elem_id="dd-results") as part:
        with gr.Column(elem_classes="dd-card"):
            _heading("What raters found")
            findings = _html("")
            with gr.Accordion("Tables", open=False):
                tables = _html("")
            with gr.Accordion("Question by question", open=False):
                pairs = _html("")
        with gr.Column(elem_classes="dd-card dd-apart"):
            measured = _html("")
        with gr.Column(elem_classes="dd-card"):
            with gr.Row(elem_classes="dd-run-buttons"):
                export = gr.Button("Export", size="sm", min_width=100)
            told = _html(study_view.EXPORTED)
            files = gr.File(label="Exports", file_count="multiple", interactive=False, visible=False, elem_id="dd-exports")
            with gr.Accordion("Protocol", open=False):
                protocol = _html("")
    return _Results(part, [findings, tables, measured, pairs, protocol], export, told, files)


def _draft(context: Context) -> _Draft:
    usual = StudyConfig(run="chosen apart")
    # without Hugging Face's login nobody could judge such a study
    without = ("run", "step", "sampling", *(() if context.access.can_log_in else ("login_required",)))
    labels = {"prompt_style": {name: style.label for name, style in STYLES.items()}}
    with gr.Accordion("New study", open=True, elem_id="dd-new-study") as fold, gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            with gr.Column(elem_classes="dd-card"):
                _heading("What is judged")
                with gr.Row(elem_classes="dd-fields"):
                    run = gr.Dropdown([], label="Run on the tuned side", filterable=False, min_width=200)
                    step = gr.Dropdown([], label="Checkpoint", filterable=False, min_width=140)
                form = build_form(usual, without, labels)
                with gr.Accordion("Sampling", open=False):
                    sampling = build_form(SamplingConfig())
            asked = _questions()
        with gr.Column(scale=5, min_width=320), gr.Column(elem_classes="dd-card dd-launch"):
            _heading("Before it starts")
            plan = _html("", elem_id="dd-study-plan")
            create = gr.Button("Make and prepare", variant="primary", min_width=160, elem_classes="dd-own-width")
            notice = _html("", elem_id="dd-study-notice")
    return _Draft(fold, [run, step, *asked], form, sampling, plan, create, notice)


def _questions() -> list[Any]:
    with gr.Column(elem_classes="dd-card"):
        _heading("Questions")
        choices = [(label, name) for name, label in SOURCES.items()]
        sources = gr.Dropdown(choices, value=["bundled"], multiselect=True, label="Taken from", elem_id="dd-sources")
        file = gr.File(
            label="TOML, JSON, JSONL, CSV or Parquet", file_types=SUFFIXES, type="filepath", height=120, visible=False, elem_id="dd-bank"
        )
        with gr.Row(elem_classes="dd-fields"):
            specialties = gr.Dropdown([], value=[], multiselect=True, label="Specialties (none chosen: all)", min_width=200)
            kinds = gr.Dropdown(list(KINDS), value=[], multiselect=True, label="Kinds", min_width=140)
            difficulties = gr.Dropdown(
                [each for each in DIFFICULTIES if each], value=[], multiselect=True, label="Difficulty", min_width=140
            )
            most = gr.Number(0, label="At most (0: all)", precision=0, min_width=120)
        ids = gr.Dropdown(
            [], value=[], multiselect=True, label="Single questions (none chosen: all that pass; type to search)", elem_id="dd-picked"
        )
    sources.change(_file_part, [sources], [file], **QUIET)
    return [sources, file, specialties, kinds, difficulties, most, ids]


def _file_part(sources: list[str]) -> Any:
    return gr.update(visible="file" in sources)


def _wire_draft(events: StudiesEvents, new: _Draft, dataset: gr.State, tab: gr.Tab, chosen: gr.State) -> None:
    problems = gr.State(NO_PROBLEMS)
    given = [dataset, *new.asked, *new.inputs]
    specialties, ids = new.asked[4], new.asked[8]
    # of these two only what the visitor does: the review itself sets them, and would be asked for again and again
    changed = [dataset.change, *((made.input if made in (specialties, ids) else made.change) for made in (*new.asked, *new.inputs))]
    gr.on([tab.select, *changed], events.review, [problems, *given], [new.plan, specialties, ids, problems, *new.inputs], **LATEST)
    new.asked[0].input(events.steps_of, [new.asked[0]], [new.asked[1]], **QUIET)
    # one at a time, so that a double click makes one study
    outputs = [new.notice, chosen, new.fold, *new.inputs]
    new.create.click(events.create, given, outputs, concurrency_limit=1, concurrency_id="create-study", **QUIET)


def _wire_opened(events: StudiesEvents, opened: _Opened, results: _Results, chosen: gr.State) -> None:
    told = [opened.told]
    opened.prepare.click(events.prepare, [chosen], told, concurrency_limit=1, concurrency_id="start", **QUIET)
    opened.stop.click(events.stop, [chosen], told, **QUIET)
    opened.open.click(events.let_in, [chosen], told, **QUIET)
    opened.close.click(events.close, [chosen], told, **QUIET)
    opened.delete.click(events.ask_to_delete, [chosen], [opened.question, opened.asked], **QUIET)
    opened.keep.click(put_away, None, [opened.question], **QUIET)
    opened.really.click(events.delete, [chosen], [chosen, opened.question], **QUIET)
    results.export.click(events.export, [chosen], [results.told, results.files], **QUIET)


def _heading(text: str) -> gr.HTML:
    return _html(f'<h2 class="dd-title">{text}</h2>')


def _html(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **{"js_on_load": None, **options})
