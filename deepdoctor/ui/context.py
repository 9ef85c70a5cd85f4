"""What every tab is given: the settings and the long-lived objects that app.py made."""

from dataclasses import dataclass

from deepdoctor.comparison import Comparisons
from deepdoctor.config import Settings
from deepdoctor.engine.client import EngineClient
from deepdoctor.runs import Runs


@dataclass(frozen=True)
class Context:
    """The long-lived objects behind the page; the same for every visitor."""

    settings: Settings
    engine: EngineClient
    runs: Runs
    comparisons: Comparisons
