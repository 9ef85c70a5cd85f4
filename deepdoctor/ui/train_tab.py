"""The train tab: choose a recipe, see what it will take, start, and watch the model learn."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from deepdoctor.config import EMBEDDED_MODEL, PRESETS
from deepdoctor.ui.components import QUIET
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import Form, build_form
from deepdoctor.ui.labels import LABELS, label_of_choice
from deepdoctor.ui.loaded import Loaded
from deepdoctor.ui.plots import SMOOTHING
from deepdoctor.ui.train_events import NOTHING_SEEN, PRESET_WORDS, TrainEvents

LATEST: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
LIVE: dict[str, Any] = {**QUIET, "concurrency_limit": None}
DOWNLOAD = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'finetune.json';
  link.click();
  URL.revokeObjectURL(link.href);
}"""


@dataclass(frozen=True)
class _Recipe:
    """Preset, form, and the buttons around them."""

    preset: gr.Radio
    described: gr.HTML
    form: Form
    save: gr.Button
    load: gr.UploadButton
    text: gr.Textbox


@dataclass(frozen=True)
class _Launch:
    """Plan and buttons."""

    plan: gr.HTML
    name: gr.Textbox
    start: gr.Button
    notice: gr.HTML


@dataclass(frozen=True)
class _Live:
    """The live view of one run."""

    progress: gr.HTML
    stop: gr.Button
    resume: gr.Button
    smoothing: gr.Radio
    curves: gr.HTML
    probe: gr.Slider
    probes: gr.HTML
    log: gr.HTML


