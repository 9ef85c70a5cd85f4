"""The planner: the recipe's rows a step always, never above the memory where it may choose, and what is set is taken."""

from dataclasses import replace
from itertools import product

import pytest

from deepdoctor.config import PRESETS, FinetuneConfig
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import ConfigError
from deepdoctor.estimates import How, memory_of
from deepdoctor.planner import USABLE, decide
from tests.planned import CPU, H200, LLAMA_8B, NANO, ROWS, T4

GIB = 2**30
AUTO = PRESETS["full_epoch"]
ARTICLE = PRESETS["article"]


def card(gib: float, model: ModelInfo = H200) -> ModelInfo:
    return replace(model, memory_bytes=round(gib * GIB))


def how(config: FinetuneConfig, model: ModelInfo, rows: list[int] | None = None) -> How:
    return decide(config, model, rows or ROWS)[0]


def why(config: FinetuneConfig, model: ModelInfo, name: str, rows: list[int] | None = None) -> str:
    (found,) = [choice.why for choice in decide(config, model, rows or ROWS)[1] if choice.name == name]
    return found


@pytest.mark.parametrize(("batch", "accumulation"), list(product((1, 2, 3, 7, 8, 256), (1, 4, 5, 1024))))
def test_the_rows_of_a_step_are_the_recipes_on_every_device(batch: int, accumulation: int) -> None:
    for batching, model in product(("auto", "as_set"), (H200, T4, card(6), card(24), card(48), NANO, CPU)):
        config = AUTO.changed(batch_size=batch, accumulation=accumulation, batching=batching)
        found = how(config, model)
        assert found.batch * found.accumulation == batch * accumulation == config.rows_per_step
        assert found.batch <= 256


