"""What the compare tab's events do: ask both sides, stop, choose run and checkpoint, reopen what was saved."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from deepdoctor.comparison import Comparison
from deepdoctor.config import ModelConfig, SamplingConfig
from deepdoctor.engine.protocol import Compare
from deepdoctor.errors import AccessError, ConfigError, DeepDoctorError, ModelError, ProofError, RunError
from deepdoctor.hub_adapters import FOLDER, HubAdapter
from deepdoctor.prompts import render_question, style_named
from deepdoctor.runs import Run
from deepdoctor.ui import history, transcript
from deepdoctor.ui.choices import FINAL, also_update, other_base, require_base, run_label, short_name, step_choices
from deepdoctor.ui.components import escape, limited, note, user_errors
from deepdoctor.ui.context import Context
from deepdoctor.ui.findings import findings
from deepdoctor.ui.form import Form
from deepdoctor.ui.model_events import loading

Profile = gr.OAuthProfile | None
Side = Run | HubAdapter
HELD = (
    "You may not {action} here for now: a study asks the same, or nearly the same, and its raters must not know the sides. "
    "Take another question, or come back when the study is closed."
)
SHOW_REFERENCE, HIDE_REFERENCE = "Show the reference answer", "Hide the reference answer"


def toggle_reference(label: str, comparison: Comparison | None) -> tuple[Any, Any]:
    """Show the reference answer, or take it away again. Its words reach the page only when they are asked for."""
    if label != SHOW_REFERENCE or comparison is None:
        return gr.update(value=SHOW_REFERENCE), gr.update(value="", visible=False)
    words = note("Written beforehand, not checked by a clinician for this question: a hint, not the truth.")
    text = f'<section class="dd-card"><h2>Reference answer</h2><p class="dd-prose">{escape(comparison.reference)}</p>{words}</section>'
    return gr.update(value=HIDE_REFERENCE), gr.update(value=text, visible=True)


@dataclass(frozen=True)
class Handlers:
    """What the tab's events do. `references` knows the answers of the held-out cases by their questions."""

    context: Context
    sampling: Form
    references: dict[str, str]

    def fingerprint(self, number: int | None) -> tuple[Any, ...]:
        """Changes when a run or checkpoint comes, goes or is renamed, the engine turns to something else, or this viewer asks."""
        state = self.context.engine.state
        found = [(run.id, run.name, tuple(step_choices(run))) for run in self.runs()]
        told, name = state.message if state.phase != "ready" else "", self.context.engine.model.name
        return (tuple(found), number is None, state.phase, state.doing, told, name, self.unpaired())

    def runs(self) -> list[Side]:
        """The runs that have an adapter, newest first: those of the base model in use before those of others; then the Hub's adapters."""
        found = [run for run in self.context.runs.list() if step_choices(run)]
        return [*sorted(found, key=lambda run: not self.fits(run)), *self.context.adapters.list()]

    def fits(self, run: Side) -> bool:
        """Whether the run was made with the base model in use; adapters of the Hub are tried on whichever it is."""
        return not self.needed(run)

    def choices(self) -> list[tuple[str, Any]]:
        """What can be the tuned side."""
        return [(self.label(each), each.id) for each in self.runs()]

    def label(self, run: Side) -> str:
        """How a run is called in the choice of the tuned side."""
        if isinstance(run, HubAdapter):
            return run.name
        return run_label(run) if self.fits(run) else f"{run_label(run)} · needs {short_name(run.model.name)}"

    def needed(self, run: Side) -> str:
        """Which base model a run needs and how to get it, in words; "" if it is the one in use."""
        return "" if isinstance(run, HubAdapter) else other_base(run, self.context.engine.model.name)

    def needs(self, run: Side | None) -> tuple[Any, Any]:
        """Updates of the note that says which other base model the chosen run needs, and of the button that loads it."""
        if isinstance(run, HubAdapter):
            told = run.made_for_another(self.context.engine.model.name)
            return gr.update(value=note(told, "warn") if told else "", visible=bool(told)), gr.update(visible=False)
        words = self.needed(run) if run else ""
        shown = note(f"{words} Load the run's model here, or another one under Model at the top of the page.", "warn") if words else ""
        label = f"Load {short_name(run.model.name)}" if run and words else "Load"
        return gr.update(value=shown, visible=bool(words)), gr.update(value=label, visible=bool(words))

    def refresh_if_new(self, run: str | None, step: Any, also: list[Any], number: int | None, fingerprint: Any) -> Any:
        """Like `refresh`, but nothing at all while all is as it was."""
        return gr.skip() if fingerprint == self.fingerprint(number) else self.refresh(run, step, also, number)

    def refresh(self, run: str | None, step: Any, also: list[Any], number: int | None) -> tuple[Any, ...]:
        """Fingerprint, whether there is anything to compare, the choices of run, checkpoint and further checkpoints (keeping what is
        chosen), the style of a run that is chosen now, what goes on, and what `needs` gives.

        `number` is the comparison that this viewer waits for, if any: its panels say what goes on, so nothing else does.
        """
        choices = self.choices()
        ids = [value for _label, value in choices]
        chosen = run if run in ids else (ids[0] if ids else None)
        side = self.context.side(chosen) if chosen else None
        steps = step_choices(side) if side else []
        kept = step if chosen == run and step in [value for _label, value in steps] else (steps[0][1] if steps else None)
        if chosen == run and steps and kept != step and step is not None:
            gr.Warning(f"The checkpoint of step {step} was removed as newer ones came; now chosen: {steps[0][0]}.")
        busy = self.unpaired() + (self.busy() if number is None else "")
        return (
            self.fingerprint(number),
            gr.update(visible=not ids),
            gr.update(visible=bool(ids)),
            gr.update(choices=choices, value=chosen),
            gr.update(choices=steps, value=kept),
            also_update(side, kept, also if chosen == run else ()),
            gr.skip() if chosen == run else self._style_of(chosen),
            gr.update(value=busy, visible=bool(busy)),
            *self.needs(side),
        )

    def unpaired(self) -> str:
        """That the model in use is not decoded in pairs, as HTML, with the reason; "" if it is."""
        model = self.context.engine.state.model
        if model is None or not model.decoding:
            return ""
        return note(f"{model.name} is not decoded in pairs: base and tuned are written one after the other. Why: {model.decoding}.")

    def busy(self) -> str:
        """What a question asked now would have to wait for, as HTML; "" if for nothing."""
        state = self.context.engine.state
        if state.phase in ("starting", "loading"):
            return note("The model is still loading. You can ask already; the answers begin when it is ready.")
        if state.phase == "busy":
            return note(f"The engine is busy: {state.doing or state.message}. A question asked now waits until it is free.")
        if state.phase in ("failed", "dead"):
            return note(state.message, "bad")
        return ""

    @user_errors
    def steps_of(self, run: str | None) -> tuple[Any, ...]:
        """The checkpoints of a run that was just chosen, those that can be shown beside the newest, the prompt style that it was tuned
        with, what `needs` gives, and nothing in place of what was told about another run."""
        chosen = self.context.side(run) if run else None
        steps = step_choices(chosen) if chosen else []
        first = steps[0][1] if steps else None
        shown = gr.update(choices=steps, value=first), also_update(chosen, first, ())
        return *shown, self._style_of(run), *self.needs(chosen), ""

    @user_errors
    def also_of(self, run: str | None, step: Any, also: list[Any]) -> Any:
        """The checkpoints that can be shown beside the one that was just chosen."""
        return also_update(self.context.side(run) if run else None, step, also)

    def _style_of(self, run: str | None) -> Any:
        side = self.context.side(run) if run else None
        return side.finetune.prompt_style if isinstance(side, Run) else gr.skip()

    @user_errors
    def load_needed(self, profile: gr.OAuthProfile | None, run: str | None) -> Iterator[str]:
        """Load the base model that the chosen run was made with, as it was loaded then. Output: a notice."""

        def config() -> ModelConfig:
            if not run:
                raise ConfigError("Choose a run first.", field="run")
            return self.context.runs.get(run).model

        yield from loading(self.context, profile, config)

    def request(self, question: str, run: str | None, steps: Sequence[Any], style: str, sampling: tuple[Any, ...]) -> Compare:
        """The request those inputs make; the first step is the tuned side. Raises ConfigError or RunError saying what is missing."""
        question = (question or "").strip()
        render_question(question, style_named(style))
        if not run:
            raise ConfigError("Choose the run whose adapter is the tuned side.", field="run")
        if isinstance(chosen := self.context.side(run), Run):
            require_base(chosen, self.context.engine.model.name)
        checkpoint, *also = [None if step in (None, FINAL) else int(step) for step in steps]
        for each in (checkpoint, *also):
            chosen.adapter_dir(each)
        drawn = self.sampling.read(sampling)
        assert isinstance(drawn, SamplingConfig)
        return Compare(question, run, checkpoint, drawn, style, self.references.get(question, ""), tuple(also))

    def require_free(self, profile: Profile, question: str, action: str) -> None:
        """Raise AccessError if a study keeps that question from this visitor. `action` is as in "You may not …"."""
        if self.context.held_from(profile, [question]):
            raise AccessError(HELD.format(action=action))

    @user_errors
    def answers(self, profile: Profile, question: str, run: str | None, step: Any, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Ask all sides; `given` is the further checkpoints, the prompt style, then the sampling.

        Yields the request's number, both buttons and what `finished_values` gives, at most ten times a second.
        """
        also, style, *sampling = given
        request = self.request(question, run, [step, *also], style, tuple(sampling))
        self.require_free(profile, request.question, "ask this question")
        name, key = self.context.side(request.run).name, secrets.token_hex(4)
        number = self.context.engine.compare(request)
        running = (gr.update(interactive=False), gr.update(interactive=True))
        idle = (gr.skip(), gr.update(interactive=False))  # Compare comes back when this event is over: until then clicks would be lost
        keep = (gr.skip(),) * 7
        value = transcript.waiting(key, request.question, "Waiting for the engine", request.also)
        yield number, *running, value, *hidden_values()
        try:
            with closing(limited(self.context.engine.follow(number))) as items:
                for item in items:
                    if isinstance(item, str):
                        value = transcript.waiting(key, request.question, item, request.also)
                        yield gr.skip(), *running, value, *keep
                    elif item.finished:
                        yield None, *idle, *self.finished_values(item, key, name)
                    else:
                        value = transcript.panels(item, key, name)
                        yield gr.skip(), *running, value, *keep
        except DeepDoctorError as error:
            yield None, *idle, transcript.failed(value, str(error), keep=not isinstance(error, ProofError)), *keep
            raise

    def ready(self) -> Any:
        """The Compare button, once a question has been answered."""
        return gr.update(interactive=True)

    @user_errors
    def stop(self, number: int | None) -> Any:
        """Stop the comparison that is being made; what was written stays."""
        if number is not None:
            self.context.engine.stop(number)
        return gr.update(interactive=False)

    def finished_values(self, comparison: Comparison, key: str, run_name: str) -> tuple[Any, ...]:
        """A finished comparison for all places where it is shown: panels, what stands below them, and the comparison itself."""
        comparison.require_proven()
        saved = bool(comparison.id)
        address = f'<a href="{history.link(comparison.id)}">Link to this comparison</a>' if saved else ""
        return (
            transcript.panels(comparison, key, run_name),
            gr.update(visible=True),
            findings(comparison),
            address,
            gr.update(value=downloadable(self.context.comparisons.path(comparison.id)) if saved else None, visible=saved),
            gr.update(value=SHOW_REFERENCE, visible=bool(comparison.reference)),
            gr.update(value="", visible=False),
            comparison,
        )

    def saved_values(self, profile: Profile, comparison_id: str) -> tuple[Any, ...]:
        """`finished_values` of a saved comparison. Raises RunError if there is none, AccessError, or ProofError if its proof fails."""
        comparison = self.context.comparisons.get(comparison_id)
        self.require_free(profile, comparison.question, "open this comparison")
        try:
            name = self.context.side(comparison.run).name
        except (RunError, ModelError):
            folder = comparison.run.removeprefix(FOLDER)
            name = f"{comparison.run} (deleted)" if folder == comparison.run else f"{folder} (folder, asked from the command line)"
        return self.finished_values(comparison, comparison.id, name)

    def saved(self, profile: Profile = None) -> str:
        """The list of saved comparisons."""
        return history.saved(self.context, profile)

    @user_errors
    def reopen(self, event: gr.EventData, profile: Profile = None) -> Any:
        """Show the comparison that was clicked in the history."""
        return self.saved_values(profile, str(event.comparison))

    @user_errors
    def open_linked(self, request: gr.Request, profile: Profile = None) -> Any:
        """Show the comparison that the page's address names, if it names one."""
        linked = request.query_params.get("comparison")
        return self.saved_values(profile, linked) if linked else gr.skip()


def downloadable(file: Path) -> str:
    """Where the page may fetch a copy of a file: Gradio serves nothing from a data folder that lies outside the working directory."""
    return save_file_to_cache(file, get_upload_folder())


def hidden_values() -> tuple[Any, ...]:
    """What `Shown.finished` holds beside the panels while nothing is finished."""
    hidden = gr.update(visible=False)
    return hidden, "", "", gr.update(value=None), hidden, gr.update(value="", visible=False), None
