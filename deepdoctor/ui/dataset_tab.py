"""The dataset tab: choose a source, correct its columns, page through the rows, see one row as the model reads it, and what checks find."""

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from deepdoctor.config import DatasetConfig, FinetuneConfig
from deepdoctor.prompts import STYLES
from deepdoctor.tokens import SUPERVISION
from deepdoctor.ui.components import QUIET
from deepdoctor.ui.context import Context
from deepdoctor.ui.dataset_events import NO_TOKENIZER, DatasetEvents
from deepdoctor.ui.labels import SOURCES
from deepdoctor.ui.loaded import Loaded

SUFFIXES = [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"]
LATEST: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
PINNED = [DatasetConfig().config, DatasetConfig().revision]
OPEN_ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-row]');
  if (!button) return;
  element.querySelectorAll('tr[aria-current]').forEach((row) => row.removeAttribute('aria-current'));
  button.closest('tr').setAttribute('aria-current', 'true');
  trigger('select', {row: Number(button.dataset.row)});
});
"""
# another Hub dataset has other configs and revisions; in the browser, so that no button is faster
FORGET_PIN = f"(name) => name.trim() === {json.dumps(DatasetConfig().name)} ? {json.dumps(PINNED)} : ['', '']"
SHOW_ROW = "() => document.getElementById('dd-row').scrollIntoView({block: 'start'})"


@dataclass(frozen=True)
class _Source:
    """The components that describe where rows come from. `given` are in the order of dataset_events.SOURCE_FIELDS."""

    given: list[Any]
    load: gr.Button
    message: gr.HTML
    columns: list[gr.Dropdown]
    use: gr.Button
    described: gr.HTML


@dataclass(frozen=True)
class _Table:
    """The paged table of rows."""

    query: gr.Textbox
    rows: gr.HTML
    where: gr.HTML
    earlier: gr.Button
    later: gr.Button


@dataclass(frozen=True)
class _Row:
    """One opened row, and how its training text is to be made."""

    title: gr.HTML
    texts: gr.HTML
    style: gr.Radio
    supervision: gr.Radio
    fate: gr.HTML
    tokens: gr.HTML


def build(context: Context, dataset: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab and wire it. `dataset` holds the DatasetConfig in use as a dict; it changes only when rows were read and mapped."""
    events = DatasetEvents(context, Loaded())
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            source = _source(events)
            longest, checks = _checks()
        with gr.Column(scale=7, min_width=320):
            table = _table()
    row = _row()
    with gr.Column(elem_classes="dd-card"):
        _heading("Length in tokens")
        lengths = _html("")
    tokenizer = gr.State(NO_TOKENIZER)
    _wire_source(events, dataset, source)
    opened = _wire_rows(events, dataset, table, row, tokenizer)
    gr.on(None, events.show_checks, [dataset, tokenizer, row.style, longest], [checks, lengths], **LATEST)
    fated = [dataset, opened, tokenizer, row.style, longest]
    gr.on([checks.change, opened.change], events.show_fate, fated, [row.fate], **LATEST)
    gr.on([gr.Timer(2).tick, tab.select], events.new_tokenizer, [tokenizer], [tokenizer], concurrency_limit=None, **QUIET)


def _source(events: DatasetEvents) -> _Source:
    usual = DatasetConfig()
    titles = {name: field.title for name, field in DatasetConfig.model_fields.items()}
    with gr.Column(elem_classes="dd-card"):
        _heading("Source")
        source = gr.Radio(
            [(label, name) for name, label in SOURCES.items()],
            value=usual.source,
            label=titles["source"],
            show_label=False,
            container=False,
        )
        with gr.Column(visible=False) as file_part:
            upload = gr.File(label="JSON, JSONL, CSV or Parquet", file_types=SUFFIXES, type="filepath", height=120)
            path = gr.Textbox(label="or a file on this computer", placeholder="/path/to/medical_o1_sft.json", visible=events.local)
        with gr.Column(visible=False) as hub_part:
            name = gr.Textbox(usual.name, label=titles["name"])
            with gr.Row():
                config = gr.Textbox(usual.config, label=titles["config"], min_width=90)
                split = gr.Textbox(usual.split, label=titles["split"], min_width=90)
            revision = gr.Textbox(usual.revision, label=titles["revision"], info="Pins what is read; empty for the newest")
        with gr.Row(elem_classes="dd-load"):
            first = gr.Number(usual.first_rows, label=f"{titles['first_rows']} (empty: all)", step=1, min_width=120)
            load = gr.Button("Load rows", variant="primary", min_width=120)
        message = _html("")
        described = _html("")
        with gr.Row(elem_classes="dd-columns"):
            columns = [_column(f"{part} from") for part in ("Question", "Reasoning", "Response")]
        use = gr.Button("Use these columns", size="sm", elem_classes="dd-own-width")
    source.change(_parts_for, [source], [file_part, hub_part], **QUIET)
    name.change(None, [name], [config, revision], js=FORGET_PIN, **QUIET)
    return _Source([source, upload, path, name, config, split, revision, first], load, message, columns, use, described)


