"""The compare tab in a real browser, with an engine that is fed: model text stays text, folds obey the reader, Stop and links work."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from deepdoctor.comparison import Further
from deepdoctor.overlap import Seen
from deepdoctor.ui import compare_tab, theme
from deepdoctor.ui.context import Context
from tests.browser.pages import open_tab, whole_page
from tests.browser.payloads import ALL, PAYLOADS, RAN, nothing_ran, watched
from tests.conftest import free_port
from tests.ui.fakes import PROOF, QUESTION, TUNED_TEXT, close, fake_comparison, fake_context, fake_run, growing, in_event_loop, transcript

pytestmark = pytest.mark.browser
expect.set_options(timeout=15_000)

PLAIN = {"SECTION", "HEADER", "H2", "P", "BUTTON", "SPAN", "DIV", "STRONG", "UL", "OL", "LI"}
BELOW = PLAIN | {"TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "BLOCKQUOTE", "DL", "DT", "DD", "CODE", "A"}


@dataclass
class Served:
    """The tab on a page of its own, and the context behind it."""

    url: str
    context: Context

    def feed(self, *items: Any) -> None:
        """Queue the answer to the next question."""
        self.context.engine.feed(items)  # type: ignore[attr-defined]


def serve(context: Context) -> tuple[str, gr.Blocks]:
    """Launch a page with this tab alone; its address, and the page to close."""

    def launched() -> gr.Blocks:
        with gr.Blocks(analytics_enabled=False, fill_width=True) as page:
            with gr.Tabs(selected="compare"):
                with gr.Tab("Train", id="train"):
                    gr.HTML("The train tab")
                with gr.Tab("Compare", id="compare") as tab:
                    loader, outputs = compare_tab.build(context, gr.State({}), tab)
            page.load(loader, None, outputs, show_progress="hidden", api_visibility="private")
        looks: dict[str, Any] = {"theme": theme.theme(), "head": theme.head(), "footer_links": [], "ssr_mode": False, "quiet": True}
        page.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, **looks)
        return page

    page = in_event_loop(launched)
    return str(page.local_url), page


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    context = fake_context(tmp_path, pace=0.11)
    url, page = serve(context)
    yield Served(url, context)
    close(page)


@pytest.fixture
def trained(served: Served) -> Served:
    fake_run(served.context.settings.data_dir, name="quick run")
    return served


def ask(page: Page, question: str = QUESTION) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.locator("#dd-compare").click()


def opened(page: Page, served: Served) -> Page:
    page.goto(served.url)
    expect(page.locator("#dd-ask")).to_be_visible(timeout=20_000)
    return page


def side(page: Page, name: str) -> Any:
    return page.locator(f".dd-side[data-side={name}]")


def part(page: Page, name: str, what: str) -> Any:
    return page.locator(f"[data-side={name}] [data-part={what}]")


def ended(page: Page) -> None:
    for name in ("base", "tuned"):
        expect(side(page, name)).to_have_attribute("data-phase", "ended", timeout=20_000)


def thoughts(paragraphs: int) -> str:
    return "\n\n".join(f"Thought number {each}: she leaks on effort only, and never at night." for each in range(paragraphs))


def long_comparison(paragraphs: int = 40, **changes: Any) -> Any:
    return fake_comparison(base=f"{thoughts(paragraphs)}</think>\nShort.", tuned=f"{thoughts(paragraphs)}</think>\nShort too.", **changes)


def tags_within(page: Page, selector: str) -> set[str]:
    return set(page.eval_on_selector_all(f"{selector} .html-container *", "nodes => nodes.map(node => node.tagName.toUpperCase())"))


def test_nothing_in_question_rows_reasoning_or_answer_ever_runs_or_draws(page: Page, trained: Served) -> None:
    wrong = watched(page)
    run = trained.context.runs.list()[0]
    run.rename(f"<img src=x onerror={RAN}> ${{{RAN}}}")
    text = f"{ALL}</think>\n{ALL}"
    nearest = vars(Seen("near-seen", ALL, 4, 0.7))
    final = fake_comparison(base=text, tuned=text, question=ALL, run=run.id, seen=nearest, reference=ALL)
    final = trained.context.comparisons.save(final)
    trained.feed(ALL, *growing(final, 12)[:-1], final)
    opened(page, trained)
    ask(page, ALL)
    ended(page)
    page.locator("#dd-reference-button").click()
    expect(page.locator("#dd-reference")).to_be_visible()
    for name in ("base", "tuned"):
        part(page, name, "fold").click()
        shown = part(page, name, "reasoning").text_content()
        assert shown == ALL
        assert part(page, name, "answer").locator("p").all_text_contents() == list(PAYLOADS)
    for place in ("[data-part=question]", "#dd-findings blockquote", "#dd-reference p.dd-prose", ".dd-history-question"):
        assert page.locator(place).first.text_content() == ALL, place
    assert "<img src=x" in (part(page, "tuned", "source").text_content() or "")
    assert tags_within(page, "#dd-comparison") <= PLAIN
    assert tags_within(page, "#dd-after") <= BELOW
    assert tags_within(page, "#dd-history") <= BELOW
    nothing_ran(page, wrong)


def test_a_further_checkpoint_is_chosen_and_answers_in_a_third_panel(page: Page, trained: Served) -> None:
    wrong = watched(page)
    run = trained.context.runs.list()[0]
    further = (Further(20, transcript(f"{ALL}</think>\n{ALL}"), PROOF),)
    final = trained.context.comparisons.save(fake_comparison(run=run.id, further=further))
    trained.feed(*growing(final, 6)[:-1], final)
    opened(page, trained)
    expect(page.locator(".dd-side:visible")).to_have_count(2)
    page.get_by_label("Also show").click()
    expect(page.get_by_role("option")).to_contain_text(["Step 40", "Step 20"])
    page.get_by_role("option", name="Step 20").click()
    page.keyboard.press("Escape")
    ask(page)
    ended(page)
    assert trained.context.engine.asked[-1].also == (20,)  # type: ignore[attr-defined]
    expect(side(page, "further1")).to_have_attribute("data-phase", "ended")
    expect(page.locator(".dd-side:visible h2")).to_have_text(["Base", "Tuned", "Checkpoint 20"])
    page.get_by_role("button", name="Reasoning of checkpoint 20").click()
    assert page.get_by_role("region", name="Reasoning of checkpoint 20").text_content() == ALL
    assert part(page, "further1", "answer").locator("p").all_text_contents() == list(PAYLOADS)
    assert tags_within(page, "#dd-comparison") <= PLAIN
    expect(page.locator("#dd-findings th").filter(has_text="Step 20")).to_be_visible()
    nothing_ran(page, wrong)


@pytest.mark.parametrize(("width", "across"), [(1366, True), (390, False)])
def test_further_panels_stand_in_columns_where_there_is_room_and_below_each_other_where_not(
    page: Page, trained: Served, width: int, across: bool
) -> None:
    further = tuple(Further(step, transcript(TUNED_TEXT), PROOF) for step in (20, 40, None))
    final = trained.context.comparisons.save(fake_comparison(run=trained.context.runs.list()[0].id, step=60, further=further))
    page.set_viewport_size({"width": width, "height": 768})
    page.goto(f"{trained.url}?comparison={final.id}")
    ended(page)
    boxes = [side(page, f"further{place}").bounding_box() for place in (1, 2, 3)]
    below = side(page, "tuned").bounding_box()
    assert all(box["y"] >= below["y"] + below["height"] for box in boxes)
    assert len({round(box["y"]) for box in boxes}) == (1 if across else 3)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [found["id"] for found in Axe().run(page, {"include": [["#dd-comparison"]]}).response["violations"]] == []


def test_there_are_enough_payloads_and_all_differ() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 30


def test_a_page_whose_scripts_arrive_after_its_first_event_can_be_used(page: Page, trained: Served) -> None:
    held: list[Route] = []
    page.route("**/assets/Image-*.js", lambda route: held.append(route))  # a part of every button
    opened(page, trained)
    assert held
    for route in held:
        route.continue_()
    trained.feed(fake_comparison())
    ask(page)
    expect(part(page, "base", "answer")).to_contain_text("Residual volume")


def test_the_fold_is_open_while_thinking_and_closes_when_the_answer_begins(page: Page, trained: Served) -> None:
    trained.feed("Waiting for another question", *growing(long_comparison(), 30))
    ask(opened(page, trained))
    fold, reasoning = part(page, "base", "fold"), part(page, "base", "reasoning")
    expect(side(page, "base")).to_have_attribute("data-phase", "thinking")
    expect(fold).to_have_attribute("aria-expanded", "true")
    expect(reasoning).to_be_visible()
    expect(part(page, "base", "status")).to_contain_text("tokens/s")
    ended(page)
    expect(fold).to_have_attribute("aria-expanded", "false")
    expect(reasoning).to_be_hidden()
    expect(part(page, "base", "answer")).to_have_text("Short.")
    expect(part(page, "base", "status")).to_contain_text("Finished")


def test_a_fold_that_the_reader_opened_stays_open_and_one_that_was_closed_stays_closed(page: Page, trained: Served) -> None:
    trained.feed(*growing(long_comparison(), 30))
    ask(opened(page, trained))
    expect(side(page, "tuned")).to_have_attribute("data-phase", "thinking")
    for _ in range(2):
        part(page, "base", "fold").click()
    part(page, "tuned", "fold").press("Enter")
    expect(part(page, "tuned", "reasoning")).to_be_hidden()
    page.wait_for_timeout(400)
    expect(side(page, "tuned")).to_have_attribute("data-phase", "thinking")
    expect(part(page, "tuned", "reasoning")).to_be_hidden()
    ended(page)
    expect(part(page, "base", "reasoning")).to_be_visible()
    expect(part(page, "tuned", "reasoning")).to_be_hidden()
    trained.feed(fake_comparison())
    ask(page)
    expect(part(page, "base", "answer")).to_contain_text("Residual volume")
    expect(part(page, "base", "reasoning")).to_be_hidden()


def test_a_question_asked_as_soon_as_the_button_is_back_is_answered(page: Page, trained: Served) -> None:
    trained.context.engine.linger = 1.0  # type: ignore[attr-defined]
    trained.feed(long_comparison())
    ask(opened(page, trained))
    ended(page)
    trained.feed(fake_comparison())
    ask(page)
    expect(part(page, "base", "answer")).to_contain_text("Residual volume")


def test_a_reader_who_scrolls_up_in_a_thought_is_left_there(page: Page, trained: Served) -> None:
    trained.feed(*growing(long_comparison(), 45))
    ask(opened(page, trained))
    reasoning = part(page, "base", "reasoning")
    page.wait_for_function("document.querySelector('[data-side=base] [data-part=reasoning]').scrollTop > 120")
    reasoning.hover()
    page.mouse.wheel(0, -2000)
    page.wait_for_function("document.querySelector('[data-side=base] [data-part=reasoning]').scrollTop === 0")
    before = page.evaluate("[scrollY, document.querySelector('[data-side=base] [data-part=reasoning]').textContent.length]")
    page.wait_for_timeout(600)
    after = page.evaluate("[scrollY, document.querySelector('[data-side=base] [data-part=reasoning]').textContent.length]")
    assert after[0] == before[0]
    assert after[1] > before[1]
    assert reasoning.evaluate("node => node.scrollTop") == 0
    assert part(page, "tuned", "reasoning").evaluate("node => node.scrollTop") > 0
    ended(page)
    expect(reasoning).to_be_visible()
    expect(part(page, "tuned", "reasoning")).to_be_hidden()


def test_text_that_stands_is_not_redrawn(page: Page, trained: Served) -> None:
    answer = "\n\n".join(f"Paragraph {each}." for each in range(12))
    trained.feed(*growing(fake_comparison(base=f"x</think>{answer}", tuned=f"x</think>{answer}"), 20))
    ask(opened(page, trained))
    expect(part(page, "base", "answer")).to_contain_text("Paragraph 1.")
    page.evaluate("document.querySelector('[data-side=base] [data-part=answer] p').mark = true")
    ended(page)
    assert page.evaluate("document.querySelector('[data-side=base] [data-part=answer] p').mark") is True
    assert part(page, "base", "answer").locator("p").count() == 12


def test_stop_ends_it_and_keeps_what_was_written(page: Page, trained: Served) -> None:
    trained.feed(*growing(long_comparison(), 100))
    opened(page, trained)
    expect(page.locator("#dd-stop")).to_be_disabled()
    ask(page)
    expect(part(page, "base", "reasoning")).to_contain_text("Thought number 1")
    page.locator("#dd-stop").click()
    ended(page)
    expect(part(page, "base", "note")).to_have_text("You stopped it: no answer was given.")
    expect(part(page, "base", "reasoning")).to_contain_text("Thought number 1")
    expect(page.locator("#dd-compare")).to_be_enabled()
    assert trained.context.engine.stopped == [1]  # type: ignore[attr-defined]


def test_a_thought_that_is_cut_off_is_never_shown_as_an_answer(page: Page, trained: Served) -> None:
    final = replace(long_comparison(), base=transcript(thoughts(10), "length"))
    trained.feed(*growing(final, 4))
    ask(opened(page, trained))
    ended(page)
    expect(part(page, "base", "note")).to_contain_text("Cut off: no answer was given")
    expect(part(page, "base", "answer")).to_be_empty()
    expect(part(page, "base", "reasoning")).to_be_visible()


def test_a_run_that_ends_while_the_tab_is_open_is_there_without_a_reload(page: Page, served: Served) -> None:
    page.goto(served.url)
    expect(page.get_by_text("There is no fine-tuned run to compare yet")).to_be_visible(timeout=20_000)
    fake_run(served.context.settings.data_dir, name="just trained")
    expect(page.locator("#dd-ask")).to_be_visible(timeout=10_000)
    expect(page.get_by_label("Run on the tuned side")).to_have_value("just trained · finished at step 60")
    served.feed(fake_comparison())
    ask(page)
    ended(page)


def test_the_empty_state_leads_to_training(page: Page, served: Served) -> None:
    page.goto(served.url)
    page.get_by_role("button", name="Go to Train").click(timeout=20_000)
    expect(page.get_by_text("The train tab", exact=True)).to_be_visible()


def test_a_held_out_case_fills_the_question(page: Page, trained: Served) -> None:
    opened(page, trained)
    cases = page.get_by_label("Or pick a held-out case")
    cases.press_sequentially("urolog")
    expect(page.get_by_role("option").first).to_be_visible()
    cases.press("Enter")
    expect(page.get_by_label("Question", exact=True)).not_to_have_value("")
    trained.feed(fake_comparison())
    page.locator("#dd-compare").click()
    ended(page)
    asked = trained.context.engine.asked[0]  # type: ignore[attr-defined]
    assert asked.reference


def test_history_link_and_download_give_back_the_same_comparison(page: Page, browser: Browser, trained: Served) -> None:
    saved = trained.context.comparisons.save(fake_comparison(run=trained.context.runs.list()[0].id))
    opened(page, trained)
    page.locator(".dd-history a").first.click()
    expect(part(page, "tuned", "answer")).to_contain_text("Cystometry would most likely")
    expect(page).to_have_url(f"{trained.url}")
    with page.expect_download() as waiting:
        page.locator("#dd-download").click()
    assert json.loads(Path(waiting.value.path()).read_text()) == saved.to_dict()
    address = page.locator("#dd-link a").evaluate("link => link.href")
    other = browser.new_context().new_page()
    other.goto(address)
    expect(part(other, "tuned", "answer")).to_contain_text("Cystometry would most likely", timeout=20_000)
    expect(other.locator(".dd-proof")).to_contain_text("Holds")
    expect(other.get_by_text("no involuntary detrusor contractions.", exact=False).locator("visible=true")).to_have_count(0)
    other.get_by_role("button", name="Show the reference answer").click()
    expect(other.locator("#dd-reference")).to_contain_text("Normal residual volume")
    other.context.close()


def test_panels_are_equal_on_a_laptop_and_stacked_on_a_phone_without_sideways_scroll(page: Page, trained: Served) -> None:
    trained.feed(fake_comparison())
    ask(opened(page, trained))
    ended(page)
    base, tuned = side(page, "base").bounding_box(), side(page, "tuned").bounding_box()
    assert (base["width"], base["height"], base["y"]) == (tuned["width"], tuned["height"], tuned["y"])
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    base, tuned = side(page, "base").bounding_box(), side(page, "tuned").bounding_box()
    assert base["y"] + base["height"] <= tuned["y"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_nothing_serious_stands_in_the_way_of_access(page: Page, trained: Served, mode: str) -> None:
    trained.feed(fake_comparison(seen=vars(Seen("near-seen", "A woman", 3, 0.7))))
    page.goto(f"{trained.url}?__theme={mode}")
    expect(page.locator("#dd-ask")).to_be_visible(timeout=20_000)
    ask(page)
    ended(page)
    part(page, "base", "fold").click()
    found = Axe().run(page).response["violations"]
    serious = [(each["id"], [node["html"][:160] for node in each["nodes"]]) for each in found if each["impact"] in ("serious", "critical")]
    assert serious == []


def test_a_question_is_answered_at_the_rate_of_the_engine_and_not_later(page: Page, trained: Served) -> None:
    trained.feed(*growing(long_comparison(), 30))
    opened(page, trained)
    began = time.monotonic()
    ask(page)
    ended(page)
    assert time.monotonic() - began < 30 * 0.11 + 6


def test_asking_brings_stop_and_both_panels_into_sight_once(page: Page, trained: Served) -> None:
    trained.feed(*growing(long_comparison(), 30))
    ask(opened(page, trained))
    expect(side(page, "base")).to_have_attribute("data-phase", "thinking")
    for seen in (page.locator("#dd-stop"), side(page, "base").locator("h2"), side(page, "tuned").locator("h2")):
        expect(seen).to_be_in_viewport()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    assert page.evaluate("scrollY") == 0


def in_sight(page: Page) -> None:
    """The question of the shown comparison stands at the top of the window, below the banner."""
    expect(page.locator("[data-part=asked]")).to_be_in_viewport(ratio=1)
    page.wait_for_function("document.querySelector('#dd-comparison').getBoundingClientRect().top < 120")


@pytest.mark.parametrize("width", [390, 1366])
def test_an_earlier_comparison_is_brought_into_sight_by_click_and_by_link(browser: Browser, tmp_path: Path, width: int) -> None:
    with whole_page(tmp_path / "data") as shown:
        run = fake_run(shown.context.settings.data_dir)
        for number in range(8):
            made = fake_comparison(run=run.id, question=f"Question {number}?")
            linked = shown.context.comparisons.save(made)
        page = browser.new_context(viewport={"width": width, "height": 844}).new_page()
        page.goto(shown.url)
        open_tab(page, "Compare")
        for place in (-1, 3):
            page.locator("#dd-history a").nth(place).click()
            expect(page.locator("[data-part=question]")).to_have_text(
                page.locator("#dd-history .dd-history-question").nth(place).inner_text()
            )
            in_sight(page)
        page.goto(f"{shown.url}?comparison={linked.id}")
        expect(page.locator("[data-part=question]")).to_have_text("Question 7?", timeout=20_000)
        in_sight(page)
        page.evaluate("scrollTo(0, 0)")
        open_tab(page, "Train")
        open_tab(page, "Compare")
        page.wait_for_timeout(500)
        assert page.evaluate("scrollY") == 0, "coming back to the tab is no reason to scroll"
        page.context.close()
