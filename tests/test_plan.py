"""The plan: counts that must be exact, and what is told of them."""

import json
from dataclasses import replace

import pytest

from deepdoctor.config import PRESETS
from deepdoctor.engine.protocol import LONGEST_TRAINED
from deepdoctor.errors import DatasetError, RunError
from deepdoctor.plan import Plan, plan, require_disk, roughly
from tests.planned import CPU, H200, LLAMA_8B, ROWS, T4

ARTICLE = PRESETS["article"]


def test_counts_of_the_article_recipe() -> None:
    found = plan(ARTICLE, LLAMA_8B, ROWS)
    assert (found.rows, found.left_out, found.held_out, found.steps) == (476, 0, 24, 60)
    assert (found.tokens, found.epochs) == (sum(ROWS), 1), "the last step takes the four rows that are left"
    assert found.trainable_parameters == 41_943_040


def test_rows_longer_than_the_limit_are_left_out_and_counted() -> None:
    found = plan(ARTICLE.changed(max_seq_length=600), LLAMA_8B, [100, 600, 601, 5000])
    assert (found.rows, found.left_out) == (2, 2)
    assert (found.tokens, found.epochs) == (60 * 700, 60), "a step of two rows is all there is"


@pytest.mark.parametrize(("rows", "steps", "epochs"), [(3, 6, 6), (9, 2, 1), (9, 3, 1 + 8 / 9), (16, 1, 0.5)])
def test_the_last_step_of_an_epoch_takes_what_is_left(rows: int, steps: int, epochs: float) -> None:
    found = plan(ARTICLE.changed(max_steps=steps, warmup_steps=0), LLAMA_8B, [100] * rows)
    assert found.epochs == pytest.approx(epochs)
    assert found.tokens == round(epochs * rows * 100)


def test_rows_that_unsloth_would_cut_off_are_left_out() -> None:
    long, patient = [500, LONGEST_TRAINED, LONGEST_TRAINED + 1], PRESETS["article"].changed(max_seq_length=100_000)
    assert H200.max_length > LONGEST_TRAINED
    assert plan(patient, H200, long).rows == 2
    assert plan(patient, CPU, long).rows == 3
    with pytest.raises(DatasetError, match=r"longer than 8,192 tokens\. This model is not trained on longer ones here"):
        plan(patient, H200, [9000])


def test_rows_longer_than_the_model_reads_are_left_out() -> None:
    found = plan(ARTICLE, replace(LLAMA_8B, max_length=512), [100, 512, 513])
    assert (found.rows, found.left_out) == (2, 1)


def test_whole_epochs_take_as_many_steps_as_the_rows_need() -> None:
    assert plan(PRESETS["full_epoch"], LLAMA_8B, [100] * 81).steps == 11


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 2463), (0.5, 1232), (2.0, 4926), (0.0001, 1)])
def test_a_full_epoch_over_the_dataset(epochs: float, steps: int) -> None:
    recipe = PRESETS["full_epoch"].changed(epochs=epochs)
    found = plan(recipe, LLAMA_8B, [650] * 19_704)
    assert found.steps == recipe.steps_for(19_704) == steps
    assert found.epochs == pytest.approx(steps * 8 / 19_704)
    assert found.tokens == steps * 8 * 650


def test_the_disk_of_a_full_epoch_is_that_of_the_checkpoints_that_are_kept() -> None:
    epoch = PRESETS["full_epoch"]
    found = plan(epoch, LLAMA_8B, [650] * 19_704)
    adapter = 41_943_040 * 4
    assert found.disk_bytes == pytest.approx(adapter + 6 * 41_943_040 * 6, rel=0.01), "five kept, and one while it is written"
    assert plan(epoch.changed(checkpoints_kept=1), LLAMA_8B, [650] * 19_704).disk_bytes < found.disk_bytes
    assert plan(epoch.changed(optimizer="adamw_torch"), LLAMA_8B, [650] * 19_704).disk_bytes > found.disk_bytes
    few = plan(epoch, LLAMA_8B, [650] * 800)
    assert few.disk_bytes == pytest.approx(adapter + 41_943_040 * 6, rel=0.01), "one checkpoint is ever written"


def test_a_disk_that_is_too_small_is_refused_with_both_numbers() -> None:
    require_disk(2**31, 2**31)
    with pytest.raises(RunError, match=r"about 2\.0 GiB of disk, but only 310 MiB are free"):
        require_disk(2**31, 310 * 2**20)


def test_whether_it_fits() -> None:
    assert plan(ARTICLE, LLAMA_8B, ROWS).fits
    assert not plan(ARTICLE, replace(LLAMA_8B, memory_bytes=4 * 2**30), ROWS).fits


def test_time_is_above_the_roofline_and_below_the_slowest_measurement() -> None:
    assert 20 < plan(ARTICLE, LLAMA_8B, ROWS).seconds < 240


def test_the_article_on_a_t4_fits_with_its_evaluation() -> None:
    """15 GiB, rows of any length that the recipe takes: evaluation is bounded by tokens, whatever the rows."""
    assert plan(ARTICLE, T4, ROWS).fits
    assert plan(ARTICLE.changed(batch_size=1), T4, [2048] * 100).fits


def test_no_evaluation_and_no_probes_cost_nothing() -> None:
    quiet = ARTICLE.changed(held_out_rows=0, probe_steps=0)
    assert plan(quiet, LLAMA_8B, ROWS).seconds == plan(quiet.changed(eval_steps=1, probe_tokens=4000), LLAMA_8B, ROWS).seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "5 s"), (43, "45 s"), (58, "1 min"), (98, "1.5 min"), (170, "3 min"), (1325, "22 min"), (3599, "1 h"), (11_400, "3 h 10 min")],
)
def test_an_estimate_is_told_no_finer_than_it_deserves(seconds: float, words: str) -> None:
    assert roughly(seconds) == words


@pytest.mark.parametrize(("lengths", "says"), [([], "Dataset tab"), ([5000, 6000], "Raise the longest row")])
def test_nothing_to_train_on_is_an_error(lengths: list[int], says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        plan(ARTICLE, LLAMA_8B, lengths)


def test_a_plan_compares_by_value() -> None:
    assert plan(ARTICLE, LLAMA_8B, ROWS) == plan(ARTICLE, LLAMA_8B, ROWS)
    assert isinstance(plan(ARTICLE, LLAMA_8B, ROWS), Plan)


def test_a_run_keeps_of_it_what_was_predicted_and_why() -> None:
    found = plan(ARTICLE, LLAMA_8B, ROWS)
    kept = json.loads(json.dumps(found.prediction()))
    assert (kept["memory_bytes"], kept["seconds"]) == (found.memory_bytes, pytest.approx(found.seconds, abs=0.05))
    assert (kept["how"]["batch"], kept["how"]["checkpointing"]) == (2, True)
    assert kept["choices"][0] == {"name": "Base weights", "value": "4 bits", "why": "As set in the recipe."}
