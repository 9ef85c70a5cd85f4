"""The list of saved comparisons: each a link that opens it, in place on a plain click, in a tab of its own otherwise."""

import time

import gradio as gr

from deepdoctor.comparison import Comparison
from deepdoctor.ui.components import badge, escape
from deepdoctor.ui.context import Context

MOST = 30
_HEADING = "<h2>Earlier comparisons</h2>"
HELD = '<p class="dd-muted">Those on questions of a study are not listed until it is closed: its raters must not know the sides.</p>'
_CLICK = """
element.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-comparison]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  trigger("click", { comparison: link.dataset.comparison });
});
"""


def listing() -> gr.HTML:
    """The component; its value is made by `saved`. Its click event carries the comparison's id as `comparison`."""
    return gr.HTML("", js_on_load=_CLICK, apply_default_css=False, elem_id="dd-history")


def saved(context: Context, profile: gr.OAuthProfile | None = None) -> str:
    """The newest saved comparisons that the visitor may read, as HTML, or a sentence that there are none."""
    found = context.comparisons.list(MOST)
    if not found:
        return f'{_HEADING}<p class="dd-muted">Finished comparisons are kept here. None yet.</p>'
    held = context.held_from(profile, [comparison.question for comparison in found])
    names = {run.id: run.name for run in context.runs.list()} | {each.id: each.name for each in context.adapters.list()}
    shown = "".join(_entry(comparison, names) for comparison in found if comparison.question not in held)
    return f'{_HEADING}{HELD if held else ""}<ul class="dd-history">{shown}</ul>'


def link(comparison_id: str) -> str:
    """The address, within this app, that opens a saved comparison."""
    return f"?comparison={escape(comparison_id)}"


def _entry(comparison: Comparison, names: dict[str, str]) -> str:
    made = time.strftime("%d %b %Y, %H:%M", time.localtime(comparison.created))
    step = "final" if comparison.step is None else f"checkpoint {comparison.step}"
    step += f" and {len(comparison.further)} more" if comparison.further else ""
    stopped = " · stopped" if "stopped" in (comparison.base.finish_reason, comparison.tuned.finish_reason) else ""
    where = f"{made} · {names.get(comparison.run, comparison.run)}, {step} · seed {comparison.sampling.seed}{stopped}"
    grade = str(comparison.seen.get("grade", ""))
    mark = badge(grade.capitalize(), grade) if grade else ""
    words = f'<span class="dd-history-question">{escape(comparison.question)}</span><span class="dd-muted">{escape(where)} {mark}</span>'
    return f'<li><a href="{link(comparison.id)}" data-comparison="{escape(comparison.id)}">{words}</a></li>'
