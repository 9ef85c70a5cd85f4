"""The runs tab: every run there was, one opened, several laid over each other, and what can be done with them."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from huggingface_hub import get_token

from deepdoctor.publish import NO_TOKEN
from deepdoctor.ui.components import QUIET, note
from deepdoctor.ui.context import Context
from deepdoctor.ui.push_events import PushEvents
from deepdoctor.ui.runs_events import RunsEvents

# names open, ticks compare; the focus stays where it was when the list is drawn anew
ON_CLICK = """
let held = null;
element.addEventListener('click', (event) => {
  const opened = event.target.closest('button[data-run]');
  if (opened) trigger('select', {open: opened.dataset.run});
});
element.addEventListener('change', () => {
  const chosen = [...element.querySelectorAll('input[data-run]:checked')].map((box) => box.dataset.run);
  trigger('select', {compare: chosen});
});
element.addEventListener('focusin', (event) => { held = [event.target.tagName, event.target.dataset.run]; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) held = null; });
document.addEventListener('pointerdown', (event) => { if (!element.contains(event.target)) held = null; });
watch('value', () => {
  if (!held) return;
  const again = [...element.querySelectorAll('[data-run]')].find((one) => one.tagName === held[0] && one.dataset.run === held[1]);
  if (again) again.focus({preventScroll: true});
});
"""

GGUF_HINT = "8 bit, for llama.cpp, Ollama and LM Studio. Needs Unsloth and a built llama.cpp on this machine; says so if they are missing"


# said beforehand: what is pushed leaves the machine
QUOTES = "The model card tells base model, rows, recipe and losses, and quotes up to three saved comparisons with their questions."


@dataclass(frozen=True)
class _Push:
    """The form that publishes the opened run."""

    repo: gr.Textbox
    private: gr.Checkbox
    merged: gr.Checkbox
    overwrite: gr.Checkbox
    button: gr.Button
    told: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """What `PushEvents.push` reads after the opened run, in its order."""
        return [self.repo, self.private, self.merged, self.overwrite]


@dataclass(frozen=True)
class _Parts:
    """The tab's components."""

    table: gr.HTML
    overlay: gr.HTML
    opened: gr.Column
    shown: gr.HTML
    settings: gr.HTML
    log: gr.HTML
    name: gr.Textbox
    rename: gr.Button
    resume: gr.Button
    delete: gr.Button
    question: gr.Column
    asked: gr.HTML
    really: gr.Button
    keep: gr.Button
    merged: gr.Checkbox
    gguf: gr.Checkbox
    export: gr.Button
    told: gr.HTML
    download: gr.DownloadButton
    push: _Push


def build(context: Context, dataset: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab and wire it. What a viewer has open and ticked is {"open": run id, "compare": [run ids]}."""
    del dataset  # the signature is every tab's
    events = RunsEvents(context)
    chosen = gr.State({"open": "", "compare": []})
    seen = gr.State(())
    parts = _layout()
    drawn = [parts.table, parts.overlay, parts.opened, parts.shown, parts.settings, parts.log, parts.resume, parts.delete, seen]
    gr.on([tab.select, gr.Timer(3).tick], events.refresh, [chosen, seen], drawn, concurrency_limit=None, **QUIET)
    told = [parts.name, parts.question, parts.told, parts.download, parts.push.repo, parts.push.told]
    picked = parts.table.select(events.pick, [chosen], [chosen, *told], **QUIET)
    picked.success(events.refresh, [chosen, seen], drawn, **QUIET)
    _wire_actions(events, parts, [chosen, seen], drawn)
    parts.push.button.click(PushEvents(context).push, [chosen, *parts.push.inputs], [parts.push.told], **QUIET)


def _layout() -> _Parts:
    with gr.Column(elem_classes="dd-card"):
        table = _html("", js_on_load=ON_CLICK, elem_id="dd-runs")
    overlay = _html("", elem_id="dd-overlay")
    with gr.Column(elem_classes="dd-card dd-run-open", visible=False) as opened:
        shown = _html("")
        with gr.Accordion("Settings", open=False):
            settings = _html("")
        with gr.Accordion("Log", open=False):
            log = _html("")
        with gr.Row(equal_height=True, elem_classes="dd-start"):
            name = gr.Textbox(label="Name", max_length=80, scale=3, min_width=180)
            rename = gr.Button("Rename", scale=1, min_width=100)
        merged = gr.Checkbox(value=True, label="Export the merged model too", info="Base and adapter as one; as large as the base model")
        gguf = gr.Checkbox(value=False, label="Export GGUF too", info=GGUF_HINT)
        with gr.Row(elem_classes="dd-run-buttons"):
            export = gr.Button("Export", size="sm", min_width=100)
            resume = gr.Button("Resume", size="sm", min_width=100)
            delete = gr.Button("Delete", variant="stop", size="sm", min_width=100)
        with gr.Column(visible=False) as question:
            asked = _html("")
            with gr.Row(elem_classes="dd-run-buttons"):
                really = gr.Button("Delete for good", variant="stop", size="sm", min_width=130)
                keep = gr.Button("Keep it", size="sm", min_width=130)
        told = _html("")
        download = gr.DownloadButton("Download the adapter (zip)", size="sm", visible=False)
        push = _push_form()
    actions = (name, rename, resume, delete, question, asked, really, keep, merged, gguf, export, told, download, push)
    return _Parts(table, overlay, opened, shown, settings, log, *actions)


def _push_form() -> _Push:
    with gr.Accordion("Push to the Hugging Face Hub", open=False, elem_id="dd-push"):
        if not get_token():
            _html(note(NO_TOKEN, "warn"))
        repo = gr.Textbox(label="Repository", info="Yours or your organisation's: owner/name", placeholder="owner/name", max_length=96)
        private = gr.Checkbox(value=True, label="Private", info="Only its owner can see it")
        merged = gr.Checkbox(value=True, label="Push the merged model too", info="Into a second repository, name-merged")
        overwrite = gr.Checkbox(value=False, label="Replace what is there", info="Files of other content in that repository are removed")
        _html(f'<p class="dd-muted">{QUOTES}</p>')
        button = gr.Button("Push", size="sm", min_width=100, elem_classes=["dd-own-width"])
        told = _html("")
    return _Push(repo, private, merged, overwrite, button, told)


def _wire_actions(events: RunsEvents, parts: _Parts, viewed: list[gr.State], drawn: list[Any]) -> None:
    chosen = viewed[0]
    renamed = parts.rename.click(events.rename, [chosen, parts.name], [parts.told], **QUIET)
    renamed.success(events.refresh, viewed, drawn, **QUIET)
    resumed = parts.resume.click(events.resume, [chosen], [parts.told], concurrency_limit=1, concurrency_id="start", **QUIET)
    resumed.success(events.refresh, viewed, drawn, **QUIET)
    parts.delete.click(events.ask_to_delete, [chosen], [parts.question, parts.asked], **QUIET)
    parts.keep.click(events.keep, None, [parts.question], **QUIET)
    deleted = parts.really.click(events.delete, [chosen], [chosen, parts.question], **QUIET)
    deleted.success(events.refresh, viewed, drawn, **QUIET)
    parts.export.click(events.export, [chosen, parts.merged, parts.gguf], [parts.told, parts.download], **QUIET)


def _html(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **{"js_on_load": None, **options})
