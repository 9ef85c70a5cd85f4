"""Two raters judge a study wholly by keyboard, one with number keys and one with Tab and arrows; axe-core, a phone, and no scripts."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette

from deepdoctor.studies.judged import standings, unblind
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.study import Study
from deepdoctor.ui.judge.app import judge_routes
from tests.conftest import free_port
from tests.studies.prepared import prepared

pytestmark = pytest.mark.browser
# twelve questions, and one pair again
PAIRS = 13
FEW = 3
MOST_TABS = 12


@dataclass(frozen=True)
class Judging:
    """A study and the address of its link."""

    study: Study
    url: str
    data_dir: Path


@contextmanager
def served(data_dir: Path) -> Iterator[str]:
    """The judging pages on a free port."""
    port = free_port()
    config = uvicorn.Config(Starlette(routes=judge_routes(data_dir, False)), port=port, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(params=[FEW])
def judging(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Judging]:
    study = prepared(tmp_path, request.param)
    with served(tmp_path) as url:
        yield Judging(study, f"{url}/judge/{study.id}", tmp_path)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def reach(page: Page, selector: str) -> None:
    """Press Tab until the focus is within `selector`, in sight and marked."""
    wanted = page.locator(selector).first
    for _ in range(MOST_TABS):
        press(page, "Tab")
        if wanted.evaluate("node => node.contains(document.activeElement)"):
            break
    assert wanted.evaluate("node => node.contains(document.activeElement)"), f"Tab did not reach {selector}"
    marked = """() => {
      const node = document.activeElement.closest('.choice') || document.activeElement, box = node.getBoundingClientRect();
      const banner = document.querySelector('.banner').getBoundingClientRect().bottom;
      return getComputedStyle(node).outlineStyle !== 'none' && box.top >= banner - 1 && box.bottom <= innerHeight + 1;
    }"""
    assert page.evaluate(marked), f"nothing shows that the focus is in {selector}"


def join(page: Page, judging: Judging, name: str) -> None:
    """Fill in the join form and send it with Enter."""
    page.goto(judging.url)
    for field, text in (("#name", name), ("#specialty", "Cardiology"), ("#years", "7")):
        reach(page, field)
        page.keyboard.type(text)
    press(page, "Enter")
    expect(page.locator(".progress")).to_contain_text("1 of")


def judged_with_numbers(page: Page, number: int) -> None:
    press(page, "1", "1", "1", "2", "3")
    if number == 2:
        reach(page, "#comment")
        page.keyboard.type("1 or 2 radiographs")
        reach(page, "button[value=save]")
    press(page, "Enter")


def judged_with_arrows(page: Page) -> None:
    reach(page, "#preference")
    press(page, "Space", "ArrowRight", "ArrowRight")
    reach(page, "#correct-A")
    press(page, "Space")
    reach(page, "#harm-A")
    press(page, "Space", "ArrowDown")
    reach(page, "details >> nth=0")
    press(page, "Enter")
    reach(page, "#chip-A-omission")
    press(page, "Space")
    reach(page, "#correct-B")
    press(page, "Space", "ArrowUp")
    reach(page, "#harm-B")
    press(page, "Space", "Enter")


def to_the_end(page: Page, judge: str) -> None:
    """Judge and lock every pair, then answer the last question."""
    for number in range(1, PAIRS + 1):
        expect(page.locator("h1")).to_have_text(f"Pair {number} of {PAIRS}")
        page.wait_for_load_state()  # the heading is there before the script that hears the keys
        if judge == "numbers":
            judged_with_numbers(page, number)
        else:
            judged_with_arrows(page)
        expect(page.locator("h1")).to_have_text(f"Saved: pair {number} of {PAIRS}")
        expect(page.locator("button[value=lock]")).to_be_focused()
        press(page, "Enter")
    expect(page.locator("h1")).to_have_text("One last question")
    reach(page, "#guess")
    press(page, "Space", "Enter")
    expect(page.locator("main")).to_contain_text(f"You judged {PAIRS} of {PAIRS} pairs")


@pytest.mark.parametrize("judging", [12], indirect=True)
def test_two_raters_judge_a_study_by_keyboard_alone(browser: Browser, judging: Judging) -> None:
    for name in ("numbers", "arrows"):
        context = browser.new_context(viewport={"width": 1366, "height": 768})
        page = context.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))  # type: ignore[misc]
        join(page, judging, name)
        to_the_end(page, name)
        assert problems == []
        context.close()
    rows = Judgments(judging.data_dir).rows(judging.study.id)
    found = unblind(judging.study, rows)
    raters = {rater.token: rater.name for rater in judging.study.raters()}
    assert [raters[each.rater] for each in found] == ["numbers"] * PAIRS + ["arrows"] * PAIRS
    assert sum(bool(each.guess) for each in standings(judging.study, rows)) == 2
    said = {"numbers": set(), "arrows": set()}  # type: ignore[var-annotated]
    for row in (row for row in rows if row["kind"] == "verdict"):
        answers = (row["preference"], *row["correct"].values(), *row["harm"].values(), *row["chips"]["A"])
        said[raters[row["rater"]]].add(answers)
        assert 0 < row["seconds"] < 60
    assert said == {
        "numbers": {("A", "correct", "partly", "none", "severe")},
        "arrows": {("both", "correct", "unsure", "moderate", "none", "omission")},
    }
    assert [row["comment"] for row in rows if row.get("comment")] == ["1 or 2 radiographs"]


def test_reasoning_on_request_a_step_back_a_skip_and_a_return(page: Page, judging: Judging) -> None:
    join(page, judging, "Ada")
    press(page, "1", "1", "1", "1", "1", "Enter")
    page.get_by_role("link", name="Change").click()
    expect(page.locator("#preference-A")).to_be_checked()
    page.locator("#preference-neither").check()
    page.locator("button[value=save]").click()
    expect(page.locator("caption")).to_contain_text("Both bad")
    page.locator("button[value=reveal]").click()
    expect(page.get_by_role("heading", name="Reference")).to_be_visible()
    expect(page.locator(".reasoning").first).to_be_visible()
    press(page, "1", "2")
    page.get_by_role("button", name="Save and go on").click()
    page.locator("button[value=skip]").click()
    expect(page.locator(".progress")).to_contain_text(f"3 of {FEW}")
    page.goto(judging.url)
    page.get_by_role("link", name="Go on as Ada").click()
    expect(page.locator(".progress")).to_contain_text(f"3 of {FEW}")
    page.go_back()
    kinds = [row["kind"] for row in Judgments(judging.data_dir).rows(judging.study.id)]
    assert kinds == ["verdict", "verdict", "lock", "soundness", "skip"]


def test_missing_answers_are_led_to(page: Page, judging: Judging) -> None:
    join(page, judging, "Ada")
    page.locator("#harm-B-severe").check()
    page.locator("button[value=save]").click()
    expect(page.locator(".problems")).to_be_focused()
    expect(page.locator(".problems h2")).to_have_text("Look at 4 things again. Nothing was lost.")
    expect(page.locator("#harm-B-severe")).to_be_checked()
    page.get_by_role("link", name="Say whether answer B is correct.").click()
    press(page, "Tab" if page.locator("#correct-B-correct:focus").count() == 0 else "Space", "Space")
    expect(page.locator("#correct-B-correct")).to_be_checked()


def views(page: Page, judging: Judging) -> Iterator[str]:
    """Every page that a rater meets, opened one after the other."""
    page.goto(judging.url)
    yield "join"
    page.get_by_role("button", name="Start judging").click()
    expect(page.locator(".problems")).to_be_visible()
    yield "join again"
    for field, text in (("#name", f"Ada {time.monotonic()}"), ("#specialty", "Cardiology"), ("#years", "7")):
        page.fill(field, text)
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_be_visible()
    page.locator("summary").first.click()
    yield "a pair"
    page.locator("button[value=save]").click()
    expect(page.locator(".problems")).to_be_visible()
    yield "a pair again"
    for chosen in ("preference-A", "correct-A-correct", "correct-B-wrong", "harm-A-none", "harm-B-severe"):
        page.locator(f"#{chosen}").check()
    page.locator("summary").nth(1).click()
    page.locator("#chip-B-unclear_or_long").check()
    page.fill("#comment", "A remark of some length. " * 20)
    page.locator("button[value=save]").click()
    expect(page.locator("button[value=lock]")).to_be_visible()
    yield "saved"
    pair = urljoin(page.url, page.get_by_role("link", name="Change").get_attribute("href"))
    page.locator("button[value=lock]").click()
    page.goto(pair)
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator(".reference")).to_have_count(0)
    yield "locked without reading the reference"
    page.locator("button[value=reveal]").click()
    expect(page.locator(".reference")).to_be_visible()
    yield "locked"
    page.get_by_role("link", name="Go on without").click()
    for _ in range(FEW - 1):
        page.locator("button[value=skip]").click()
    expect(page.locator("#guess")).to_be_visible()
    yield "the last question"
    page.locator("#guess-none").check()
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    yield "thanks"
    page.goto(f"{judging.url}/nobody")
    yield "not found"


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 390])
def test_every_page_is_accessible_and_fits(browser: Browser, judging: Judging, look: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=look)  # type: ignore[arg-type]
    page = context.new_page()
    found = {}
    for view in views(page, judging):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        expect(page.locator(".banner")).to_be_in_viewport(ratio=1)
        violations = Axe().run(page).response["violations"]
        found[view] = [(each["id"], each["nodes"][0]["html"][:200]) for each in violations]
    assert {view: wrong for view, wrong in found.items() if wrong} == {}
    assert len(found) == 10
    context.close()


def test_without_scripts_everything_works(browser: Browser, judging: Judging) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for view in views(page, judging):
        assert view
    expect(page.locator("main")).to_contain_text("Nobody has joined this study with this link")
    kinds = {row["kind"] for row in Judgments(judging.data_dir).rows(judging.study.id)}
    assert kinds == {"verdict", "lock", "skip", "guess"}
    context.close()


def test_targets_are_large_enough_for_a_thumb(browser: Browser, judging: Judging) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    for view in views(page, judging):
        if view == "a pair":
            break
    sizes = page.locator(".options .choice, button").evaluate_all("nodes => nodes.map(node => node.getBoundingClientRect().height)")
    assert min(sizes) >= 44
    assert re.search(r"1 of \d+", page.locator(".progress").inner_text())
    context.close()