def build(context: Context, dataset: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab and wire it. `dataset` holds the DatasetConfig in use as a dict."""
    with gr.Row(equal_height=False, elem_classes="dd-train"):
        with gr.Column(scale=5, min_width=320):
            recipe = _recipe("quick" if context.engine.model.name == EMBEDDED_MODEL else "article")
        with gr.Column(scale=8, min_width=320):
            launch = _launch()
            progress, stop, resume, smoothing, curves, log = _live()
    with gr.Column(elem_classes="dd-card dd-watch"):
        _heading(
            "Watch it learn", "The same question, answered as training goes on: before it on the left, at the chosen step on the right."
        )
        probe = gr.Slider(0, 2, value=0, step=1, label="Answer on the right is from step", visible=False, elem_id="dd-probe-at", buttons=[])
        probes = _html("")
    live = _Live(progress, stop, resume, smoothing, curves, probe, probes, log)
    events = TrainEvents(context, Loaded(), recipe.form)
    problems = gr.State({})
    _wire_recipe(events, recipe, launch, problems)
    _wire_launch(events, recipe, launch, dataset, problems)
    _wire_live(events, launch, live, tab)


def _heading(title: str, text: str = "") -> None:
    _html(f'<h3 class="dd-heading3">{title}</h3>' + (f'<p class="dd-muted">{text}</p>' if text else ""))


def _recipe(initial: str) -> _Recipe:
    with gr.Column(elem_classes="dd-card dd-recipe"):
        _heading("Recipe")
        choices = [(label_of_choice("preset", name), name) for name in PRESETS]
        chosen = gr.Radio(choices, value=initial, label="Preset", show_label=False, container=False, elem_classes="dd-presets")
        described = _html(f'<p class="dd-muted">{PRESET_WORDS[initial]}</p>')
        form = build_form(PRESETS[initial], without=("preset",), labels=LABELS)
        with gr.Row():
            save = gr.Button("Save to a file", size="sm", min_width=100)
            load = gr.UploadButton("Load from a file", size="sm", min_width=100, file_types=[".json"])
        text = gr.Textbox(visible=False)
    return _Recipe(chosen, described, form, save, load, text)


def _launch() -> _Launch:
    with gr.Column(elem_classes="dd-card dd-launch"):
        _heading("Before you start")
        plan = _html("")
        with gr.Row(equal_height=True, elem_classes="dd-start"):
            name = gr.Textbox(
                label="Name of the run", placeholder="Named by preset and time if left empty", max_length=80, scale=3, min_width=180
            )
            start = gr.Button("Start training", variant="primary", scale=1, min_width=130)
        notice = _html("", elem_id="dd-train-notice")
    return _Launch(plan, name, start, notice)


def _live() -> tuple[gr.HTML, gr.Button, gr.Button, gr.Radio, gr.HTML, gr.HTML]:
    with gr.Column(elem_classes="dd-card dd-live"):
        progress = _html("", elem_id="dd-progress")
        with gr.Row(elem_classes="dd-run-buttons"):
            stop = gr.Button("Stop and save", variant="stop", size="sm", visible=False, min_width=130)
            resume = gr.Button("Resume", size="sm", visible=False, min_width=130)
        choices = [(f"{name.capitalize()} smoothing" if name != "none" else "No smoothing", name) for name in SMOOTHING]
        smoothing = gr.Radio(choices, value="none", label="Smoothing", show_label=False, container=False, elem_classes="dd-smoothing")
        curves = _html("")
        with gr.Accordion("Log", open=False, elem_classes="dd-run-log"):
            log = _html("")
    return progress, stop, resume, smoothing, curves, log


def _wire_recipe(events: TrainEvents, recipe: _Recipe, launch: _Launch, problems: gr.State) -> None:
    inputs = recipe.form.inputs
    recipe.preset.input(events.use_preset, [recipe.preset], [launch.notice, recipe.described, problems, *inputs], **QUIET)
    saved = recipe.save.click(events.config_text, [recipe.preset, *inputs], [recipe.text], **QUIET)
    saved.success(None, [recipe.text], None, js=DOWNLOAD, **QUIET)
    outputs = [launch.notice, recipe.preset, recipe.described, problems, *inputs]
    recipe.load.upload(events.load_config, [recipe.load], outputs, **QUIET)


def _wire_launch(events: TrainEvents, recipe: _Recipe, launch: _Launch, dataset: gr.State, problems: gr.State) -> None:
    inputs = recipe.form.inputs
    known = gr.State("")
    gr.Timer(2).tick(events.model_known, [known], [known], **LIVE)
    changes = [dataset.change, known.change, *(made.change for made in inputs)]
    reviewed = [launch.notice, launch.plan, problems, *inputs]
    gr.on(changes, events.review, [dataset, recipe.preset, problems, *inputs], reviewed, **LATEST)
    _page().load(events.review, [dataset, recipe.preset, problems, *inputs], reviewed, **QUIET)
    given = [dataset, recipe.preset, launch.name, *inputs]
    # one start at a time, so that two visitors cannot both find the engine free
    launch.start.click(events.start, given, [launch.notice, launch.name, *inputs], concurrency_limit=1, concurrency_id="start", **QUIET)


def _wire_live(events: TrainEvents, launch: _Launch, live: _Live, tab: gr.Tab) -> None:
    seen = gr.State(NOTHING_SEEN)
    outputs = [live.progress, live.stop, live.resume, live.curves, live.probe, live.probes, live.log, launch.notice, seen]
    given = [seen, live.smoothing, live.probe]
    gr.on([gr.Timer(2).tick, tab.select], events.tick, given, outputs, **LIVE)
    live.smoothing.change(events.draw, given, outputs, **LIVE)
    _page().load(events.draw, given, outputs, **LIVE)
    live.probe.change(events.step_through, [seen, live.probe], [live.probes], **LATEST)
    live.stop.click(events.stop, None, [launch.notice], **QUIET)
    live.resume.click(events.resume, [seen], [launch.notice], concurrency_limit=1, concurrency_id="start", **QUIET)


def _page() -> gr.Blocks:
    page = gr.context.Context.root_block
    assert page is not None, "a tab is built inside a page"
    return page


def _html(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **{"js_on_load": None, **options})
