"""The compare tab: ask a question, see base and tuned answer side by side, and what changed, with the proof that base was base."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from deepdoctor.config import EMBEDDED_MODEL, SamplingConfig
from deepdoctor.dataset import HeldOutCase, held_out_examples
from deepdoctor.engine.protocol import ALSO_AT_MOST
from deepdoctor.estimates import QUICK_SECONDS
from deepdoctor.plan import roughly
from deepdoctor.prompts import ARTICLE, STYLES
from deepdoctor.ui import history, transcript
from deepdoctor.ui.compare_events import SHOW_REFERENCE, Handlers, toggle_reference
from deepdoctor.ui.components import QUIET, empty_state
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import Form, build_form
from deepdoctor.ui.hub_adapter_events import HubAdapterEvents

REFRESH_SECONDS = 3
NO_RUN_TITLE = "There is no fine-tuned run to compare yet"
NO_RUN = "Open the Train tab, choose a recipe and press Start{quick}. When it ends, come back here and ask both sides the same question."
QUICK = f": Quick takes about {roughly(QUICK_SECONDS)} on two free cores"
ALSO = f"Also show, beside the pair (at most {ALSO_AT_MOST})"
FREE: dict[str, Any] = {**QUIET, "concurrency_limit": None}


@dataclass(frozen=True)
class Ask:
    """The inputs of a question."""

    empty: gr.Column
    form: gr.Column
    question: gr.Textbox
    case: gr.Dropdown
    run: gr.Dropdown
    step: gr.Dropdown
    also: gr.Dropdown
    style: gr.Dropdown
    sampling: Form
    compare: gr.Button
    stop: gr.Button
    busy: gr.HTML
    needs: gr.HTML
    load: gr.Button
    loading: gr.HTML
    to_train: gr.Button
    hub: "FromHub"

    @property
    def inputs(self) -> list[Any]:
        """What `answers` reads, in its order."""
        return [self.question, self.run, self.step, self.also, self.style, *self.sampling.inputs]

    @property
    def refreshed(self) -> list[Any]:
        """What `refresh` writes, after the fingerprint, in its order."""
        return [self.empty, self.form, self.run, self.step, self.also, self.style, self.busy, self.needs, self.load]


@dataclass(frozen=True)
class FromHub:
    """The form that fetches an adapter of the Hub, and removes the one that is chosen as the tuned side."""

    repo: gr.Textbox
    revision: gr.Textbox
    fetch: gr.Button
    remove: gr.Button
    told: gr.HTML


@dataclass(frozen=True)
class Shown:
    """Where a comparison is shown. `comparison` holds the finished one, `number` the one that is being made."""

    pair: gr.HTML
    after: gr.Column
    findings: gr.HTML
    link: gr.HTML
    download: gr.DownloadButton
    reference_button: gr.Button
    reference: gr.HTML
    history: gr.HTML
    comparison: gr.State
    number: gr.State

    @property
    def finished(self) -> list[Any]:
        """What `finished_values` fills, in its order."""
        return [self.pair, self.after, self.findings, self.link, self.download, self.reference_button, self.reference, self.comparison]


def build(context: Context, dataset: gr.State, tab: gr.Tab) -> tuple[Callable[..., Any], list[Any]]:  # noqa: ARG001 - all tabs are built alike
    """Make the tab inside the current `gr.Tab`. Returns the loader that opens `/?comparison=ID`, and its outputs."""
    cases = held_out_examples()
    ask = _build_ask(cases, QUICK if context.settings.model == EMBEDDED_MODEL else "")
    shown = _build_shown()
    fingerprint = gr.State(None)
    handlers = Handlers(context, ask.sampling, {case.example.question: case.example.response for case in cases})
    _wire_asking(handlers, ask, shown)
    _wire_reading(handlers, shown)
    ask.case.input(lambda question: question or gr.skip(), [ask.case], [ask.question], **FREE)
    ask.run.input(handlers.steps_of, [ask.run], [ask.step, ask.also, ask.style, ask.needs, ask.load, ask.loading], **FREE)
    ask.step.input(handlers.also_of, [ask.run, ask.step, ask.also], [ask.also], **FREE)
    ask.to_train.click(lambda: gr.Tabs(selected="train"), None, tab.parent, **FREE)
    chosen, refreshed = [ask.run, ask.step, ask.also, shown.number], [fingerprint, *ask.refreshed]
    tab.select(handlers.refresh, chosen, refreshed, **FREE)
    hub = HubAdapterEvents(handlers)
    fetched = ask.hub.fetch.click(hub.fetch, [ask.hub.repo, ask.hub.revision], [ask.hub.told, ask.run], **QUIET)
    removed = ask.hub.remove.click(hub.remove, [ask.run], [ask.hub.told, ask.run], **QUIET)
    for changed in (fetched, removed):
        changed.then(handlers.refresh, chosen, refreshed, **FREE)
    ask.load.click(handlers.load_needed, [ask.run], [ask.loading], **FREE)
    # never in the page itself, which is the same for everyone
    gr.on([tab.select, _page().load], handlers.saved, None, [shown.history], **FREE)
    gr.Timer(REFRESH_SECONDS).tick(handlers.refresh_if_new, [*chosen, fingerprint], refreshed, **FREE)
    return handlers.open_linked, shown.finished


def _build_ask(cases: list[HeldOutCase], quick: str) -> Ask:
    # hidden at first: Gradio's page waits for ever for what was in sight at first and is hidden before its scripts have arrived
    with gr.Column(visible=False) as empty:
        gr.HTML(empty_state(NO_RUN_TITLE, NO_RUN.format(quick=quick)), apply_default_css=False)
        to_train = gr.Button("Go to Train", elem_classes=["dd-go"], min_width=120)
    with gr.Column(visible=False, elem_id="dd-ask") as form:
        with gr.Row(equal_height=True):
            with gr.Column(scale=3, min_width=320):
                question = gr.Textbox(
                    label="Question", lines=6, max_lines=12, placeholder="Write a clinical question, or pick a held-out case below."
                )
                choices = [(f"{case.specialty}: {case.condition}, {case.asked}", case.example.question) for case in cases]
                case = gr.Dropdown(choices, value=None, label="Or pick a held-out case (type to search)")
            with gr.Column(scale=2, min_width=300):
                run = gr.Dropdown([], label="Run on the tuned side", filterable=False)
                step = gr.Dropdown([], label="Checkpoint", filterable=False)
                also = gr.Dropdown([], value=[], multiselect=True, max_choices=ALSO_AT_MOST, visible=False, label=ALSO, elem_id="dd-also")
                styles = [(style.label, name) for name, style in STYLES.items()]
                style = gr.Dropdown(styles, value=ARTICLE.name, label="Prompt style, for both sides", filterable=False)
        sampling = build_form(SamplingConfig())
        busy = gr.HTML("", visible=False, apply_default_css=False)
        needs = gr.HTML("", visible=False, apply_default_css=False, elem_id="dd-needs")
        load = gr.Button("Load", visible=False, size="sm", elem_id="dd-load-needed", elem_classes=["dd-own-width"])
        loading = gr.HTML("", apply_default_css=False, elem_id="dd-loading-needed")
        with gr.Row(elem_id="dd-ask-buttons"):
            compare = gr.Button("Compare", variant="primary", elem_id="dd-compare", scale=0, min_width=160)
            stop = gr.Button("Stop", interactive=False, elem_id="dd-stop", scale=0, min_width=120)
    return Ask(
        empty, form, question, case, run, step, also, style, sampling, compare, stop, busy, needs, load, loading, to_train, _build_hub()
    )


def _build_hub() -> FromHub:
    with gr.Accordion("An adapter of the Hugging Face Hub as the tuned side", open=False, elem_id="dd-from-hub", elem_classes=["dd-card"]):
        with gr.Row(equal_height=True):
            repo = gr.Textbox(label="Adapter", placeholder="owner/name", max_length=200, scale=3, min_width=220)
            revision = gr.Textbox(label="Revision", placeholder="newest", max_length=100, scale=1, min_width=120)
        with gr.Row():
            fetch = gr.Button("Fetch", size="sm", elem_classes=["dd-own-width"])
            remove = gr.Button("Remove the chosen one", size="sm", elem_classes=["dd-own-width"])
        told = gr.HTML("", apply_default_css=False)
    return FromHub(repo, revision, fetch, remove, told)


def _build_shown() -> Shown:
    pair = transcript.pair()
    with gr.Column(visible=False, elem_id="dd-after") as after:
        with gr.Row(elem_id="dd-after-buttons"):
            reference_button = gr.Button(SHOW_REFERENCE, visible=False, scale=0, min_width=270, elem_id="dd-reference-button")
            download = gr.DownloadButton("Download JSON", scale=0, min_width=160, elem_id="dd-download")
            link = gr.HTML("", apply_default_css=False, elem_id="dd-link")
        reference = gr.HTML("", visible=False, apply_default_css=False, elem_id="dd-reference")
        below = gr.HTML("", apply_default_css=False, elem_id="dd-findings")
    listing = history.listing()
    comparison, number = gr.State(None), gr.State(None)
    return Shown(pair, after, below, link, download, reference_button, reference, listing, comparison, number)


def _wire_asking(handlers: Handlers, ask: Ask, shown: Shown) -> None:
    outputs = [shown.number, ask.compare, ask.stop, *shown.finished]
    event = ask.compare.click(handlers.answers, ask.inputs, outputs, **FREE)
    event.then(handlers.ready, None, [ask.compare], **FREE)
    event.then(handlers.saved, None, [shown.history], **FREE)
    ask.stop.click(handlers.stop, [shown.number], [ask.stop], queue=False, **FREE)


def _wire_reading(handlers: Handlers, shown: Shown) -> None:
    shown.history.click(handlers.reopen, None, shown.finished, **FREE)
    shown.reference_button.click(
        toggle_reference, [shown.reference_button, shown.comparison], [shown.reference_button, shown.reference], **QUIET
    )


def _page() -> gr.Blocks:
    page = gr.context.Context.root_block
    assert page is not None, "a tab is built inside a page"
    return page
