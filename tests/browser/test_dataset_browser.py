"""The dataset tab in a real browser, with an engine that is fed: naming another Hub dataset, and what an error leaves behind."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from deepdoctor.config import DatasetConfig
from tests.browser.pages import Shown, invisible_stops, open_tab, whole_page

pytestmark = pytest.mark.browser
USUAL = DatasetConfig()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with whole_page(tmp_path_factory.mktemp("rows") / "data") as found:
        yield found


@pytest.fixture
def hub(page: Page, shown: Shown) -> Locator:
    page.goto(shown.url)
    panel = open_tab(page, "Dataset")
    panel.get_by_label("Hugging Face Hub").check()
    expect(panel.get_by_label("Hub dataset")).to_be_visible()
    return panel


@pytest.mark.parametrize("how", ["pasted", "typed", "cut"])
def test_another_hub_dataset_forgets_config_and_revision_of_the_usual_one(page: Page, hub: Locator, how: str) -> None:
    name = hub.get_by_label("Hub dataset")
    name.click()
    page.keyboard.press("Control+A")
    {"pasted": page.keyboard.insert_text, "typed": page.keyboard.type, "cut": lambda _: page.keyboard.press("Control+X")}[how]("a/b")
    expect(hub.get_by_label("Hub config")).to_have_value("")
    expect(hub.get_by_label("Revision")).to_have_value("")
    name.fill(USUAL.name)
    expect(hub.get_by_label("Hub config")).to_have_value(USUAL.config)
    expect(hub.get_by_label("Revision")).to_have_value(str(USUAL.revision))


def test_an_error_is_told_under_our_words_and_leaves_nothing_invisible_to_tab_to(page: Page, hub: Locator) -> None:
    before = invisible_stops(page)
    hub.get_by_label("File", exact=True).check()
    hub.get_by_role("button", name="Load rows").click()
    expect(page.locator(".toast-body")).to_contain_text("Choose a file first")
    assert "That did not work" in page.locator(".toast-title").evaluate("one => getComputedStyle(one, '::before').content")
    expect(hub.locator(".dd-note.bad")).to_contain_text("Choose a file first")
    page.wait_for_timeout(500)
    assert invisible_stops(page) == before
