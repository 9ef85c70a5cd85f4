"""Rows, run names, probe answers and logs that look like markup are shown as the texts they are, on every tab that shows them."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import open_tab, probed_run, whole_page
from tests.browser.payloads import ALL, PAYLOADS, RAN, nothing_ran, watched

pytestmark = pytest.mark.browser
NAME = f"<img src=x onerror={RAN}> ${{{RAN}}}"


def test_rows_of_a_file(page: Page, tmp_path: Path) -> None:
    rows = [{"Question": each, "Complex_CoT": f"Thought: {each}", "Response": f"Answer: {each}"} for each in (*PAYLOADS, ALL)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wrong = watched(page)
    with whole_page(tmp_path / "data") as shown:
        page.goto(shown.url)
        panel = open_tab(page, "Dataset")
        panel.get_by_label("File", exact=True).check()
        panel.locator("input[type=file]").set_input_files(file)
        panel.get_by_role("button", name="Load rows").click()
        expect(panel.locator(".dd-where")).to_have_text(f"1 to 12 of {len(rows)} rows", timeout=60_000)
        for place in range(0, len(rows), 12):
            questions = panel.locator("button[data-row]")
            expect(questions.first).to_contain_text(rows[place]["Question"][:20])
            questions.last.click()
            asked = rows[min(place + 11, len(rows) - 1)]
            row = page.locator("#dd-row")
            for text in asked.values():
                expect(row.locator(".dd-prose").filter(has_text=text[:60]).first).to_have_text(text)
            expect(row.locator(".dd-toks .dd-tok").first).to_be_visible()
            if place + 12 < len(rows):
                panel.get_by_role("button", name="Later").click()
        nothing_ran(page, wrong)


def test_names_probes_and_logs_of_a_run(page: Page, tmp_path: Path) -> None:
    run = probed_run(tmp_path / "data", NAME)
    run.append_probe({"step": 60, "question": ALL, "reasoning": ALL, "response": ALL, "closed": True, "finish_reason": "stop"})
    run.append_probe({"step": 0, "question": ALL, "reasoning": ALL, "response": ALL, "closed": True, "finish_reason": "stop"})
    run.log(" ".join(PAYLOADS))
    run.set_status(message=" ".join(PAYLOADS))
    wrong = watched(page)
    with whole_page(tmp_path / "data") as shown:
        page.goto(shown.url)
        panel = open_tab(page, "Train")
        expect(page.locator("#dd-progress h3")).to_have_text(NAME, timeout=20_000)
        expect(panel.locator(".dd-probe-question").last).to_have_text(ALL)
        panel.get_by_role("button", name="Log").click()
        expect(panel.locator(".dd-log")).to_contain_text(PAYLOADS[0])
        panel = open_tab(page, "Runs")
        panel.get_by_role("button", name=NAME).click()
        expect(panel.get_by_role("heading", name=NAME)).to_be_visible()
        nothing_ran(page, wrong)
