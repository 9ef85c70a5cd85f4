"""Below the heading: a fold in which the base model is chosen by name, with what it will take, and loaded."""

from typing import Any

import gradio as gr

from deepdoctor.config import ModelConfig
from deepdoctor.ui.components import QUIET
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import build_form
from deepdoctor.ui.model_events import CHOICES, ModelEvents

LIVE: dict[str, Any] = {**QUIET, "concurrency_limit": None}


def build(context: Context, page: gr.Blocks) -> None:
    """Lay out the fold and wire it."""
    model, local = context.engine.model, context.access.place == "local"
    with gr.Accordion("Model", open=False, elem_id="dd-model", elem_classes=["dd-card"]):
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                name = gr.Dropdown(
                    CHOICES,
                    value=model.name,
                    allow_custom_value=True,
                    label="Base model",
                    info=f"Choose one, or type a Hugging Face Hub id{' or a folder of this machine' if local else ''}",
                    elem_id="dd-base-model",
                )
                takes = gr.HTML("", apply_default_css=False, elem_id="dd-model-takes")
            with gr.Column(scale=2, min_width=300):
                form = build_form(ModelConfig(name=model.name), without=("name",))
        with gr.Row(elem_id="dd-model-load"):
            load = gr.Button("Load", variant="primary", scale=0, min_width=120)
            notice = gr.HTML("", apply_default_css=False, elem_id="dd-model-notice")
    events, known = ModelEvents(context, form), gr.State("")
    shown = [known, name, takes, *form.inputs]
    page.load(events.current, None, shown, **LIVE)
    gr.Timer(2).tick(events.follow, [known], shown, **LIVE)
    given = [name, *form.inputs]
    gr.on([each.change for each in given], events.takes, given, [takes], trigger_mode="always_last", **LIVE)
    load.click(events.load, given, [notice, *form.inputs], **LIVE)