def _parts_for(source: str) -> tuple[Any, Any]:
    return gr.Column(visible=source == "file"), gr.Column(visible=source == "hub")


def _column(label: str) -> gr.Dropdown:
    return gr.Dropdown(choices=[], value=None, label=label, interactive=True, min_width=110)


def _checks() -> tuple[gr.Number, gr.HTML]:
    field = FinetuneConfig.model_fields["max_seq_length"]
    with gr.Column(elem_classes="dd-card"):
        _heading("Before training")
        longest = gr.Number(field.default, label=f"{field.title}, in tokens", step=1, elem_classes="dd-narrow")
        checks = _html("")
    return longest, checks


def _table() -> _Table:
    with gr.Column(elem_classes="dd-card"):
        _heading("Rows")
        query = gr.Textbox(label="Search", placeholder="Words in a question, its reasoning or its response", lines=1)
        rows = _html("", js_on_load=OPEN_ON_CLICK)
        with gr.Row(elem_classes="dd-pager"):
            earlier = gr.Button("Earlier", size="sm", min_width=80)
            where = _html("")
            later = gr.Button("Later", size="sm", min_width=80)
    return _Table(query, rows, where, earlier, later)


def _row() -> _Row:
    usual = FinetuneConfig()
    styles = [(style.label, name) for name, style in STYLES.items()]
    supervisions = [(label, name) for name, label in SUPERVISION.items()]
    with gr.Column(elem_classes="dd-card", elem_id="dd-row"):
        title = _html("")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                texts = _html("")
            with gr.Column(scale=7, min_width=320):
                _heading("Exact training text")
                style = gr.Radio(styles, value=usual.prompt_style, label="Prompt style")
                supervision = gr.Radio(supervisions, value=usual.supervision, label="Supervision")
                fate, tokens = _html(""), _html("")
    return _Row(title, texts, style, supervision, fate, tokens)


def _wire_source(events: DatasetEvents, dataset: gr.State, source: _Source) -> None:
    draft = gr.State(DatasetConfig().model_dump())
    source.load.click(events.load, source.given, [dataset, draft, source.message, *source.columns], concurrency_limit=4, **QUIET)
    source.use.click(events.use_columns, [draft, *source.columns], [dataset, source.message], **QUIET)
    gr.on(None, events.show_source, [dataset], [source.described, *source.columns], **LATEST)


def _wire_rows(events: DatasetEvents, dataset: gr.State, table: _Table, row: _Row, tokenizer: gr.State) -> gr.State:
    """Returns the state that holds the index of the opened row."""
    page, opened = gr.State(0), gr.State(0)
    paged = [page, table.rows, table.where, table.earlier, table.later]
    gr.on(None, events.first_page, [dataset, table.query], paged, **LATEST)
    table.earlier.click(events.earlier, [dataset, table.query, page], paged, **QUIET)
    table.later.click(events.later, [dataset, table.query, page], paged, **QUIET)
    dataset.change(lambda: 0, None, [opened], **QUIET)
    shown = [dataset, opened, tokenizer, row.style, row.supervision]
    gr.on(None, events.show_row, shown, [row.title, row.texts, row.tokens], **LATEST)
    table.rows.select(events.open_row, None, [opened], **QUIET).then(None, js=SHOW_ROW)
    return opened


def _heading(text: str) -> gr.HTML:
    return _html(f'<h2 class="dd-title">{text}</h2>')


def _html(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **{"js_on_load": None, **options})
