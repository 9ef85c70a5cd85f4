"""Estimates: they move the right way, and stay near what was measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepdoctor import nano
from deepdoctor.checks import token_lengths
from deepdoctor.config import PRESETS, DatasetConfig, FinetuneConfig, ModelConfig
from deepdoctor.dataset import load_rows, map_columns, to_examples
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.estimates import (
    PROCESS_BYTES,
    QUICK_SECONDS,
    How,
    checkpoint_bytes,
    memory_of,
    padded_length,
    seconds_of,
    tokens_at_once,
    trainable_parameters,
)
from deepdoctor.plan import plan
from deepdoctor.preview import tokenizer_of
from deepdoctor.prompts import STYLES
from tests.planned import CPU, H200, LLAMA_8B, NANO, ROWS, how

ARTICLE = PRESETS["article"]
QUIET = FinetuneConfig(max_steps=60, held_out_rows=0, probe_steps=0)
GIB = 2**30


def a_step(model: ModelInfo, way: How) -> float:
    """Seconds of one optimizer step of 8 rows."""
    return (seconds_of(QUIET, model, way, ROWS) - seconds_of(QUIET.changed(max_steps=30, warmup_steps=0), model, way, ROWS)) / 30


@pytest.mark.parametrize(
    ("way", "measured"),
    [
        (how("bfloat16", 8, 1), 0.54),
        (how("bfloat16", 8, 1, attention="cudnn"), 1.46),
        (how("4bit", 2, 4, checkpointing=True), 1.25),
    ],
)
def test_a_step_of_the_8b_takes_what_was_measured_on_an_h200(way: How, measured: float) -> None:
    assert a_step(H200, way) == pytest.approx(measured, rel=0.3)


# of 370 to 1,091 tokens, 724 on average, behind each other
LONGER = [370 + round(index * 721 / 499) for index in range(500)]
MEASURED = [  # on an H100: seconds a step where arithmetic takes longer than launching, and the peak in GiB over a dozen of them
    (how("bfloat16", 8, 1, padded_to=0), 0.461, 38.2),
    (how("bfloat16", 4, 2, padded_to=0), None, 27.95),
    (how("bfloat16", 1, 8, padded_to=0), None, 19.7),
    (how("bfloat16", 8, 1, checkpointing=True, padded_to=0), 0.603, 17.9),
    (how("4bit", 8, 1, padded_to=0), 0.452, 28.7),
    (how("4bit", 2, 4, padded_to=0), None, 13.1),
    (how("4bit", 1, 8, padded_to=0), None, 10.2),
    (how("4bit", 8, 1, checkpointing=True, padded_to=0), 0.652, 7.1),
    (how("4bit", 2, 4, checkpointing=True, padded_to=0), None, 7.3),
]
LAUNCHED = [  # seconds a step in 4 bits on two machines where launching was measured: an H100's and an H200's
    (how("4bit", 1, 8, padded_to=0), {7.4e-6: 1.592, 7.1e-6: 1.74}),
    (how("4bit", 2, 4, padded_to=0), {7.4e-6: 0.812, 7.1e-6: 0.89}),
    (how("4bit", 2, 4, checkpointing=True, padded_to=0), {7.4e-6: 1.231, 7.1e-6: 1.249}),
    (how("4bit", 4, 2, checkpointing=True, padded_to=0), {7.4e-6: 0.678, 7.1e-6: 0.682}),
]


def a_longer_step(model: ModelInfo, way: How) -> float:
    """Seconds of one optimizer step of 8 of those rows."""
    sixty, thirty = (seconds_of(QUIET.changed(max_steps=steps), model, way, LONGER) for steps in (60, 30))
    return (sixty - thirty) / 30


@pytest.mark.parametrize(("way", "seconds", "gib"), MEASURED)
def test_rows_behind_each_other_take_what_was_measured(way: How, seconds: float | None, gib: float) -> None:
    measured = replace(H200, flops=760e12)
    if seconds is not None:
        assert a_longer_step(measured, way) == pytest.approx(seconds, rel=0.2)
    assert memory_of(QUIET, measured, way, LONGER) / GIB == pytest.approx(gib, rel=0.15)


@pytest.mark.parametrize(("way", "seconds"), LAUNCHED)
def test_small_batches_take_what_the_machine_takes_to_launch_them(way: How, seconds: dict[float, float]) -> None:
    for launch_seconds, measured in seconds.items():
        found = a_longer_step(replace(H200, flops=770e12, launch_seconds=launch_seconds), way)
        assert found == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    "more",
    [{"max_steps": 120}, {"held_out_rows": 200}, {"eval_steps": 5}, {"probe_steps": 5}, {"probe_questions": ("a", "b")}],
)
def test_more_work_takes_longer(more: dict[str, object]) -> None:
    less = FinetuneConfig(probe_questions=("a",))
    assert seconds_of(less.changed(**more), H200, how(), ROWS) > seconds_of(less, H200, how(), ROWS)


@pytest.mark.parametrize("way", [{"checkpointing": True}, {"padded_to": 128}, {"attention": "cudnn"}, {"precision": "4bit"}])
def test_what_saves_memory_or_builds_plans_takes_longer(way: dict[str, Any]) -> None:
    usual = how(batch=8, accumulation=1)
    assert seconds_of(ARTICLE, H200, replace(usual, **way), ROWS) > seconds_of(ARTICLE, H200, usual, ROWS)


def test_a_batch_takes_no_less_than_launching_it() -> None:
    one, two = (seconds_of(QUIET, H200, how(batch=1, accumulation=8, padded_to=0), [length] * 10) for length in (50, 100))
    assert one == two > seconds_of(QUIET, H200, how(batch=8, accumulation=1, padded_to=0), [100] * 10)


@pytest.mark.parametrize("multiple", [0, 1, 8])
@pytest.mark.parametrize("model", [H200, CPU])
def test_a_batch_holds_no_more_rows_than_there_are(model: ModelInfo, multiple: int) -> None:
    """Nine rows of the same length are computed at once, however many a batch might hold."""
    rows, recipe = [400] * 9, QUIET.changed(batch_size=256)
    nine, many = (how(batch=batch, accumulation=1, padded_to=multiple) for batch in (9, 256))
    assert tokens_at_once(rows, many) == tokens_at_once(rows, nine) == 9 * 400
    assert memory_of(recipe, model, many, rows) == memory_of(recipe, model, nine, rows)
    assert seconds_of(recipe, model, many, rows) == seconds_of(recipe, model, nine, rows)


def test_fewer_lengths_are_fewer_plans_for_cudnn() -> None:
    many, few = (seconds_of(ARTICLE, H200, how(attention="cudnn", padded_to=multiple), ROWS) for multiple in (1, 128))
    assert few < many


@pytest.mark.parametrize(
    ("recipe", "way"),
    [
        (QUIET.changed(lora_rank=64), how(checkpointing=True)),
        (QUIET.changed(optimizer="adamw_torch"), how(checkpointing=True)),
        (QUIET, how(batch=8, accumulation=1, checkpointing=True)),
        (QUIET, how()),
        (QUIET, how(checkpointing=True, padded_to=512)),
    ],
)
def test_more_state_takes_more_memory(recipe: FinetuneConfig, way: How) -> None:
    rows = [800] * 8
    assert memory_of(recipe, H200, way, rows) > memory_of(QUIET, H200, how(checkpointing=True), rows)


def test_memory_of_the_article_is_near_the_measured_run() -> None:
    found = memory_of(ARTICLE, LLAMA_8B, how("4bit", checkpointing=True), ROWS)
    assert 6 * GIB < found < 10 * GIB  # 7.8 with stock libraries


def test_8_bit_states_count_for_nothing_on_a_cpu() -> None:
    way = how("float32")
    assert memory_of(ARTICLE, CPU, way, [500]) == memory_of(ARTICLE.changed(optimizer="adamw_torch"), CPU, way, [500])
    assert memory_of(ARTICLE, CPU, way, [500]) > PROCESS_BYTES + 4 * CPU.parameters


def test_scores_of_attention_are_kept_on_a_cpu_only() -> None:
    few, many = replace(CPU, heads=8), replace(CPU, heads=32)
    assert memory_of(ARTICLE, many, how("float32"), [500]) > memory_of(ARTICLE, few, how("float32"), [500])
    assert memory_of(ARTICLE, replace(H200, heads=8), how(), [500]) == memory_of(ARTICLE, H200, how(), [500])


def test_the_peak_is_that_of_evaluation_where_a_step_needs_less() -> None:
    one, quiet = how("4bit", 1, 4, checkpointing=True), ARTICLE.changed(held_out_rows=0)
    assert 0.4 * GIB < memory_of(ARTICLE, LLAMA_8B, one, [60]) - memory_of(quiet, LLAMA_8B, one, [60]) < 1.5 * GIB
    large, rows = how("4bit", 16, 4, checkpointing=True), [800] * 16
    assert memory_of(ARTICLE, LLAMA_8B, large, rows) == memory_of(quiet, LLAMA_8B, large, rows)


def test_adapter_grows_with_rank() -> None:
    assert trainable_parameters(ARTICLE.changed(lora_rank=32), LLAMA_8B) == 2 * trainable_parameters(ARTICLE, LLAMA_8B)


def test_a_checkpoint_of_the_embedded_model_takes_the_disk_that_was_measured() -> None:
    tokenizer = Path(nano.__file__).parent / "model" / "tokenizer.json"
    found = checkpoint_bytes(PRESETS["quick"], replace(NANO, tokenizer_file=str(tokenizer)), 2)
    assert found == pytest.approx(5_457_000, rel=0.01)


def test_padding_goes_to_the_longest_row_of_the_batch() -> None:
    assert padded_length([10, 20, 30], 1) == pytest.approx(20)
    assert padded_length([10, 30], 2) == pytest.approx(25)
    assert 29.9 < padded_length([10, 20, 30], 50) <= 30
    assert padded_length([10, 30], 2, 16) == pytest.approx(28)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 2000), (2, 2000 + 119), (900, 900 * 119 + 3 * 187 * 30)])
def test_some_batch_holds_the_longest_row(batch: int, tokens: float) -> None:
    lengths = ([100] * 99 + [2000]) * 10
    way = How("bfloat16", batch, 1, False, padded_to=0)
    assert tokens_at_once(lengths, way) == pytest.approx(tokens, rel=0.02)
    assert tokens_at_once(lengths, replace(way, padded_to=8)) == batch * 2000


def test_rows_behind_each_other_take_no_padding() -> None:
    padded, in_line = how(batch=8, accumulation=1, padded_to=1), how(batch=8, accumulation=1, padded_to=0)
    rows = [100, 300, 500, 700, 900] * 20
    assert tokens_at_once(rows, padded) == 8 * 900
    assert 8 * 500 < tokens_at_once(rows, in_line) < 8 * 900
    assert tokens_at_once([700] * 8, in_line) == tokens_at_once([700] * 8, padded) == 8 * 700
    assert memory_of(ARTICLE, H200, in_line, rows) < memory_of(ARTICLE, H200, padded, rows)
    assert seconds_of(ARTICLE, H200, in_line, rows) < seconds_of(ARTICLE, H200, padded, rows)


def tokens(style: str) -> list[int]:
    """Tokens of the bundled rows."""
    tokenizer, eos = tokenizer_of(ModelConfig())
    rows = load_rows(DatasetConfig())
    return token_lengths(to_examples(rows.rows, map_columns(rows.columns, DatasetConfig())), tokenizer, eos, STYLES[style])["total"]


NOTHING_BESIDE = {"eval_steps": 0, "probe_steps": 0, "held_out_rows": 0}
MEASURED = [
    ({}, 56.5, 1.67),
    ({**NOTHING_BESIDE, "max_steps": 12, "batch_size": 2, "accumulation": 4, "batching": "as_set"}, 18.3, 0.905),
    ({**NOTHING_BESIDE, "max_steps": 10}, 15.4, 1.64),
    ({"max_steps": 10, "eval_steps": 5, "probe_steps": 0}, 18.6, 1.64),
    ({**NOTHING_BESIDE, "max_steps": 10, "batch_size": 1, "accumulation": 8, "batching": "as_set"}, 18.5, 0.76),
    ({**NOTHING_BESIDE, "max_steps": 10, "batch_size": 16}, 31.2, 2.80),
    (
        {**NOTHING_BESIDE, "max_steps": 12, "batch_size": 4, "held_out_rows": 8, "prompt_style": "native"},
        7.4,
        0.951,
    ),
]


@pytest.mark.parametrize(("changes", "seconds", "gib"), MEASURED)
def test_small_runs_take_what_was_measured_on_two_cores(changes: dict[str, object], seconds: float, gib: float) -> None:
    recipe = PRESETS["quick"].changed(**changes)
    found = plan(recipe, NANO, tokens(recipe.prompt_style))
    assert found.seconds == pytest.approx(seconds, rel=0.3)
    assert found.memory_bytes / GIB == pytest.approx(gib, rel=0.15)


def test_what_is_said_of_the_quick_run_everywhere_is_its_plan() -> None:
    assert plan(PRESETS["quick"], NANO, tokens("article")).seconds == pytest.approx(QUICK_SECONDS, rel=0.1)


def test_gpus_share_the_training_and_each_holds_the_gradients_twice() -> None:
    long = PRESETS["article"].changed(max_steps=2000, held_out_rows=0, probe_steps=0)
    one, two = (how(batch=1, accumulation=8 // devices, devices=devices) for devices in (1, 2))
    assert seconds_of(long, H200, two, ROWS) < 0.6 * seconds_of(long, H200, one, ROWS)
    assert memory_of(long, H200, two, ROWS) - memory_of(long, H200, one, ROWS) == 4 * trainable_parameters(long, H200)
    assert seconds_of(long, CPU, two, ROWS) >= seconds_of(long, CPU, one, ROWS), "processes share the cores"
