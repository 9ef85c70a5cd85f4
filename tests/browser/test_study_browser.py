"""A whole study in a real browser with the real engine: made in the page, prepared, judged by keyboard, read, exported, recomputed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from deepdoctor.config import PRESETS, DatasetConfig, ModelConfig
from deepdoctor.files import write_json
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.study import Studies
from tests.browser.test_judge_browser import PAIRS, Judging, join, to_the_end
from tests.conftest import ROOT, App, start_app, stop_app
from tests.engine import tiny
from tests.ui.fakes import MODEL_DIR

pytestmark = pytest.mark.browser
MINUTE = 60_000
QUESTIONS = 12


def random_run(data_dir: Path) -> Run:
    """A run whose adapter is drawn instead of trained."""
    run = Runs(data_dir).create(ModelConfig(), DatasetConfig(), PRESETS["quick"], "drawn")
    tiny.save_adapter(run.path / "adapter", MODEL_DIR, strength=0.02)
    write_json(run.path / "adapter" / "complete.json", {"step": 30})
    write_json(run.path / "questions.json", ["What would cystometry show?"])
    run.set_status(state="finished", step=30, steps=30, message="Finished")
    return run


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """An app of its own, which has one run."""
    random_run(tmp_path / "data")
    running = start_app(tmp_path)
    yield running
    stop_app(running)


def make(page: Page) -> None:
    """Fill in the form of a new study and send it."""
    sources = page.get_by_label("Taken from")
    sources.click()
    page.keyboard.press("Backspace")
    page.get_by_role("option", name="Held-out teaching cases").click()
    page.keyboard.press("Escape")
    page.get_by_label("At most (0: all)").fill(str(QUESTIONS))
    new = page.locator("#dd-new-study")
    new.get_by_label("Name").fill("By keyboard")
    new.get_by_role("button", name="Sampling").click()
    new.get_by_label("Temperature").fill("0")
    new.get_by_label("Longest answer").fill("60")
    plan = page.locator("#dd-study-plan")
    expect(plan).to_contain_text("Of 200 chosen questions", timeout=20_000)
    expect(plan.locator("dd").nth(2)).to_have_text(str(PAIRS), timeout=20_000)
    page.get_by_role("button", name="Make and prepare").click()


def judged(browser: Browser, judging: Judging, name: str) -> None:
    """One rater judges everything by keyboard alone; `name` says with which keys."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    rater = context.new_page()
    join(rater, judging, name)
    to_the_end(rater, name)
    context.close()


def test_a_study_from_its_questions_to_its_bundle(page: Page, browser: Browser, app: App, tmp_path: Path) -> None:
    page.goto(app.url)
    page.get_by_role("tab", name="Studies").click()
    expect(page.locator("#dd-studies")).to_contain_text("No study yet", timeout=20_000)
    expect(page.locator("#dd-engine")).to_contain_text("Ready", timeout=2 * MINUTE)
    make(page)
    standing = page.locator("#dd-standing")
    expect(standing.get_by_role("heading")).to_have_text("By keyboard", timeout=20_000)
    expect(standing.locator(".dd-badge")).to_have_text("open", timeout=2 * MINUTE)
    (study,) = Studies(app.data_dir).list()
    assert len(study.answers()) == QUESTIONS
    link = standing.get_by_role("link").evaluate("link => link.href")
    assert link == f"{app.url}/judge/{study.id}"
    for name in ("numbers", "arrows"):
        judged(browser, Judging(study, link, app.data_dir), name)
    found = page.locator("#dd-results")
    expect(found).to_contain_text(f"of {QUESTIONS} decided pairs", timeout=30_000)
    expect(found.get_by_role("img").first).to_be_visible()
    headline = found.locator(".first").inner_text()
    page.get_by_role("button", name="Export", exact=True).locator("visible=true").click()
    with page.expect_download(timeout=30_000) as waiting:
        page.locator("#dd-exports a").first.click()
    bundle = tmp_path / "bundle.zip"
    waiting.value.save_as(bundle)
    command = [sys.executable, "-m", "deepdoctor", "study", "report", str(bundle), "--json"]
    told = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout)
    assert told["equal"] is True
    assert told["results"]["headline"][0] == headline
    assert told["results"]["counts"]["verdicts"] == 2 * QUESTIONS
    assert told["results"]["guesses"]["right"] + told["results"]["guesses"]["wrong"] == 2
