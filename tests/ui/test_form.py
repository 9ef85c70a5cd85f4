"""The form: every setting of any Config class has an input, and what is wrong is told at it."""

import gradio as gr
import pytest

from deepdoctor.config import PRESETS, DatasetConfig, FinetuneConfig, ModelConfig, SamplingConfig, Settings
from deepdoctor.errors import ConfigError
from deepdoctor.ui.form import Form, build_form, problems_of, settings_of
from tests.ui.fakes import in_event_loop

CLASSES = [FinetuneConfig, SamplingConfig, DatasetConfig, ModelConfig, Settings]


def form_of(cls: type = FinetuneConfig, without: tuple[str, ...] = ("preset",)) -> Form:
    def made() -> Form:
        with gr.Blocks():
            return build_form(cls(), without=without)

    return in_event_loop(made)


def shown(form: Form, config: FinetuneConfig) -> list[object]:
    return [update["value"] for update in form.show(config)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_has_an_input_with_its_title_and_description(cls: type) -> None:
    form = form_of(cls, ())
    assert [setting.name for setting in form.settings] == list(cls.model_fields)
    for setting, made in zip(form.settings, form.inputs, strict=True):
        assert made.label == cls.model_fields[setting.name].title
        assert cls.model_fields[setting.name].description in made.info


def test_kinds_follow_the_types() -> None:
    kinds = {setting.name: setting.kind for setting in settings_of(FinetuneConfig)}
    assert kinds["max_steps"] == "integer"
    assert kinds["learning_rate"] == "number"
    assert kinds["use_rslora"] == "switch"
    assert kinds["supervision"] == "choice"
    assert kinds["probe_questions"] == "lines"
    assert kinds["wandb_project"] == "text"
    optional = {setting.name: setting.empty for setting in settings_of(DatasetConfig)}
    assert optional["first_rows"]
    assert not optional["split"]


def test_bounds_are_told_beforehand() -> None:
    bounds = {setting.name: setting.bounds for setting in settings_of(FinetuneConfig)}
    assert bounds["batch_size"] == "1 to 256"
    assert bounds["learning_rate"] == "above 0 to 1"
    assert bounds["lora_dropout"] == "0 to below 1"


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_the_form(name: str) -> None:
    form = form_of()
    config = PRESETS[name].changed(probe_questions=("First?", "Second?"))
    assert form.read(shown(form, config), {"preset": name}) == config


def test_an_empty_optional_text_is_none() -> None:
    form = form_of(DatasetConfig, ())
    config = DatasetConfig(path=None, first_rows=None)
    assert form.read(shown(form, config)) == config


def test_all_wrong_settings_are_told_each_at_its_own() -> None:
    values = {"batch_size": 300, "learning_rate": 0, "max_steps": 2.5, "optimizer": "sgd"}
    found = problems_of(FinetuneConfig, values)
    assert set(found) == set(values)
    assert "256" in found["batch_size"]
    assert "300" in found["batch_size"]


def test_an_emptied_number_is_told() -> None:
    assert set(problems_of(FinetuneConfig, {"lora_rank": None})) == {"lora_rank"}


def test_settings_that_do_not_fit_together_are_told_at_the_one_named_first() -> None:
    assert set(problems_of(FinetuneConfig, {"warmup_steps": 50, "max_steps": 10})) == {"warmup_steps"}


def test_what_belongs_to_no_setting_is_told_apart() -> None:
    found = problems_of(FinetuneConfig, {"learning_speed": 1, "batch_size": 300})
    assert "learning_speed" in found[""]


def test_right_values_have_no_problems() -> None:
    assert problems_of(FinetuneConfig, PRESETS["quick"].model_dump()) == {}


def test_a_problem_replaces_the_description_and_goes_again() -> None:
    form = form_of()
    index = [setting.name for setting in form.settings].index("batch_size")
    problem = {"batch_size": "Batch size: too <large>"}
    wrong = form.tell(problem, {})[index]
    assert "Too ‹large›" in wrong["info"]
    assert "dd-wrong" in wrong["elem_classes"]
    assert "value" not in wrong
    mended = form.tell({}, problem)[index]
    assert "dd-wrong" not in mended["elem_classes"]
    assert "Rows computed at once" in mended["info"]


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        form_of().read([1])


def test_reading_wrong_values_raises_the_users_error() -> None:
    form = form_of()
    values = shown(form, PRESETS["article"])
    values[[setting.name for setting in form.settings].index("epochs")] = 0
    with pytest.raises(ConfigError, match="Epochs"):
        form.read(values)


def test_inputs_whose_message_stays_are_not_touched() -> None:
    form = form_of()
    problem = {"batch_size": "Batch size: too large"}
    assert all("info" not in update for update in form.tell(problem, problem))
    assert sum("info" in update for update in form.tell(problem, {})) == 1


def test_the_form_starts_with_the_values_it_is_given() -> None:
    def made() -> Form:
        with gr.Blocks():
            return build_form(PRESETS["quick"])

    form = in_event_loop(made)
    values = {setting.name: shown.value for setting, shown in zip(form.settings, form.inputs, strict=True)}
    assert values["learning_rate"] == PRESETS["quick"].learning_rate