@pytest.mark.parametrize("longest", [60, 700, 2048])
@pytest.mark.parametrize("gib", [4, 8, 10, 12, 15, 16, 20, 24, 32, 40, 48, 80, 140])
def test_what_may_be_chosen_is_never_planned_above_the_memory(gib: float, longest: int) -> None:
    model, rows = card(gib), [longest // 2, longest]
    found = how(AUTO, model, rows)
    least = How("4bit", 1, 8, True, padded_to=0)
    if memory_of(AUTO, model, least, rows) <= USABLE * model.memory_bytes:
        assert memory_of(AUTO, model, found, rows) <= USABLE * model.memory_bytes
    else:
        assert found == least


@pytest.mark.parametrize("smaller", [12, 20, 40])
def test_more_memory_never_gives_smaller_batches_of_the_same_kind(smaller: float) -> None:
    config = AUTO.changed(gradient_checkpointing="on", base_precision="4bit")
    assert how(config, card(2 * smaller)).batch >= how(config, card(smaller)).batch


def test_a_large_card_takes_all_rows_at_once_without_checkpointing() -> None:
    found = how(AUTO, H200)
    assert (found.precision, found.batch, found.accumulation, found.checkpointing) == ("bfloat16", 8, 1, False)
    assert "All rows of a step at once fit" in why(AUTO, H200, "Batch size × accumulation")
    assert "half as much arithmetic again" in why(AUTO, H200, "Checkpointing")


def test_batches_shrink_before_anything_is_computed_again() -> None:
    found = how(AUTO, card(40))
    assert (found.precision, found.checkpointing) == ("bfloat16", False)
    assert 1 < found.batch < 8
    assert "The largest that fits" in why(AUTO, card(40), "Batch size × accumulation")


def test_checkpointing_where_even_one_row_does_not_fit_without() -> None:
    long = [2000, 2048]
    found = how(AUTO, card(26), long)
    assert (found.precision, found.checkpointing) == ("bfloat16", True)
    assert "Without it even one row" in why(AUTO, card(26), "Checkpointing", long)


def test_checkpointing_where_it_is_faster_than_batches_of_one_row() -> None:
    quickly_computed = replace(card(8), parameters=200_000_000)
    found = how(AUTO, quickly_computed)
    assert (found.precision, found.batch, found.checkpointing) == ("bfloat16", 8, True)
    assert "so small would fit" in why(AUTO, quickly_computed, "Checkpointing")


def test_four_bits_where_16_do_not_fit() -> None:
    assert how(AUTO, card(15)).precision == "4bit"
    assert "In 16 bits even one row at once would need" in why(AUTO, card(15), "Base weights")
    assert how(AUTO, replace(card(15), backend="transformers")).precision == "bfloat16"


def test_under_15_gib_all_rows_at_once_are_faster_than_keeping_activations_of_one() -> None:
    found = how(AUTO, card(15))
    assert (found.precision, found.batch, found.checkpointing) == ("4bit", 8, True)
    assert "so small would fit" in why(AUTO, card(15), "Checkpointing")


def test_the_smallest_is_told_where_nothing_fits() -> None:
    found = how(AUTO, card(4))
    assert (found.precision, found.batch, found.checkpointing) == ("4bit", 1, True)
    assert "The smallest there is" in why(AUTO, card(4), "Batch size × accumulation")


@pytest.mark.parametrize("model", [H200, T4, card(4)])
def test_the_article_is_computed_as_published(model: ModelInfo) -> None:
    found = how(ARTICLE, model)
    assert (found.precision, found.batch, found.accumulation, found.checkpointing) == ("4bit", 2, 4, True)
    for name in ("Base weights", "Batch size × accumulation", "Checkpointing"):
        assert why(ARTICLE, model, name) == "As set in the recipe."


@pytest.mark.parametrize(
    ("changes", "part", "value"),
    [
        ({"batching": "as_set", "batch_size": 1, "accumulation": 8}, "batch", 1),
        ({"gradient_checkpointing": "on"}, "checkpointing", True),
        ({"base_precision": "4bit"}, "precision", "4bit"),
        ({"base_precision": "16bit"}, "precision", "bfloat16"),
        ({"attention": "cudnn"}, "attention", "cudnn"),
        ({"padded_to": 64}, "padded_to", 64),
        ({"padded_to": 1}, "padded_to", 1),
        ({"loader_workers": 2}, "workers", 2),
    ],
)
def test_what_is_set_is_taken_and_said_to_be(changes: dict[str, object], part: str, value: object) -> None:
    config = AUTO.changed(**changes)
    assert getattr(how(config, H200), part) == value
    reasons = [choice.why for choice in decide(config, H200, ROWS)[1]]
    assert reasons.count("As set in the recipe.") == 1


def test_checkpointing_off_is_taken_even_where_it_does_not_fit() -> None:
    config = AUTO.changed(gradient_checkpointing="off")
    assert not how(config, card(4)).checkpointing


def test_cudnn_is_used_only_when_asked_and_then_with_few_lengths() -> None:
    assert (how(AUTO, H200).attention, how(AUTO, H200).padded_to) == ("pytorch", 0)
    found = how(AUTO.changed(attention="cudnn"), H200)
    assert (found.attention, found.padded_to) == ("cudnn", 128)
    assert "at most 4 different lengths" in why(AUTO.changed(attention="cudnn"), H200, "Padding")


def test_rows_stand_one_behind_the_other_where_unsloth_trains() -> None:
    assert how(AUTO, H200).padded_to == 0
    assert "would be padding" in why(AUTO, H200, "Padding")
    assert how(AUTO, replace(H200, backend="transformers")).padded_to == 8
    assert how(AUTO.changed(padded_to=1), H200).padded_to == 1


@pytest.mark.parametrize("device", ["CPU (2 cores)", "MPS"])
def test_what_only_a_gpu_can_do_is_not_planned_elsewhere(device: str) -> None:
    asked = ARTICLE.changed(attention="cudnn")
    found = how(asked, replace(CPU, device=device))
    assert found == How("float32", 2, 4, False, "pytorch", 1)
    assert how(AUTO, NANO) == How("float32", 8, 1, False, "pytorch", 1)


@pytest.mark.parametrize(
    ("held", "backend", "wanted", "trains_in"),
    [
        ("bfloat16", "unsloth", "4bit", "4bit"),
        ("bfloat16", "unsloth", "auto", "bfloat16"),
        ("float16", "unsloth", "16bit", "float16"),
        ("4bit", "unsloth", "auto", "4bit"),
        ("4bit", "unsloth", "16bit", "16bit"),
        ("bfloat16", "transformers", "4bit", "bfloat16"),
        ("float32", "transformers", "4bit", "float32"),
    ],
)
def test_the_precision_is_that_of_the_training_not_of_what_is_loaded(held: str, backend: str, wanted: str, trains_in: str) -> None:
    model = replace(LLAMA_8B, precision=held, backend=backend)
    assert how(ARTICLE.changed(base_precision=wanted), model).precision == trains_in


@pytest.mark.parametrize("model", [H200, card(15), card(4), NANO])
def test_every_choice_has_its_reason_in_one_line(model: ModelInfo) -> None:
    for choice in decide(AUTO, model, ROWS)[1]:
        assert choice.value
        assert choice.why.endswith(".")
        assert len(choice.why) < 130
        assert "\n" not in choice.why


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 4), (8, 1), (1, 8), (3, 8), (16, 16)])
@pytest.mark.parametrize("batching", ["auto", "as_set"])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_several_gpus_share_the_recipes_rows(devices: int, batching: str, batch: int, accumulation: int) -> None:
    for each, model in product((False, True), (H200, T4, card(12), CPU)):
        given = {"batch_size": batch, "accumulation": accumulation, "batching": batching, "devices": devices, "rows_per_device": each}
        config = AUTO.changed(**given)
        found = how(config, replace(model, devices=8))
        assert found.devices == devices
        assert found.batch * found.accumulation * devices == config.rows_per_step == batch * accumulation * (devices if each else 1)
        assert batching == "auto" or found.batch <= batch


