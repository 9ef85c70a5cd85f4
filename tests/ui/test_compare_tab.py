"""The compare tab builds, with all that a question needs."""

import gradio as gr

from deepdoctor.config import SamplingConfig
from deepdoctor.ui import compare_tab
from tests.ui.fakes import fake_context, in_event_loop


def test_the_tab_builds_with_the_bundled_cases_to_choose_from(tmp_path):
    context = fake_context(tmp_path)

    def built():
        with gr.Blocks(analytics_enabled=False) as page, gr.Tabs(), gr.Tab("Compare") as tab:
            return page, *compare_tab.build(context, gr.State({}), tab)

    page, loader, outputs = in_event_loop(built)
    assert callable(loader)
    assert len(outputs) == 8
    cases = next(block for block in page.blocks.values() if isinstance(block, gr.Dropdown) and "held-out" in str(block.label))
    assert len(cases.choices) >= 100
    labels = {block.label for block in page.blocks.values() if hasattr(block, "label")}
    assert {field.title for field in SamplingConfig.model_fields.values()} <= labels
    assert {"Question", "Run on the tuned side", "Checkpoint", compare_tab.ALSO, "Prompt style, for both sides"} <= labels
