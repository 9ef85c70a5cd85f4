"""Take the README's pictures: `python docs/screenshots.py` does the main job in a browser and writes six of them to docs/images/.

It starts the app with an empty data folder, or uses the one at --url; what is missing (two runs, a comparison, a study) is made first,
which takes some minutes. The study's verdicts are drawn at random, and its name says so. With --all FOLDER every tab is also taken whole,
light and dark, at laptop and phone width.
"""

import argparse
import os
import random
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
TABS = ("Dataset", "Train", "Compare", "Runs", "Studies")
SIZES = {1366: 768, 390: 844}
MINUTE = 60_000
# name of the run: its learning rate, or None for the preset's; the last one is compared
RUNS = {"gentler": "0.001", "quick": None}
RATERS = {"Rater one": "Cardiology", "Rater two": "Urology", "Rater three": "General practice"}
QUESTIONS = 12


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
    page.reload()  # the form keeps what was filled in for the run before
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
    """Ask both sides a held-out question, greedily as the report on the embedded model does, and wait for both answers."""
    open_tab(page, "Compare")
    page.get_by_label("Or pick a held-out case").click()
    page.get_by_role("option").first.click()
    page.wait_for_timeout(500)
    page.get_by_label("Temperature").locator("visible=true").fill("0")
    page.locator("#dd-compare").click()
    for side in ("base", "tuned"):
        expect(page.locator(f".dd-side[data-side={side}]")).to_have_attribute("data-phase", "ended", timeout=5 * MINUTE)


def study(page: Page) -> None:
    """Make and prepare a study of held-out cases, let three raters judge it at random, and take both pictures."""
    open_tab(page, "Studies")
    page.get_by_label("Taken from").click()
    page.keyboard.press("Backspace")
    page.get_by_role("option", name="Held-out teaching cases").click()
    page.keyboard.press("Escape")
    page.get_by_label("At most (0: all)").fill(str(QUESTIONS))
    page.locator("#dd-new-study").get_by_label("Name").fill("Example with verdicts drawn at random")
    expect(page.locator("#dd-study-plan")).to_contain_text("Of 200 chosen questions", timeout=MINUTE)
    page.get_by_role("button", name="Make and prepare").click()
    expect(page.locator("#dd-standing .dd-badge")).to_have_text("open", timeout=10 * MINUTE)
    link = page.locator("#dd-standing a").evaluate("link => link.href")
    for name, specialty in RATERS.items():
        context = page.context.browser.new_context(viewport={"width": 1366, "height": 768}, device_scale_factor=1.5)  # type: ignore[union-attr]
        rater = context.new_page()
        rater.goto(link)
        for field, text in (("#name", name), ("#specialty", specialty), ("#years", "7")):
            rater.fill(field, text)
        rater.keyboard.press("Enter")
        judge(rater, random.Random(name), IMAGES / "judge.png" if name == "Rater one" else None)
        context.close()
    expect(page.locator("#dd-results .first")).to_contain_text("of ", timeout=MINUTE)
    page.wait_for_timeout(4000)
    page.set_viewport_size({"width": 1366, "height": 1180})
    shoot(page, IMAGES / "study.png", at="#dd-study")


def judge(rater: Page, rng: random.Random, picture: Path | None) -> None:
    """Judge every pair by number keys, as `rng` draws, with a picture of the first form half filled in."""
    expect(rater.locator("#verdict")).to_be_visible()
    while rater.locator("#verdict").count():
        rater.keyboard.press(rng.choice("1123"))
        rater.keyboard.press(rng.choice("12"))
        if picture:
            shoot(rater, picture, whole=True)
            picture = None
        for choices in ("12", "112", "112"):
            rater.keyboard.press(rng.choice(choices))
        rater.keyboard.press("Enter")
        expect(rater.locator("button[value=lock]")).to_be_focused()
        rater.keyboard.press("Enter")
        expect(rater.locator("#verdict, #guess").first).to_be_visible()
    rater.locator("#guess-none").check()
    rater.keyboard.press("Enter")
    expect(rater.get_by_role("heading", name="Thank you")).to_be_visible()


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
    if name == "Studies":
        page.locator("#dd-studies button[data-study]").first.click()
        expect(page.locator("#dd-results .first")).to_be_visible(timeout=MINUTE)
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
    """The README's six pictures; makes the runs, the comparison and the study that they show."""
    for name, learning_rate in RUNS.items():
        train(page, name, learning_rate, None if learning_rate else IMAGES / "train.png")
    ask(page)
    shoot(page, IMAGES / "compare.png", at=".dd-asked")
    page.reload()
    prepare(page, "Dataset")
    shoot(page, IMAGES / "dataset.png", at="#dd-row")
    prepare(page, "Runs")
    shoot(page, IMAGES / "runs.png")
    study(page)


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
