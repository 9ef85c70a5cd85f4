"""The panels of a comparison: base left, tuned right, further checkpoints below, each with reasoning in a fold, answer and status.

The component's value is a dict of texts (`panels`); a script beside this file sets them as text, so that an update changes only what is
new and a fold stays as its reader left it. Nothing a model wrote is ever markup here, except answers that `render_answer` has escaped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from deepdoctor.comparison import FINISH_WORDS, Comparison, Transcript, step_name
from deepdoctor.engine.protocol import ALSO_AT_MOST
from deepdoctor.ui.components import number, render_answer

Phase = Literal["empty", "waiting", "thinking", "answering", "ended", "failed"]
SCRIPT = Path(__file__).with_suffix(".js")
TITLES = {"base": "Base", "tuned": "Tuned"}
FURTHER = tuple(f"further{place}" for place in range(1, ALSO_AT_MOST + 1))
SIDES = (*TITLES, *FURTHER)
PLACEHOLDERS = {
    "base": "What the model writes without any fine-tuning will stand here.",
    "tuned": "What the same model writes with your run's adapter will stand here.",
}
_SIDE = """
<section class="dd-side" data-side="{side}" data-phase="empty" aria-labelledby="dd-{side}-title"{hidden}>
  <header>
    <h2 id="dd-{side}-title" data-part="title">{title}</h2>
    <p class="dd-side-source" data-part="source"></p>
  </header>
  <p class="dd-side-status" data-part="status"></p>
  <p class="dd-sr" role="status" data-part="said"></p>
  <button type="button" class="dd-fold" aria-expanded="false" aria-controls="dd-{side}-reasoning" data-part="fold" hidden>
    <span class="dd-fold-mark" aria-hidden="true"></span>Reasoning<span class="dd-sr" data-part="whose"></span>
    <span class="dd-muted" data-part="length"></span>
  </button>
  <div class="dd-reasoning" id="dd-{side}-reasoning" role="region" aria-label="Reasoning" tabindex="0"
       data-part="reasoning" hidden></div>
  <div class="dd-answer dd-prose" data-part="answer"></div>
  <p class="dd-note" data-part="note" hidden></p>
</section>"""


def pair() -> gr.HTML:
    """The component that shows all panels; its value is made by `panels`, `empty` or `waiting`."""
    sides = "".join(_SIDE.format(side=side, title=title, hidden="") for side, title in TITLES.items())
    further = "".join(_SIDE.format(side=side, title="", hidden=" hidden") for side in FURTHER)
    asked = '<div class="dd-asked" data-part="asked" hidden><h2 class="dd-sr">Question</h2><p class="dd-prose" data-part="question"></p>'
    template = f'{asked}<p class="dd-muted" data-part="made"></p></div><div class="dd-pair">{sides}</div>'
    template += f'<div class="dd-further">{further}</div>'
    return gr.HTML(
        empty(),
        html_template=template,
        js_on_load=SCRIPT.read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="dd-comparison",
    )


def empty() -> dict[str, Any]:
    """The value before anything was asked."""
    sides = {side: _side(note=PLACEHOLDERS[side]) for side in TITLES}
    return {"key": "", "question": "", "made": "", **_titled(sides, [])}


def waiting(key: str, question: str, words: str, also: Sequence[int | None] = ()) -> dict[str, Any]:
    """The value while the engine has not begun; `words` say why. also: the further checkpoints that were asked."""
    sides = {side: _side("waiting", status=words, said=words) for side in (*TITLES, *FURTHER[: len(also)])}
    return {"key": key, "question": question, "made": "", **_titled(sides, also)}


def _titled(sides: dict[str, dict[str, Any]], steps: Sequence[int | None]) -> dict[str, dict[str, Any]]:
    """The sides with title and the words that end "Reasoning …"; further ones that are not shown have neither."""
    named = {side: {"title": title, "whose": f" of the {side} side"} for side, title in TITLES.items()}
    for side, step in zip(FURTHER, steps, strict=False):
        named[side] = {"title": step_name(step).capitalize(), "whose": f" of {step_name(step, 'the ')}"}
    return {side: {**sides.get(side, _side()), **named.get(side, {})} for side in SIDES}


def failed(value: dict[str, Any], why: str, keep: bool) -> dict[str, Any]:
    """`value` after the comparison ended with an error; without `keep` no word of any side stays."""
    sides = {}
    for side in SIDES:
        before = value[side] if keep else {**_side(), **{name: value[side][name] for name in ("title", "whose")}}
        sides[side] = {**before, "phase": "failed", "status": "Failed", "said": "Failed", "note": why, "note_kind": "bad"}
    return {**value, **sides}


def panels(comparison: Comparison, key: str, run_name: str) -> dict[str, Any]:
    """The value that shows a snapshot or a finished comparison. `key` names it: with a new key the folds forget the reader's choice."""
    limit = comparison.sampling.max_new_tokens
    sources = {"base": f"{comparison.model}, adapter off", "tuned": f"{run_name}, {step_name(comparison.step)}"}
    sides = {side: _written(getattr(comparison, side), limit) | {"source": sources[side]} for side in TITLES}
    further = [_written(each.written, limit) | {"source": run_name} for each in comparison.further]
    sides |= dict(zip(FURTHER, further, strict=False))
    titled = _titled(sides, [each.step for each in comparison.further])
    return {"key": key, "question": comparison.question, "made": _made(comparison), **titled}


