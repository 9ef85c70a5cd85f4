"""Nothing serious stands in the way of access: axe-core on every tab, with content and everything opened, light and dark."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import Shown, invisible_stops, open_tab, whole_page, with_content
from tests.ui.fakes import fake_comparison

pytestmark = pytest.mark.browser
# Gradio's own message box is a button (a click puts it away) that holds its close button: nested-interactive, and not ours to change.
GRADIO_TOAST = ".toast-header"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    data_dir = tmp_path_factory.mktemp("accessible") / "data"
    with_content(data_dir)
    with whole_page(data_dir) as found:
        yield found


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Shown]:
    with whole_page(tmp_path / "data") as found:
        yield found


@pytest.fixture(params=["light", "dark"])
def look(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serious(page: Page) -> list[tuple[str, list[str]]]:
    """What axe-core finds of serious or critical impact: (rule, the elements' markup)."""
    found = Axe().run(page, context={"exclude": [[GRADIO_TOAST]]}).response["violations"]
    return [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found if each["impact"] in ("serious", "critical")]


def model(page: Page, _shown: Shown) -> None:
    fold = page.locator("#dd-model")
    if not fold.get_by_label("Base model").is_visible():
        fold.get_by_role("button", name="Model").click()
        fold.get_by_role("button", name="More settings").click()
    expect(fold.locator("#dd-model-takes")).to_contain_text("of weights")
    expect(fold.get_by_label("GPU memory")).to_be_visible()
    fold.get_by_label("GPU memory").fill("-1")
    expect(fold.locator("#dd-model-takes")).not_to_contain_text("of weights")  # the page has taken it in
    fold.get_by_role("button", name="Load", exact=True).click()
    expect(fold.locator("#dd-model-notice")).to_contain_text("Not loaded")
    expect(fold.locator(".dd-field.dd-wrong")).to_be_visible()


def dataset(page: Page, _shown: Shown) -> None:
    panel = open_tab(page, "Dataset")
    expect(panel.locator(".dd-checks")).to_be_visible(timeout=60_000)
    expect(panel.locator(".dd-lengths svg").first).to_be_visible()
    panel.locator("button[data-row]").nth(2).click()
    panel.get_by_label("Response only: reasoning and answer").check()
    expect(panel.locator(".dd-toks .dd-tok.off").first).to_be_visible()


def dataset_from_file(page: Page, _shown: Shown) -> None:
    panel = open_tab(page, "Dataset")
    panel.get_by_label("File", exact=True).check()
    expect(panel.get_by_label("or a file on this computer")).to_be_visible()


def dataset_from_hub(page: Page, _shown: Shown) -> None:
    panel = open_tab(page, "Dataset")
    panel.get_by_label("Hugging Face Hub").check()
    expect(panel.get_by_label("Hub dataset")).to_be_visible()


def train(page: Page, _shown: Shown) -> None:
    panel = open_tab(page, "Train")
    expect(panel.locator(".dd-launch .dd-stats")).to_be_visible(timeout=60_000)
    panel.get_by_role("button", name="More settings").click()
    panel.get_by_role("button", name=re.compile("^Log")).click()
    expect(panel.locator(".dd-log")).to_be_visible()
    panel.get_by_label("Batch size", exact=True).fill("300")
    expect(panel.locator(".dd-field.dd-wrong")).to_be_visible()
    expect(panel.locator(".dd-probe-side").last).to_be_visible()


def compare(page: Page, shown: Shown) -> None:
    shown.engine.feed([fake_comparison(run=shown.context.runs.list()[0].id)])
    panel = open_tab(page, "Compare")
    panel.get_by_label("Question", exact=True).fill("What would cystometry show?")
    panel.locator("#dd-compare").click()
    expect(panel.locator(".dd-side[data-side=tuned]")).to_have_attribute("data-phase", "ended", timeout=20_000)
    for side in ("base", "tuned"):
        panel.locator(f"[data-side={side}] [data-part=fold]").click()
    panel.locator("#dd-reference-button").click()
    expect(panel.locator("#dd-reference .dd-prose")).to_be_visible()


def runs(page: Page, _shown: Shown) -> None:
    panel = open_tab(page, "Runs")
    panel.get_by_role("button", name="quick run").click()
    for fold in ("^Settings", "^Log"):
        panel.get_by_role("button", name=re.compile(fold)).click()
    for box in range(3):
        panel.locator("#dd-runs input[type=checkbox]").nth(box).check()
        page.wait_for_timeout(300)
    expect(page.locator("#dd-overlay .dd-plot").last).to_be_visible()
    page.locator("#dd-overlay summary").click()
    panel.get_by_role("button", name="Delete", exact=True).click()
    expect(panel.get_by_role("button", name="Delete for good")).to_be_visible()


def studies(page: Page, _shown: Shown) -> None:
    panel = open_tab(page, "Studies")
    panel.get_by_role("button", name="judged study").click()
    expect(panel.locator("#dd-results .first")).to_be_visible(timeout=60_000)
    for fold in ("Tables", "Question by question", "Protocol", "Sampling"):
        panel.get_by_role("button", name=re.compile(f"^{fold}")).locator("visible=true").click()
    expect(panel.locator(".pair").last).to_be_visible()
    panel.get_by_role("button", name="Export", exact=True).click()
    expect(panel.locator("#dd-exports a").last).to_be_visible(timeout=30_000)
    panel.get_by_role("button", name="Delete", exact=True).click()
    expect(panel.get_by_role("button", name="Delete for good")).to_be_visible(timeout=20_000)


OPENED = (model, dataset, dataset_from_file, dataset_from_hub, train, compare, runs, studies)


def fits(page: Page, where: str) -> None:
    """Nothing is wider than the window, and however far one scrolls the banner is in sight and small."""
    page.mouse.wheel(0, 20_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
    expect(page.locator("#dd-banner")).to_be_in_viewport(ratio=1)
    assert page.locator("#dd-banner").evaluate("node => node.offsetHeight") <= 60, where
    page.evaluate("scrollTo(0, 0)")


def test_every_tab_with_content_and_folds_opened(page: Page, shown: Shown, look: str) -> None:
    page.goto(f"{shown.url}?__theme={look}")
    found = {}
    for opened in OPENED:
        opened(page, shown)
        fits(page, opened.__name__)
        found[opened.__name__] = serious(page)
    assert found == {opened.__name__: [] for opened in OPENED}


def test_every_tab_before_the_first_run(page: Page, empty: Shown, look: str) -> None:
    page.goto(f"{empty.url}?__theme={look}")
    for name in ("Train", "Compare", "Runs", "Studies"):
        expect(open_tab(page, name).locator(".dd-empty").first).to_be_visible(timeout=20_000)
        assert serious(page) == [], name


def test_a_message_of_what_went_wrong(page: Page, shown: Shown, look: str) -> None:
    page.goto(f"{shown.url}?__theme={look}")
    panel = open_tab(page, "Compare")
    before = invisible_stops(page)
    panel.locator("#dd-compare").click()
    expect(page.locator(".toast-body")).to_contain_text("write a question", timeout=20_000)
    page.wait_for_timeout(500)
    assert serious(page) == []
    assert invisible_stops(page) == before
    panel = open_tab(page, "Train")
    panel.get_by_label("LoRA rank", exact=True).fill("")
    panel.get_by_role("button", name="Start training").click()
    expect(page.locator("#dd-train-notice")).to_contain_text("Not started", timeout=20_000)
    assert serious(page) == []


def test_on_a_phone_nothing_scrolls_sideways_and_the_banner_leaves_room(browser: Browser, shown: Shown) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(shown.url)
    for opened in OPENED:
        opened(page, shown)
        fits(page, opened.__name__)
    context.close()
