"""The fold that chooses the base model, in a browser, with the real engine and a loopback Hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.conftest import App, start_app, stop_app
from tests.engine import tiny
from tests.loopback_hub import LoopbackHub

pytestmark = pytest.mark.browser
MINUTE = 60_000


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "tiny-llama")


@pytest.fixture
def app_on_a_tiny_model(tmp_path: Path, local: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """The real app with a tiny model, and another one on the Hub."""
    other = tiny.save_model(tmp_path / "tiny-qwen", "qwen3")
    loopback_hub.add_repo("owner/tiny-qwen", {file.name: file.read_bytes() for file in other.iterdir()})
    monkeypatch.setenv("MODEL", str(local))
    running = start_app(tmp_path)
    yield running
    stop_app(running)


def load(page: Page, name: str) -> Locator:
    """Type a model's name and load it; returns the notice."""
    fold = page.locator("#dd-model")
    field = fold.get_by_label("Base model")
    field.fill(name)
    field.press("Enter")
    fold.get_by_role("button", name="Load", exact=True).click()
    return page.locator("#dd-model-notice")


def test_another_model_is_loaded_by_name_and_a_wrong_name_leaves_it(page: Page, app_on_a_tiny_model: App, local: Path) -> None:
    page.goto(app_on_a_tiny_model.url)
    line = page.locator("#dd-engine")
    expect(line).to_contain_text(f"Ready: {local} on", timeout=MINUTE)
    page.locator("#dd-model").get_by_role("button", name="Model").click()
    expect(page.get_by_label("Base model")).to_have_value(str(local))
    expect(load(page, "owner/tiny-qwen")).to_contain_text("Loaded owner/tiny-qwen.", timeout=MINUTE)
    expect(line).to_contain_text("Ready: owner/tiny-qwen on")
    told = load(page, "owner/tiny-qwem")
    expect(told).to_contain_text("There is no model owner/tiny-qwem on the Hub", timeout=MINUTE)
    expect(told).to_contain_text("owner/tiny-qwen is still loaded.")
    expect(line).to_contain_text("Ready: owner/tiny-qwen on")
    page.reload()
    page.locator("#dd-model").get_by_role("button", name="Model").click()
    expect(page.get_by_label("Base model")).to_have_value("owner/tiny-qwen")
    expect(load(page, str(local))).to_contain_text(f"Loaded {local}.", timeout=MINUTE)
    expect(line).to_contain_text(f"Ready: {local} on")