def _made(comparison: Comparison) -> str:
    sampling = comparison.sampling
    drawn = f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}" if sampling.temperature else "greedy"
    return f"{comparison.prompt_style.capitalize()} prompt, {drawn}, seed {sampling.seed}, at most {number(sampling.max_new_tokens)} tokens"


def _side(phase: Phase = "empty", **texts: Any) -> dict[str, Any]:
    names = ("title", "whose", "source", "status", "said", "length", "reasoning", "answer", "note", "note_kind")
    return {"phase": phase, "open": False, **dict.fromkeys(names, ""), **texts}


def _written(transcript: Transcript, limit: int) -> dict[str, Any]:
    phase: Phase = "ended" if transcript.finish_reason else ("answering" if transcript.closed else "thinking")
    note, kind = _cut_off(transcript, limit)
    words = FINISH_WORDS[transcript.finish_reason].capitalize() if phase == "ended" else phase.capitalize()
    return _side(
        phase,
        open=not transcript.closed,
        status=_status(transcript, words),
        said=words,
        length=f"{number(transcript.reasoning_tokens)} tokens" if transcript.closed or phase == "ended" else "",
        reasoning=transcript.reasoning,
        answer=render_answer(transcript.response),
        note=note,
        note_kind=kind,
    )


def _status(transcript: Transcript, words: str) -> str:
    speed = f"{transcript.tokens_per_second:.0f} tokens/s"
    if not transcript.finish_reason:
        return f"{words} · {number(transcript.tokens)} tokens · {speed}"
    answer = max(0, transcript.tokens - transcript.reasoning_tokens) if transcript.closed else 0
    parts = f"{number(transcript.reasoning_tokens)} thinking, {number(answer)} answering"
    return f"{words} · {number(transcript.tokens)} tokens ({parts}) · {transcript.seconds:.1f} s · {speed}"


def _cut_off(transcript: Transcript, limit: int) -> tuple[str, str]:
    """The sentence that stands where an answer is missing or not whole, and its kind."""
    reason, answered = transcript.finish_reason, bool(transcript.response)
    if reason == "length":
        if answered:
            return f"The answer is cut off: the limit of {number(limit)} tokens was reached.", "warn"
        return f"Cut off: no answer was given. The thought reached the limit of {number(limit)} tokens.", "warn"
    if reason == "stopped":
        return ("You stopped it here; the answer is not whole." if answered else "You stopped it: no answer was given."), "warn"
    if reason == "stop" and not answered:
        return "No answer was given: the model ended its text without one.", "warn"
    return "", ""
