"""One run as HTML: what it takes, and what it took."""

from dataclasses import replace
from pathlib import Path

import pytest

from deepdoctor.config import PRESETS
from deepdoctor.plan import in_bytes, plan
from deepdoctor.ui import run_view
from tests.ui.fakes import NANO, fake_run

GIB = 2**30


def test_the_plan_says_in_which_numbers_and_how_a_step_is_made_up() -> None:
    card = replace(NANO, device="NVIDIA L4", precision="bfloat16", backend="unsloth")
    words = run_view.plan_stats(plan(PRESETS["article"], card, [400] * 50), 0, 2**40)
    for part in ("<strong>4 bits</strong>", "<strong>2 × 4 rows</strong>", "As set in the recipe.", "Peak memory, of 8 GiB"):
        assert part in words
    words = run_view.plan_stats(plan(PRESETS["quick"], NANO, [400] * 50), 0, 2**40)
    for part in ("<strong>32 bits</strong>", "<strong>8 × 1 rows</strong>", "All rows of a step at once fit", "<dt>Checkpointing</dt>"):
        assert part in words


def test_the_plan_says_how_much_disk_the_checkpoints_take_and_warns_where_it_is_not_there() -> None:
    found = plan(PRESETS["quick"], NANO, [400] * 50)
    needed = in_bytes(found.disk_bytes)
    words = run_view.plan_stats(found, 0, found.disk_bytes)
    assert f"about {needed}" in words
    assert f"Disk for checkpoints, of {needed} free" in words
    assert "no room" not in words
    assert "The disk has no room for this run&#x27;s checkpoints" in run_view.plan_stats(found, 0, found.disk_bytes - 1)


def test_what_was_planned_stands_beside_what_it_took(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert "lanned" not in run_view.progress(run, []) + run_view.planned(run), "a run from before plans were kept"
    kept = plan(PRESETS["quick"], NANO, [400] * 50).prediction() | {"seconds": 52.0}
    run.set_status(plan=kept)
    assert ">Planned 52 s<" in run_view.progress(run, [])
    run.set_status(plan=kept | {"took_seconds": 54.1})
    assert ">Planned 52 s, took 54 s<" in run_view.progress(run, [])
    assert "All rows of a step at once fit" in run_view.planned(run)
    kept["choices"][0]["why"] = "<img src=x>"
    run.set_status(plan=kept)
    assert "<img" not in run_view.planned(run)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("NVIDIA H200", ">Peak memory 7.9 GiB (planned 8.3)<"),
        ("CPU", ">Peak memory of the whole engine process 7.9 GiB (planned 8.3)<"),
        ("MPS", ">Peak memory of the whole engine process 7.9 GiB (planned 8.3)<"),
    ],
)
def test_the_peak_stands_beside_what_was_planned(tmp_path: Path, device: str, says: str) -> None:
    run = fake_run(tmp_path)
    assert "Peak memory" not in run_view.progress(run, [])
    run.set_status(device=device, peak_bytes=round(7.9 * GIB), planned_bytes=round(8.3 * GIB))
    assert says in run_view.progress(run, [])


@pytest.mark.parametrize(("device", "says"), [("NVIDIA H200 × 2", "first GPU"), ("CPU × 2", "first process")])
def test_of_several_the_peak_is_that_of_the_first(tmp_path: Path, device: str, says: str) -> None:
    run = fake_run(tmp_path)
    kept = plan(PRESETS["article"].changed(devices=2), replace(NANO, devices=2), [400] * 50).prediction()
    run.set_status(device=device, peak_bytes=round(7.9 * GIB), planned_bytes=round(8.3 * GIB), plan=kept)
    assert f">Peak memory of the {says} 7.9 GiB (planned 8.3)<" in run_view.progress(run, [])


def test_what_weights_and_biases_says_is_told_with_or_without_a_link(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert "dd-note" not in run_view.progress(run, [])
    run.set_status(wandb_message="Weights & Biases: <b>no</b> network")
    words = run_view.progress(run, [])
    assert "Weights &amp; Biases: &lt;b&gt;no&lt;/b&gt; network" in words
    assert "dd-note warn" in words
    assert "dd-wandb" not in words
    run.set_status(wandb_url="https://wandb.ai/me/deepdoctor/runs/1")
    words = run_view.progress(run, [])
    assert "network" in words
    assert 'href="https://wandb.ai/me/deepdoctor/runs/1"' in words
