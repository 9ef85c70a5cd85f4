"""The page: banner always in sight, the engine's state, and the five tabs in the order of the work."""

import functools
from typing import Any

import gradio as gr

from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig
from deepdoctor.engine.protocol import EngineState, ModelInfo
from deepdoctor.ui import access_bar, compare_tab, dataset_tab, model_bar, runs_tab, studies_tab, theme, train_tab
from deepdoctor.ui.components import BANNER, QUIET, escape
from deepdoctor.ui.context import Context

TITLE = "DeepDoctor"
NANO_NOTE = "This embedded model knows only its teaching cases."
DAY = 86_400


def build_app(context: Context) -> gr.Blocks:
    """The whole page over the long-lived objects of `context`; launch it with `launch_options`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(DAY, DAY)) as page:
        gr.HTML(_banner(), elem_id="dd-banner", apply_default_css=False)
        with gr.Row(elem_id="dd-top"):
            gr.HTML(_heading(), elem_id="dd-heading", apply_default_css=False)
            status = gr.HTML(engine_line(context.engine.state), elem_id="dd-engine", apply_default_css=False)
        access_bar.build(context, page)
        shown = gr.State(context.engine.state)
        model_bar.build(context, page)
        dataset = gr.State(DatasetConfig().model_dump())
        with gr.Tabs(elem_id="dd-tabs") as tabs:
            with gr.Tab("Dataset", id="dataset") as tab:
                dataset_tab.build(context, dataset, tab)
            with gr.Tab("Train", id="train") as tab:
                train_tab.build(context, dataset, tab)
            with gr.Tab("Compare", id="compare") as tab:
                open_linked, linked_outputs = compare_tab.build(context, dataset, tab)
            with gr.Tab("Runs", id="runs") as tab:
                runs_tab.build(context, dataset, tab)
            with gr.Tab("Studies", id="studies") as tab:
                studies_tab.build(context, dataset, tab)
        refresh = functools.partial(refreshed_engine_line, context)
        gr.Timer(1).tick(refresh, [shown], [status, shown], concurrency_limit=None, **QUIET)
        page.load(functools.partial(current_engine_line, context), None, [status, shown], **QUIET)
        page.load(select_linked_tab, None, [tabs], **QUIET)
        page.load(open_linked, None, linked_outputs, **QUIET)
    page.queue(default_concurrency_limit=16)
    return page


def launch_options() -> dict[str, Any]:
    """Arguments of `gr.Blocks.launch` that belong to how the page looks and to what it keeps to itself."""
    return {
        "theme": theme.theme(),
        "head": theme.head(),
        "footer_links": [],
        "ssr_mode": False,
        "run_history": False,
        "share": False,
        "quiet": True,
    }


def current_engine_line(context: Context) -> tuple[str, EngineState]:
    """The engine's state as HTML, and the state itself, for a page that was just opened."""
    state = context.engine.state
    return engine_line(state), state


def refreshed_engine_line(context: Context, shown: EngineState) -> Any:
    """The engine's state as HTML and the state itself, or nothing when the page shows it already."""
    return gr.skip() if context.engine.state == shown else current_engine_line(context)


def select_linked_tab(request: gr.Request) -> Any:
    """Open the compare tab when the address names a comparison."""
    return gr.Tabs(selected="compare") if request.query_params.get("comparison") else gr.skip()


def engine_line(state: EngineState) -> str:
    """What the engine is doing, in one line, with a progress bar while it loads."""
    words, kind = _engine_words(state)
    bar = ""
    if state.phase == "loading":
        value = "" if state.fraction is None else f' value="{state.fraction:.3f}"'
        bar = f'<progress max="1"{value} aria-label="Model loading"></progress>'
    mark = f'<span class="dd-dot {kind}" aria-hidden="true"></span>'
    note = f'<span class="dd-engine-note">{escape(NANO_NOTE)}</span>' if _is_nano(state.model) else ""
    return f'<div class="dd-engine" role="status"><span class="dd-engine-words">{mark}<span>{escape(words)}</span></span>{bar}{note}</div>'


def _engine_words(state: EngineState) -> tuple[str, str]:
    model = state.model
    name = f"{model.name} on {model.device}, {model.precision}, {_millions(model.parameters)} parameters" if model else "the model"
    if state.phase == "ready":
        return (f"Ready: {name}. {state.trouble}", "bad") if state.trouble else (f"Ready: {name}", "ok")
    if state.phase == "busy":
        return f"Busy: {state.doing or state.message}", "busy"
    return state.message, "bad" if state.phase in ("failed", "dead") else "wait"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _is_nano(model: ModelInfo | None) -> bool:
    return model is not None and model.name.removeprefix("deepdoctor-") == EMBEDDED_MODEL


def _banner() -> str:
    return f'<div class="dd-banner" role="note" aria-label="Safety notice">{escape(BANNER)}</div>'


def _heading() -> str:
    return (
        '<header class="dd-heading"><h1>DeepDoctor</h1>'
        "<p>Teach a reasoning model medicine, then judge whether it helped: base and tuned, side by side.</p></header>"
    )
