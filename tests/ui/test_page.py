"""The page's frame: banner, engine line, links, theme; and app.py's flags and port."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

import app
from deepdoctor.engine.protocol import EngineState
from deepdoctor.errors import ConfigError
from deepdoctor.ui import access_bar, page, theme
from tests.ui.fakes import NANO, READY, FakeCopy, fake_context, in_event_loop

BACKGROUNDS = ("page", "card")


def config_of(folder: Path) -> dict[str, Any]:
    """What the browser is told about the page."""
    return in_event_loop(lambda: page.build_app(fake_context(folder)).get_config_file())


def test_the_page_has_its_tabs_in_order_and_the_banner(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    tabs = [(each["props"]["label"], each["props"]["id"]) for each in config["components"] if each["type"] == "tabitem"]
    assert tabs == [("Dataset", "dataset"), ("Train", "train"), ("Compare", "compare"), ("Runs", "runs"), ("Studies", "studies")]
    html = " ".join(str(each["props"].get("value", "")) for each in config["components"] if each["type"] == "html")
    assert "Not a medical device" in html
    assert "patient-identifiable" in html


def test_nothing_is_reported_and_no_event_is_an_endpoint(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config["analytics_enabled"] is False
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}


def test_no_event_makes_the_browser_copy_its_outputs(tmp_path: Path) -> None:
    events = [each for each in config_of(tmp_path)["dependencies"] if each["backend_fn"]]
    assert len(events) > 50
    assert [each["api_name"] for each in events if each["show_progress_on"] != []] == []


def test_launch_keeps_questions_out_of_the_browser() -> None:
    options = page.launch_options()
    assert options["run_history"] is False
    assert options["ssr_mode"] is False
    assert options["share"] is False


def test_the_engine_line_tells_each_phase() -> None:
    assert "Ready: nano on CPU (2 cores), float32, 4.2 M parameters" in page.engine_line(READY)
    loading = page.engine_line(EngineState("loading", "Reading weights", 0.4))
    assert "Reading weights" in loading
    assert 'value="0.400"' in loading
    assert "Busy: training quick run" in page.engine_line(replace(READY, phase="busy", doing="training quick run"))
    assert "dd-dot bad" in page.engine_line(EngineState("dead", "It died."))
    assert ", 4.2 M parameters. Quick: The disk is full." in page.engine_line(replace(READY, trouble="Quick: The disk is full."))


def test_only_the_embedded_model_is_said_to_know_only_its_cases() -> None:
    assert page.NANO_NOTE in page.engine_line(READY)
    assert page.NANO_NOTE not in page.engine_line(replace(READY, model=replace(NANO, name="someone/large", parameters=8_030_000_000)))


def test_the_engine_line_is_drawn_only_when_it_changed(tmp_path: Path) -> None:
    context = fake_context(tmp_path)
    assert page.refreshed_engine_line(context, READY) == gr.skip()
    html, state = page.refreshed_engine_line(context, EngineState())
    assert state == READY
    assert "Ready" in html


@pytest.mark.parametrize(("query", "opens"), [({}, False), ({"comparison": "abc"}, True), ({"comparison": ""}, False)])
def test_a_link_to_a_comparison_opens_its_tab(query: dict, opens: bool) -> None:
    chosen = page.select_linked_tab(SimpleNamespace(query_params=query))  # type: ignore[arg-type]
    assert isinstance(chosen, gr.Tabs) is opens


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_text_colour_can_be_read(mode: str) -> None:
    colours = theme.PALETTE[mode]
    pairs = [(name, ground) for name in ("ink", "muted", "accent", "base", "tuned", "warn", "bad", "ok") for ground in BACKGROUNDS]
    pairs += [("ink", "accent-soft"), ("accent", "accent-soft"), ("warn", "warn-soft"), ("on-accent", "accent")]
    poor = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs if contrast(colours[pair[0]], colours[pair[1]]) < 4.5}
    assert not poor
    assert contrast(colours["edge"], colours["card"]) >= 3


def test_both_modes_name_the_same_colours() -> None:
    assert theme.PALETTE["light"].keys() == theme.PALETTE["dark"].keys()


def test_style_sheets_use_only_the_palette() -> None:
    sheets = {path.name: path.read_text(encoding="utf-8") for path in (Path(theme.__file__).parent / "css").glob("*.css")}
    everything = theme.style_sheet()
    declared = set(re.findall(r"(--dd-[a-z-]+):", everything))
    for name, text in sheets.items():
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b(?=\s*[;,)])|rgba?\(|hsla?\(", text), f"{name} has a colour of its own"
        assert set(re.findall(r"var\((--dd-[a-z-]+)", text)) <= declared, name


def test_fonts_and_styles_come_with_the_page_itself() -> None:
    head = theme.head()
    assert head.count("data:font/woff2;base64,") == 3
    assert "http://" not in head
    assert "https://" not in head


def test_the_page_imports_nothing_heavy() -> None:
    code = (
        "import sys, deepdoctor.ui.page; print([m for m in ('torch', 'transformers', 'datasets', 'matplotlib', 'trl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_help_explains_every_setting(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        app.main(["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--host", "--port", "--model", "--data-dir", "7860", "nano"))


def test_a_port_that_is_taken_is_named_and_nothing_starts(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port), "--data-dir", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert f"port {port}" in said
    assert "--port" in said
    assert not (tmp_path / "none").exists()


def test_port_zero_takes_a_free_one_and_nonsense_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert app.available_port("127.0.0.1", 0) > 0
    with pytest.raises(ConfigError, match="not\\.a\\.host"):
        app.available_port("not.a.host.invalid", 7860)
    assert app.main(["--port", "abc"]) == 2
    assert "PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("copy", "words"),
    [(None, "Runs, comparisons, studies and all that raters say on this Space are lost"), (FakeCopy(), "saved in the last minute")],
)
def test_a_space_without_storage_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: FakeCopy | None, words: str
) -> None:
    monkeypatch.setenv("SPACE_ID", "alice/deepdoctor")
    context = replace(fake_context(tmp_path), copy=copy)

    def made() -> str:
        with gr.Blocks(analytics_enabled=False) as blocks:
            access_bar.build(context, blocks)
        return str([each["props"].get("value") for each in blocks.get_config_file()["components"]])

    told = in_event_loop(made)
    assert words in told
    assert "ada/judgments" not in told, "which dataset it is, is told to those alone who may see studies"


def test_a_copy_of_the_judgments_that_cannot_be_kept_is_told_before_anything_starts(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert app.main(["--port", "0", "--data-dir", str(tmp_path), "--judgments-repo", "not/a/name"]) == 2
    assert "Check JUDGMENTS_REPO" in capsys.readouterr().err
