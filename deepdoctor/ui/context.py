"""What every tab is given: the settings, the long-lived objects that app.py made, and who may do what."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import gradio as gr

from deepdoctor.access import Access
from deepdoctor.comparison import Comparisons
from deepdoctor.config import Settings
from deepdoctor.engine.client import EngineClient
from deepdoctor.hub_adapters import PREFIX, HubAdapter, HubAdapters
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.blinded import Blinded
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.mirror import Copy
from deepdoctor.studies.study import Studies


@dataclass(frozen=True)
class Context:
    """The long-lived objects behind the page; the same for every visitor."""

    settings: Settings
    engine: EngineClient
    runs: Runs
    comparisons: Comparisons
    studies: Studies
    judgments: Judgments
    copy: Copy | None = None

    @cached_property
    def access(self) -> Access:
        """Who may do what. A handler that changes anything takes the visitor's profile, which Gradio hands it, and asks this."""
        return Access.of(self.settings, os.environ)

    @cached_property
    def blinded(self) -> Blinded:
        """The questions that open studies keep from their raters."""
        return Blinded(self.studies)

    @cached_property
    def adapters(self) -> HubAdapters:
        """The adapters that were fetched from the Hub."""
        return HubAdapters(self.settings.data_dir)

    def side(self, name: str) -> Run | HubAdapter:
        """What can be the tuned side: the run with that id, or the adapter of the Hub. Raises RunError or ModelError if there is none."""
        return self.adapters.get(name) if name.startswith(PREFIX) else self.runs.get(name)

    def held_from(self, profile: gr.OAuthProfile | None, questions: Iterable[str]) -> set[str]:
        """Those of the questions whose labelled answers this visitor must not see now, since a study asks them; none for trainers."""
        return set() if self.access.allows(name_of(profile)) else self.blinded.held(questions)


def name_of(profile: gr.OAuthProfile | None) -> str | None:
    """The visitor's name on Hugging Face; None for one who has not logged in."""
    return None if profile is None else profile.username
