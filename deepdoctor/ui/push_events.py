"""What happens in the runs tab's push form: a run goes to the Hugging Face Hub, and the page tells how far it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from deepdoctor.engine.protocol import Export
from deepdoctor.errors import DeepDoctorError, EngineError
from deepdoctor.publish import Destination, Say, push_run
from deepdoctor.ui.components import escape, note, overheard, status
from deepdoctor.ui.context import Context, name_of
from deepdoctor.ui.runs_events import opened_run


class PushEvents:
    """The form's handler."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def push(
        self, chosen: dict[str, Any], repo: str, private: bool, merged: bool, overwrite: bool, profile: gr.OAuthProfile | None = None
    ) -> Iterator[str]:
        """Publish the opened run, telling how far it is. Output: what is told; at the end, links to what was published."""
        try:
            self.context.access.require(name_of(profile), "push a run")
            wanted = Export(opened_run(self.context, chosen).id, merged=bool(merged))
            to = Destination((repo or "").strip(), bool(private), bool(overwrite))
            yield status(note(f"Asking the Hub about {to.repo}" if to.repo else "Looking at the name"))

            def work(say: Say) -> list[str]:
                return push_run(self.context.settings.data_dir, wanted, to, lambda: self._exported(wanted, say), say)

            lines = overheard(work)
            while True:
                try:
                    yield status(note(next(lines)))
                except StopIteration as ended:
                    yield status(published(ended.value, to.private))
                    return
        except DeepDoctorError as error:
            yield status(note(str(error), "bad"))

    def _exported(self, wanted: Export, say: Say) -> Path:
        say("Waiting for the engine")
        for item in self.context.engine.export(wanted):
            if isinstance(item, Path):
                return item
            say(item)
        raise EngineError("The engine ended before it had written the export; please try again.")


def published(urls: list[str], private: bool) -> str:
    """Links to what was published, as HTML."""
    links = " and ".join(f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(url)}</a>' for url in urls)
    seen = "Only its owner can see it." if private else "Everybody can see it."
    return f'<p class="dd-note ok">Published at {links}. {seen}</p>'
