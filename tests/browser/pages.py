"""The whole page in front of a fed engine, for tests that look at it and operate it without waiting for a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from playwright.sync_api import Locator, Page, expect

from deepdoctor.overlap import Seen
from deepdoctor.runs import Run, State
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.study import Study
from deepdoctor.ui.context import Context
from deepdoctor.ui.page import build_app, launch_options
from tests.conftest import free_port
from tests.studies.prepared import prepared, verdict
from tests.ui.fakes import FakeEngine, close, fake_comparison, fake_context, fake_run, in_event_loop

# everything that Tab reaches but that nobody can see
INVISIBLE = """() => [...document.querySelectorAll('button, a[href], input, select, textarea, [tabindex]')]
  .filter((one) => one.tabIndex >= 0 && one.checkVisibility({visibilityProperty: true})
    && !one.checkVisibility({opacityProperty: true})).map((one) => one.outerHTML.slice(0, 160))"""
PROBED = (0, 20, 40, 60)


@dataclass(frozen=True)
class Shown:
    """The page's address, the context behind it, and the engine to feed."""

    url: str
    context: Context

    @property
    def engine(self) -> FakeEngine:
        """The engine behind the page."""
        assert isinstance(self.context.engine, FakeEngine)
        return self.context.engine


@contextmanager
def whole_page(data_dir: Path) -> Iterator[Shown]:
    """Serve all five tabs over a FakeEngine with its data in `data_dir`."""
    context = fake_context(data_dir, pace=0.05)

    def launched() -> tuple[str, gr.Blocks]:
        page = build_app(context)
        page.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, **launch_options())
        return str(page.local_url), page

    url, page = in_event_loop(launched)
    try:
        yield Shown(url, context)
    finally:
        close(page)


def probed_run(data_dir: Path, name: str, state: State = "finished") -> Run:
    """A run that also answered its probe question, each time a little shorter."""
    run = fake_run(data_dir, name, state=state)
    for step in PROBED:
        thought = "She leaks on effort and sleeps dry. " * (4 - step // 20)
        answer = {"reasoning": thought, "response": "**Stress incontinence**\n- Leaks on effort", "closed": True, "finish_reason": "stop"}
        run.append_probe({"step": step, "question": "What would cystometry show?", **answer})
    return run


def with_content(data_dir: Path) -> None:
    """Two finished runs, one that failed, and a saved comparison."""
    probed_run(data_dir, "one that failed", "failed")
    probed_run(data_dir, "article settings")
    run = probed_run(data_dir, "quick run")
    context = fake_context(data_dir)
    seen = vars(Seen("near-seen", "A woman who leaks when she coughs", 3, 0.7))
    context.comparisons.save(fake_comparison(run=run.id, seen=seen))
    judged_study(data_dir)


def judged_study(data_dir: Path) -> Study:
    """An open study with two raters who contradict each other."""
    study, judgments = prepared(data_dir, 3, name="judged study", native_arm=True), Judgments(data_dir)
    for name, preference in (("Ada", "A"), ("Ben", "B")):
        rater = study.join(name, "Urology", 4)
        for trial in rater.trials:
            judgments.add(verdict(study, rater.token, trial.id, preference=preference, comment="A remark."))
    return study


def open_tab(page: Page, name: str) -> Locator:
    """Choose a tab by its name; returns its panel."""
    page.get_by_role("tab", name=name).click()
    panel = page.locator("[role=tabpanel]:visible")
    expect(panel).to_be_visible()
    return panel


def invisible_stops(page: Page) -> list[str]:
    """Markup of what Tab reaches but nobody can see."""
    found: list[str] = page.evaluate(INVISIBLE)
    return found
