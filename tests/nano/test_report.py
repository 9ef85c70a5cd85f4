"""The report's measures on transcripts written by hand, and its aims at their borders."""

import json
from pathlib import Path

import pytest

from deepdoctor.comparison import Transcript
from deepdoctor.config import DatasetConfig, ModelConfig, preset
from deepdoctor.dataset import Example, HeldOutCase
from deepdoctor.engine.session import Session
from deepdoctor.nano.report import AIMS, as_text, by_kind, judged, main, measured, names_key_term

BULLETS = "Thought.\n</think>\n**Diagnosis**\n- Gout\n- Because of the big toe"
PARAGRAPH = "Thought.\n</think>\nThis man most likely has GOUT. It hurts."
TWO_PARAGRAPHS = "Thought.\n</think>\nThis is something else.\n\nAnd more."
OPEN = "It may be gout, but I wonder"
LOSSES = {"held_out_loss": 2.0, "held_out_reasoning_loss": 3.0, "held_out_response_loss": 1.0}


def wrote(text: str, reasoning: int = 10) -> Transcript:
    """A finished transcript with that many reasoning tokens."""
    return Transcript(text, tokens=reasoning + 20, reasoning_tokens=reasoning, finish_reason="stop")


def asks(asked: str, key_term: str = "gout") -> HeldOutCase:
    """A case that asks `asked`, whose answer is to name `key_term`."""
    return HeldOutCase(Example("What?", "Thought.", "Gout."), "gout", "rheumatology", asked, key_term)


def test_measures_of_one_side() -> None:
    texts = [wrote(BULLETS, 40), wrote(PARAGRAPH, 10), wrote(TWO_PARAGRAPHS, 20), wrote(OPEN, 90)]
    assert measured([asks("diagnosis")] * 4, texts) == {
        "names_key_term": 0.5,
        "bullets": 0.25,
        "one_paragraph": 0.25,
        "closed": 0.75,
        "reasoning_tokens": 30.0,
    }


@pytest.mark.parametrize(("text", "named"), [(PARAGRAPH, True), (OPEN, False), ("It is gout.\n</think>\nUnclear.", False)])
def test_the_key_term_counts_only_in_the_response(text: str, named: bool) -> None:
    assert names_key_term(wrote(text), "Gout") is named


def test_kinds_are_measured_apart() -> None:
    cases = [asks("diagnosis"), asks("test", "uric acid"), asks("diagnosis")]
    kinds = by_kind(cases, [wrote(BULLETS)] * 3, [wrote(PARAGRAPH), wrote(PARAGRAPH), wrote(OPEN)])
    assert list(kinds) == ["diagnosis", "test"]
    assert [(kind["rows"], kind["base"]["names_key_term"], kind["tuned"]["names_key_term"]) for kind in kinds.values()] == [
        (2, 1.0, 0.5),
        (1, 0.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("name", "just", "short"),
    [
        ("names_key_term", (0.88, 0.85), (0.90, 0.86)),
        ("bullets", (0.9, 0.05), (0.89, 0.0)),
        ("one_paragraph", (0.0, 0.95), (1.0, 0.94)),
        ("reasoning_tokens", (200, 140), (200, 141)),
        ("closed", (0.98, 0.98), (1.0, 0.97)),
        ("held_out_loss", (2.0, 1.4), (2.0, 1.41)),
    ],
)
def test_an_aim_holds_up_to_its_border(name: str, just: tuple[float, float], short: tuple[float, float]) -> None:
    assert AIMS[name].holds(*just)
    assert not AIMS[name].holds(*short)


def test_the_table_says_what_was_not_reached() -> None:
    cases = [asks("diagnosis")]
    base = {**measured(cases, [wrote(BULLETS, 100)]), **LOSSES}
    tuned = {**measured(cases, [wrote(PARAGRAPH, 80)]), **{name: loss / 2 for name, loss in LOSSES.items()}}
    figures = judged(base, tuned)
    assert [figure["name"] for figure in figures if not figure["reached"]] == ["reasoning_tokens"]
    result = {"model": "nano", "run": "r", "preset": "quick", "finetuning_seconds": 61.2, "device": "CPU", "rows": 1, "figures": figures}
    text = as_text({**result, "by_kind": by_kind(cases, [wrote(BULLETS, 100)], [wrote(PARAGRAPH, 80)])})
    assert "61 s of fine-tuning" in text
    line = next(line for line in text.splitlines() if line.startswith("median reasoning tokens"))
    assert line.split()[3:6] == ["100", "80", "no"]
    assert "diagnosis" in text.splitlines()[-1]


def test_a_run_is_measured_on_held_out_rows_and_printed_as_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(tmp_path)
    session.load(ModelConfig())
    recipe = preset("quick").changed(max_steps=2, warmup_steps=0, held_out_rows=2, eval_steps=0, probe_steps=0, batch_size=2)
    run = session.runs.create(ModelConfig(), DatasetConfig(), recipe)
    session.finetune(run.id)
    assert main(["--json", "--rows", "4", "--run", run.id, "--data-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["rows"], len(found["transcripts"])) == (run.id, 4, 4)
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert set(figures) == set(AIMS)
    assert (figures["bullets"]["base"], figures["one_paragraph"]["base"]) == (1.0, 0.0), "nano writes in the base voice before tuning"
    for row in found["transcripts"]:
        assert row["base"]["finish_reason"] == "stop"
    assert sum(kind["rows"] for kind in found["by_kind"].values()) == 4
    assert main(["--json", "--run", "nothing", "--data-dir", str(tmp_path)]) == 2
    assert "nothing" in json.loads(capsys.readouterr().out)["error"]
