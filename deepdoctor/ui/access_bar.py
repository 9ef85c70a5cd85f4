"""Below the heading, where not everyone may do everything: who may do what, the login, and a warning where data does not last."""

from dataclasses import dataclass

import gradio as gr

from deepdoctor.ui.components import QUIET, note
from deepdoctor.ui.context import Context, name_of

LOST = "on this Space are lost when it restarts or falls asleep: it has no storage at /data that can keep them."
NOT_COPIED = (
    f"Runs, comparisons, studies and all that raters say {LOST} Export what you want to keep; its owner can name a private dataset in "
    "JUDGMENTS_REPO, which studies and judgments are then copied to."
)
COPIED = (
    f"Runs and comparisons {LOST} Export what you want to keep. Studies and what raters say are copied to a private dataset within about "
    "a minute and come back from there; what was saved in the last minute before the machine is lost is lost with it."
)


@dataclass(frozen=True)
class AccessEvents:
    """The bar's handler."""

    context: Context

    def told(self, profile: gr.OAuthProfile | None) -> str:
        """What this visitor may do, as HTML."""
        return note(self.context.access.told(name_of(profile)))


def build(context: Context, page: gr.Blocks) -> None:
    """Lay out what is to be told, if anything is."""
    access = context.access
    if access.place in ("network", "space"):
        events = AccessEvents(context)
        with gr.Row(equal_height=False, elem_id="dd-access"):
            with gr.Column(min_width=300):
                told = gr.HTML(events.told(None), apply_default_css=False)
            if access.can_log_in:
                gr.LoginButton(logout_value="Log out ({})", size="sm", variant="secondary", icon=None, scale=0, min_width=230)
        page.load(events.told, None, [told], **QUIET)
    if access.place == "space" and not context.settings.data_lasts:
        gr.HTML(note(COPIED if context.copy else NOT_COPIED, "warn"), apply_default_css=False, elem_id="dd-does-not-last")
