"""Each tab's main action by keyboard alone: reached with Tab, with the focus in sight, and done with Enter or Space."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.pages import Shown, whole_page, with_content
from tests.ui.fakes import fake_comparison

pytestmark = pytest.mark.browser
MOST_CONTROLS = 400
# marks what has the focus; says whether Tab came round to what it had marked before
REACH = """() => {
  const node = document.activeElement, again = node !== document.body && node.hasAttribute('data-reached');
  node.setAttribute('data-reached', '');
  return again;
}"""
NOT_REACHED = """() => [...document.querySelectorAll(
    '[role=tabpanel] :is(button, a[href], input:not([type=hidden], [type=file]), select, textarea, [tabindex="0"])')]
  .filter((one) => one.checkVisibility({visibilityProperty: true, opacityProperty: true}) && one.getClientRects().length && !one.disabled
    && one.tabIndex >= 0 && !one.hasAttribute('data-reached'))
  .map((one) => one.outerHTML.slice(0, 160))"""
FOCUSED = "node => node.contains(document.activeElement)"
MOST_TABS = 120
# Any of these tells where the focus is: an outline, or a border in the accent colour.
RING = """() => {
  const node = document.activeElement, style = getComputedStyle(node);
  const accent = getComputedStyle(document.body).getPropertyValue('--dd-accent').trim();
  const probe = document.body.appendChild(document.createElement('i'));
  probe.style.color = accent;
  const colour = getComputedStyle(probe).color;
  probe.remove();
  const outlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
  return outlined || style.borderTopColor === colour;
}"""


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    with_content(tmp_path / "data")
    with whole_page(tmp_path / "data") as found:
        yield found


def reach(page: Page, wanted: Locator) -> None:
    """Press Tab until the focus is on `wanted`, in sight and marked."""
    for _ in range(MOST_TABS):
        if wanted.count() and wanted.evaluate(FOCUSED):
            break
        page.keyboard.press("Tab")
    assert wanted.evaluate(FOCUSED), f"{MOST_TABS} presses of Tab did not reach {wanted}"
    expect(wanted).to_be_in_viewport()
    assert page.evaluate(RING), f"nothing shows that the focus is on {wanted}"


def go(page: Page, shown: Shown, name: str) -> None:
    """Open the page and choose a tab with Tab and Enter."""
    page.goto(shown.url)
    tab = page.get_by_role("tab", name=name)
    expect(tab).to_be_visible(timeout=20_000)
    reach(page, tab)
    page.keyboard.press("Enter")
    expect(tab).to_have_attribute("aria-selected", "true")


def test_a_model_is_chosen_and_loaded(page: Page, shown: Shown) -> None:
    page.goto(shown.url)
    fold = page.locator("#dd-model")
    expect(fold).to_be_visible(timeout=20_000)
    reach(page, fold.get_by_role("button", name="Model"))
    page.keyboard.press("Enter")
    name = fold.get_by_label("Base model")
    expect(name).to_be_visible()
    reach(page, name)
    page.keyboard.press("Control+a")
    page.keyboard.type("owner/model")
    page.keyboard.press("Enter")
    reach(page, fold.get_by_role("button", name="Load", exact=True))
    page.keyboard.press("Enter")
    expect(page.locator("#dd-model-notice")).to_contain_text("Loaded owner/model", timeout=20_000)
    expect(page.locator("#dd-engine")).to_contain_text("Ready: owner/model", timeout=20_000)
    assert [each.name for each in shown.engine.loaded] == ["owner/model"]


def test_a_row_is_searched_and_opened(page: Page, shown: Shown) -> None:
    go(page, shown, "Dataset")
    expect(page.locator(".dd-where")).to_have_text("1 to 12 of 500 rows", timeout=60_000)
    reach(page, page.get_by_label("Search"))
    page.keyboard.type("cystometry")
    expect(page.locator(".dd-where")).not_to_contain_text("of 500 rows", timeout=20_000)
    row = page.locator("button[data-row]").nth(1)
    reach(page, row)
    page.keyboard.press("Enter")
    number = int(row.get_attribute("data-row") or 0) + 1
    expect(page.locator("#dd-row .dd-title").first).to_contain_text(f"Row {number} of")
    # Gradio makes each choice a group of its own, so that Tab stops at every one
    reach(page, page.get_by_label("Response only: reasoning and answer"))
    page.keyboard.press("Space")
    expect(page.locator(".dd-toks .dd-tok.off").first).to_be_visible(timeout=20_000)


def test_a_recipe_is_changed_and_a_run_started(page: Page, shown: Shown) -> None:
    go(page, shown, "Train")
    expect(page.locator(".dd-launch .dd-stats")).to_be_visible(timeout=60_000)
    steps = page.get_by_label("Steps", exact=True)
    reach(page, steps)
    page.keyboard.press("Control+a")
    page.keyboard.type("12")
    fold = page.locator(".dd-recipe").get_by_role("button", name="More settings")
    reach(page, fold)
    page.keyboard.press("Enter")
    expect(page.get_by_label("LoRA alpha")).to_be_visible()
    reach(page, page.get_by_label("Name of the run"))
    page.keyboard.type("by keyboard")
    reach(page, page.get_by_role("button", name="Start training"))
    page.keyboard.press("Enter")
    expect(page.locator("#dd-train-notice")).to_contain_text("Started by keyboard", timeout=20_000)
    run = shown.context.runs.get(shown.engine.trained[0][0])
    assert run.finetune.max_steps == 12


def test_a_question_is_asked_and_its_reasoning_read(page: Page, shown: Shown) -> None:
    go(page, shown, "Compare")
    expect(page.locator("#dd-ask")).to_be_visible(timeout=20_000)
    reach(page, page.get_by_label("Question", exact=True))
    page.keyboard.type("What would cystometry show?")
    shown.engine.feed([fake_comparison()])
    reach(page, page.locator("#dd-compare"))
    page.keyboard.press("Enter")
    expect(page.locator(".dd-side[data-side=base]")).to_have_attribute("data-phase", "ended", timeout=20_000)
    reach(page, page.locator("[data-side=base] [data-part=fold]"))
    page.keyboard.press("Space")
    expect(page.locator("[data-side=base] [data-part=reasoning]")).to_be_visible()
    reach(page, page.locator("#dd-reference-button"))
    page.keyboard.press("Enter")
    expect(page.locator("#dd-reference .dd-prose")).to_be_visible(timeout=20_000)


def test_a_run_is_opened_ticked_and_renamed(page: Page, shown: Shown) -> None:
    go(page, shown, "Runs")
    opener = page.get_by_role("button", name="quick run")
    expect(opener).to_be_visible(timeout=20_000)
    reach(page, page.get_by_label("Overlay quick run"))
    page.keyboard.press("Space")
    reach(page, opener)
    page.keyboard.press("Enter")
    opened = page.locator(".dd-run-open")
    expect(opened.get_by_role("heading", name="quick run")).to_be_visible(timeout=20_000)
    reach(page, opened.get_by_label("Name"))
    page.keyboard.press("Control+a")
    page.keyboard.type("renamed")
    reach(page, opened.get_by_role("button", name="Rename"))
    page.keyboard.press("Enter")
    expect(page.locator("#dd-runs").get_by_role("button", name="renamed")).to_be_visible(timeout=20_000)
    expect(page.get_by_label("Overlay renamed")).to_be_checked()


def test_a_study_is_made_and_its_results_are_opened(page: Page, shown: Shown) -> None:
    go(page, shown, "Studies")
    opener = page.get_by_role("button", name="judged study")
    expect(opener).to_be_visible(timeout=20_000)
    reach(page, opener)
    page.keyboard.press("Enter")
    expect(page.locator("#dd-results .first")).to_be_visible(timeout=60_000)
    fold = page.get_by_role("button", name="Question by question")
    reach(page, fold)
    page.keyboard.press("Enter")
    expect(page.locator(".pair").first).to_be_visible()
    most = page.get_by_label("At most (0: all)")
    reach(page, most)
    page.keyboard.press("Control+a")
    page.keyboard.type("5")
    make = page.get_by_role("button", name="Make and prepare")
    reach(page, make)
    page.keyboard.press("Enter")
    expect(page.locator("#dd-standing")).to_contain_text("0 of 5 questions answered", timeout=20_000)
    assert len(shown.engine.prepared) == 1


@pytest.mark.parametrize("name", ["Dataset", "Train", "Compare", "Runs", "Studies"])
def test_tab_reaches_every_control(page: Page, shown: Shown, name: str) -> None:
    go(page, shown, name)
    if name == "Runs":
        page.get_by_role("button", name="quick run").click()
    if name == "Studies":
        page.get_by_role("button", name="judged study").click()
    page.wait_for_timeout(2000)
    for _ in range(MOST_CONTROLS):
        page.keyboard.press("Tab")
        if page.evaluate(REACH):
            break
    missing = page.evaluate(NOT_REACHED)
    assert missing == []
    assert page.locator("[data-reached]").count() > 8