def test_gpus_are_told_where_there_are_several() -> None:
    eight = replace(H200, devices=8)
    assert "GPUs" not in [choice.name for choice in decide(ARTICLE, H200, ROWS)[1]]
    assert decide(ARTICLE, eight, ROWS)[1][-1].value == "1 of 8"
    shared = decide(ARTICLE.changed(devices=4), eight, ROWS)[1][-1]
    assert (shared.name, shared.value) == ("GPUs", "4 of 8")
    assert shared.why.startswith("2 rows of each step on each, 8 together")
    assert why(ARTICLE.changed(devices=4, rows_per_device=True), eight, "GPUs").startswith("8 rows of each step on each, 32 together")
    assert why(ARTICLE.changed(devices=8), eight, "GPUs").startswith("1 row of each step on each, 8 together")
    assert why(ARTICLE.changed(devices=8), eight, "Batch size × accumulation") == "The recipe's rows, shared by 8."
    assert why(ARTICLE.changed(devices=2), eight, "Batch size × accumulation") == "As set in the recipe."
    assert "no faster" in why(ARTICLE.changed(devices=2), replace(NANO, devices=2), "GPUs")


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^GPUs: this machine has 1 \(given: 2\)\.$") as refused:
        decide(ARTICLE.changed(devices=2), H200, ROWS)
    assert refused.value.field == "devices"


def test_a_larger_batch_that_would_fit_but_be_slower_is_told_as_that() -> None:
    """On a CPU rows are padded to the longest of their batch, and a few long ones would slow all."""
    rows, roomy = [60] * 90 + [900] * 10, card(20, NANO)
    found = how(AUTO, roomy, rows)
    assert found.batch < AUTO.rows_per_step
    assert memory_of(AUTO, roomy, replace(found, batch=8, accumulation=1), rows) <= USABLE * 20 * 2**30
    told = [choice.why for choice in decide(AUTO, roomy, rows)[1] if choice.name.startswith("Batch")]
    assert told[0].startswith(f"Faster than larger ones: {2 * found.batch} rows at once would be padded to the longest of them.")
