"""What happens in the compare tab's form that fetches an adapter of the Hub, or removes one."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from deepdoctor.errors import DeepDoctorError, ModelError
from deepdoctor.hub_adapters import PREFIX, HubAdapter
from deepdoctor.ui.compare_events import Handlers
from deepdoctor.ui.components import note, overheard, status
from deepdoctor.ui.context import name_of


class HubAdapterEvents:
    """The form's handlers."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.context = handlers, handlers.context

    def fetch(self, repo: str, revision: str, profile: gr.OAuthProfile | None = None) -> Iterator[list[Any]]:
        """Fetch an adapter and choose it, telling how far it is. Outputs: what is told, the choice of the tuned side."""
        try:
            self.context.access.require(name_of(profile), "fetch an adapter")
            if not (name := (repo or "").strip()):
                raise ModelError("Give the adapter's name on the Hub, as in owner/name.")

            def work(say: Callable[[str], None]) -> HubAdapter:
                return self.context.adapters.fetch(name, revision or "", lambda words, _fraction: say(words))

            lines = overheard(work)
            while True:
                try:
                    yield [status(note(next(lines))), gr.skip()]
                except StopIteration as ended:
                    yield [status(note(*self._told(ended.value))), gr.update(choices=self.handlers.choices(), value=ended.value.id)]
                    return
        except DeepDoctorError as error:
            yield [status(note(str(error), "bad")), gr.skip()]

    def remove(self, chosen: str | None, profile: gr.OAuthProfile | None = None) -> list[Any]:
        """Remove the adapter of the Hub that is chosen as the tuned side. Outputs: what is told, the choice of the tuned side."""
        try:
            self.context.access.require(name_of(profile), "remove an adapter")
            if not (chosen or "").startswith(PREFIX):
                raise ModelError("Choose an adapter of the Hub as the tuned side first. Runs are deleted on the Runs tab.")
            name = self.context.adapters.get(chosen or "").name
            self.context.adapters.remove(chosen or "")
            choices = self.handlers.choices()
            left = gr.update(choices=choices, value=choices[0][1] if choices else None)
            return [status(note(f"{name} was removed. Comparisons made with it stay; it can be fetched again.", "ok")), left]
        except DeepDoctorError as error:
            return [status(note(str(error), "bad")), gr.skip()]

    def _told(self, adapter: HubAdapter) -> tuple[str, str]:
        other = adapter.made_for_another(self.context.engine.model.name)
        words = f"{adapter.name} is chosen as the tuned side, at commit {adapter.id[-12:]}. What it was trained on is not known."
        return f"{words} {other}".strip(), "warn" if other else "ok"
