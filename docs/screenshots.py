"""Take the README's pictures: `python docs/screenshots.py` does the main job in a browser and writes four of them to docs/images/.

It starts the app with an empty data folder, or uses the one at --url; what is missing (two runs, a comparison) is made first, which takes
some minutes. With --all FOLDER every tab is also taken whole, light and dark, at laptop and phone width.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PORT = 8190
TABS = ("Dataset", "Train", "Compare", "Runs")
SIZES = {1366: 768, 390: 844}
MINUTE = 60_000
# name of the run: its learning rate, or None for the preset's; the last one is compared
RUNS = {"gentler": "0.001", "quick": None}


@contextmanager
def running_app() -> Iterator[str]:
    """The app's address, with an empty data folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="deepdoctor-shots-") as folder:
        command = [sys.executable, "app.py", "--port", str(PORT), "--data-dir", f"{folder}/data"]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "GRADIO_TEMP_DIR": f"{folder}/uploads"})
        try:
            yield answering(f"http://127.0.0.1:{PORT}")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)


def answering(url: str) -> str:
    """`url`, once it answers. Raises TimeoutError after a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return url
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{url} does not answer.")


def open_tab(page: Page, name: str) -> None:
    """Choose a tab and let it settle."""
    page.get_by_role("tab", name=name).click()
    page.wait_for_timeout(1500)


def train(page: Page, name: str, learning_rate: str | None, picture: Path | None = None) -> None:
    """Train a run with the quick preset, with a picture when two thirds are done; waits for its end."""
    open_tab(page, "Train")
    expect(page.locator(".dd-launch .dd-stats")).to_be_visible(timeout=MINUTE)
    page.get_by_label("Name of the run").fill(name)
    if learning_rate:
        page.get_by_label("Learning rate", exact=True).fill(learning_rate)
    page.get_by_role("button", name="Start training").click()
    bar = page.locator("#dd-progress progress")
    expect(page.locator("#dd-progress h3")).to_have_text(name, timeout=MINUTE)
    if picture:
        while float(bar.get_attribute("value") or 0) < 0.7:
            page.wait_for_timeout(500)
        shoot(page, picture, at=".dd-live")
    expect(page.locator("#dd-progress .dd-badge")).to_have_text("finished", timeout=15 * MINUTE)


def ask(page: Page) -> None:
    """Ask both sides a held-out question and wait for both answers."""
    open_tab(page, "Compare")
    page.get_by_label("Or pick a held-out case").click()
    page.get_by_role("option").first.click()
    page.wait_for_timeout(500)
    page.locator("#dd-compare").click()
    for side in ("base", "tuned"):
        expect(page.locator(f".dd-side[data-side={side}]")).to_have_attribute("data-phase", "ended", timeout=5 * MINUTE)


def prepare(page: Page, name: str) -> None:
    """Bring a tab to its best moment, from what is there."""
    open_tab(page, name)
    if name == "Dataset":
        page.locator("button[data-row]").nth(1).click()
        page.get_by_label("Response only: reasoning and answer").check()
        expect(page.locator(".dd-toks .dd-tok.off").first).to_be_visible(timeout=MINUTE)
    if name == "Compare":
        page.locator(".dd-history a").first.click()
        expect(page.locator("#dd-after")).to_be_visible(timeout=MINUTE)
    if name == "Runs":
        page.locator("#dd-runs button[data-run]").first.click()
        boxes = page.locator("#dd-runs input[type=checkbox]")
        for place in range(min(2, boxes.count())):
            boxes.nth(place).check()
            page.wait_for_timeout(800)
    page.wait_for_timeout(1000)


def shoot(page: Page, file: Path, whole: bool = False, at: str = "") -> None:
    """A picture of the window, from its top or from the element `at`; or of the whole page."""
    page.evaluate("scrollTo(0, 0)")
    if at:
        page.locator(at).first.evaluate("node => scrollTo(0, node.getBoundingClientRect().top + scrollY - 40)")
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file, full_page=whole)
    print(file)


def best_moments(page: Page) -> None:
    """The README's four pictures; makes the runs and the comparison that they show."""
    for name, learning_rate in RUNS.items():
        train(page, name, learning_rate, None if learning_rate else IMAGES / "train.png")
    ask(page)
    shoot(page, IMAGES / "compare.png", at=".dd-asked")
    page.reload()
    prepare(page, "Dataset")
    shoot(page, IMAGES / "dataset.png", at="#dd-row")
    prepare(page, "Runs")
    shoot(page, IMAGES / "runs.png")


def everything(browser: Browser, url: str, folder: Path) -> None:
    """Every tab, whole, in both looks and widths."""
    for width, height in SIZES.items():
        for look in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": height})
            page = context.new_page()
            page.goto(f"{url}/?__theme={look}")
            for name in TABS:
                prepare(page, name)
                shoot(page, folder / f"{name.lower()}-{width}-{look}.png", whole=True)
            context.close()


def main() -> None:
    """Take the pictures that were asked for."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--url", help="an app that runs already, instead of a fresh one")
    flags.add_argument("--all", type=Path, metavar="FOLDER", help="also every tab, light and dark, at both widths")
    flags.add_argument("--only-all", action="store_true", help="with --all and --url: leave the README's pictures as they are")
    given = flags.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with running_app() if not given.url else _given(given.url) as url:
            if not given.only_all:
                page = browser.new_page(viewport={"width": 1366, "height": 768}, device_scale_factor=1.5)
                page.goto(url)
                best_moments(page)
            if given.all:
                everything(browser, url, given.all)
        browser.close()


@contextmanager
def _given(url: str) -> Iterator[str]:
    yield answering(url.rstrip("/"))


if __name__ == "__main__":
    main()
