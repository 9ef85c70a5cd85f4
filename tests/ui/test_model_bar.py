"""The fold that chooses the base model: what is told before, loading and its refusals, and what it shows afterwards."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from deepdoctor.catalogue import KNOWN
from deepdoctor.config import ModelConfig, Settings
from deepdoctor.engine.protocol import EngineState
from deepdoctor.errors import ModelError
from deepdoctor.ui import page
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import build_form
from deepdoctor.ui.model_events import GIB, ModelEvents, names_folder, what_it_takes
from tests.studies.prepared import created
from tests.ui.fakes import NANO, READY, FakeEngine, fake_context, fake_run, in_event_loop

B8, B70 = KNOWN[0].name, KNOWN[5].name
UNTOUCHED = ("auto", "", None)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return fake_context(tmp_path / "data")


def events_of(context: Context) -> ModelEvents:
    def made() -> ModelEvents:
        with gr.Blocks(analytics_enabled=False):
            return ModelEvents(context, build_form(ModelConfig(), without=("name",)))

    return in_event_loop(made)


@pytest.fixture
def events(context: Context) -> ModelEvents:
    return events_of(context)


def engine(context: Context) -> FakeEngine:
    assert isinstance(context.engine, FakeEngine)
    return context.engine


def notices(told: Iterator[list[Any]]) -> list[str]:
    """What stands in the notice one after the other; a refusal that is raised at the end must stand there too."""
    found: list[str] = []
    refused = ""
    try:
        for shown in told:
            found.append(shown[0])
    except gr.Error as error:
        refused = str(error.message)
    assert refused in found[-1]
    assert ("dd-note bad" in found[-1]) is bool(refused)
    return found


def test_the_fold_offers_nano_and_the_catalogue_and_takes_other_names(context: Context) -> None:
    config = in_event_loop(lambda: page.build_app(context).get_config_file())
    (fold,) = [each["props"] for each in config["components"] if each["props"].get("elem_id") == "dd-model"]
    assert (fold["label"], fold["open"]) == ("Model", False)
    (names,) = [each["props"] for each in config["components"] if each["props"].get("elem_id") == "dd-base-model"]
    assert [value for _label, value in names["choices"]] == ["nano", *(each.name for each in KNOWN)]
    assert names["allow_custom_value"]
    assert "a folder of this machine" in names["info"]


def test_basic_settings_stand_first(events: ModelEvents) -> None:
    assert [(each.name, each.basic) for each in events.form.settings] == [
        ("precision", True),
        ("revision", False),
        ("gpu_memory_gib", False),
    ]


def test_a_chosen_model_is_loaded_with_its_settings(events: ModelEvents, context: Context) -> None:
    loading, done = notices(events.load(None, B8, "4bit", " v2 ", 15.0))
    assert f"Loading {B8} …" in loading
    assert f"Loaded {B8}." in done
    assert engine(context).loaded == [ModelConfig(name=B8, precision="4bit", revision="v2", gpu_memory_gib=15.0)]
    assert context.engine.model.name == B8
    assert all('role="status"' in each for each in (loading, done))


def test_a_wrong_id_is_told_in_place_and_the_former_stays(events: ModelEvents, context: Context) -> None:
    engine(context).feed_load(ModelError("There is no model <b>a</b>/b on the Hub."))
    *_, last = notices(events.load(None, "<b>a</b>/b", *UNTOUCHED))
    assert "There is no model &lt;b&gt;a&lt;/b&gt;/b on the Hub. nano is still loaded." in last
    assert context.engine.model.name == "nano"
    assert f"Loaded {B8}" in notices(events.load(None, B8, *UNTOUCHED))[-1]


def test_that_the_former_was_loaded_again_is_said_once(events: ModelEvents, context: Context) -> None:
    engine(context).feed_load(ModelError(f"The model {B8} does not fit; nano was loaded again."))
    assert "still loaded" not in notices(events.load(None, B8, *UNTOUCHED))[-1]
    engine(context).feed_load(ModelError("The model is damaged. Fetch it again."))
    assert "Fetch it again. nano is still loaded." in notices(events.load(None, B8, *UNTOUCHED))[-1]


def test_a_busy_engine_is_said_to_end_its_work_first(events: ModelEvents, context: Context) -> None:
    engine(context).state = replace(READY, phase="busy", doing="exporting")
    assert "First the engine ends exporting. Loading" in notices(events.load(None, B8, *UNTOUCHED))[0]


def test_no_model_takes_the_place_of_one_that_trains_or_prepares(events: ModelEvents, context: Context) -> None:
    run = fake_run(context.settings.data_dir, "long one", "running")
    assert "Run long one is training with the loaded model." in notices(events.load(None, B8, *UNTOUCHED))[-1]
    run.set_status(state="stopped")
    study = created(context.settings.data_dir, 2)
    assert f"The answers of {study.name} are being prepared" in notices(events.load(None, B8, *UNTOUCHED))[-1]
    study.set_status(state="interrupted")
    assert engine(context).loaded == []
    assert "Loaded" in notices(events.load(None, B8, *UNTOUCHED))[-1]


@pytest.mark.parametrize("name", [None, "", "  "])
def test_nothing_chosen_is_told(events: ModelEvents, context: Context, name: str | None) -> None:
    assert "Choose a base model" in notices(events.load(None, name, *UNTOUCHED))[-1]
    assert engine(context).loaded == []


def test_a_wrong_setting_is_told_at_its_input(events: ModelEvents, context: Context) -> None:
    told = list_until_raised(events.load(None, B8, "auto", "", -1.0))
    assert "dd-wrong" in told[0][3]["elem_classes"]
    assert "above 0" in told[0][3]["info"]
    assert "Not loaded" in told[-1][0]
    assert engine(context).loaded == []


def list_until_raised(told: Iterator[list[Any]]) -> list[list[Any]]:
    found: list[list[Any]] = []
    with pytest.raises(gr.Error):
        found.extend(told)
    return found


def elsewhere(tmp_path: Path) -> Context:
    """The page of an app that others reach, with a login."""
    return replace(fake_context(tmp_path / "data"), settings=Settings(data_dir=tmp_path / "data", login="name:password"))


def test_folders_are_named_on_ones_own_machine_only(
    events: ModelEvents, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert "Loaded" in notices(events.load(None, "owner/model", *UNTOUCHED))[-1]
    assert engine(context).loaded[-1].name == str(tmp_path / "owner" / "model"), "whole, so that the run finds it from elsewhere"
    other = elsewhere(tmp_path)
    for name in ("owner/model", str(tmp_path), "./owner/model", "~/model", "/etc"):
        assert "cannot be named from elsewhere" in notices(events_of(other).load(None, name, *UNTOUCHED))[-1], name
    assert engine(other).loaded == []
    assert "Loaded nano" in notices(events_of(other).load(None, "nano", *UNTOUCHED))[-1]


@pytest.mark.parametrize("name", ["a" * 5000, "owner/mo\0del", "~nobody-of-that-name/x"])
def test_odd_names_are_no_folders_or_told_as_such(events: ModelEvents, name: str) -> None:
    assert names_folder(name) is name.startswith("~")
    assert "Loaded" in notices(events.load(None, name, *UNTOUCHED))[-1], "what the Hub thinks of it is another matter"


def test_whoever_may_not_is_refused_before_all_else(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", host="0.0.0.0")
    closed = replace(fake_context(tmp_path / "data"), settings=settings)
    assert "You may not load a model here." in notices(events_of(closed).load(None, "", None, None, None))[-1]
    assert engine(closed).loaded == []


def test_the_fold_shows_what_is_loaded_and_follows(events: ModelEvents, context: Context) -> None:
    known, name, takes, precision, *_ = events.current()
    assert (name["value"], precision["value"]) == ("nano", "auto")
    assert "MiB of weights" in takes
    assert events.follow(known) == events.follow("") == gr.skip()
    context.engine.load(ModelConfig(name=B8, precision="float16"))
    known, name, _takes, precision, *_ = events.follow(known)
    assert (name["value"], precision["value"]) == (B8, "float16")
    assert events.follow(known) == gr.skip()


def test_the_fold_learns_the_memory_when_the_engine_has_started(tmp_path: Path) -> None:
    context = fake_context(tmp_path, EngineState())
    events = events_of(context)
    known, *_ = events.current()
    assert "GiB" not in events.takes("nano", *UNTOUCHED)
    engine(context).state = READY
    assert "This machine has 8.0 GiB" in events.follow(known)[2]


def test_what_is_typed_is_never_markup(events: ModelEvents) -> None:
    assert "<b>" not in events.takes("<b>x</b>", *UNTOUCHED)
    assert events.takes("", *UNTOUCHED) == ""


T4, L4, H200 = (
    replace(NANO, device=f"NVIDIA {name}", memory_bytes=round(gib * GIB)) for name, gib in (("T4", 14.6), ("L4", 22.0), ("H200", 139.8))
)
# model, precision, most GiB, engine's device: words, and whether they warn
TAKES = {
    "nano on a CPU": ("nano", "auto", None, NANO, "About 19 MiB of weights in 32 bits. This machine has 8.0 GiB.", ""),
    "8B, engine not there yet": (B8, "auto", None, None, "About 14.9 GiB of weights in 16 bits. Its files, about 16 GB", ""),
    "8B on a CPU": (
        B8,
        "auto",
        None,
        NANO,
        "About 29.8 GiB of weights in 32 bits. This machine has 8.0 GiB: too little. Choose a smaller",
        "warn",
    ),
    "1.5B on a CPU": (
        KNOWN[1].name,
        "bfloat16",
        None,
        NANO,
        "About 3.4 GiB of weights in 16 bits. This machine has 8.0 GiB. Its files",
        "",
    ),
    "4 bits on a CPU": (B8, "4bit", None, NANO, "4 bits need an NVIDIA GPU", "warn"),
    "8B on a T4": (
        B8,
        "auto",
        None,
        T4,
        "About 4.5 GiB of weights in 4 bits. The GPU has 14.6 GiB. Its files packed in 4 bits (unsloth/.*-bnb-4bit), about 6 GB, are",
        "",
    ),
    "8B in 16 bits on a T4": (
        B8,
        "float16",
        None,
        T4,
        "About 14.9 GiB of weights in 16 bits. The GPU has 14.6 GiB: too little.* 4 bits",
        "warn",
    ),
    "8B on an L4": (B8, "auto", None, L4, "About 14.9 GiB of weights in 16 bits. The GPU has 22.0 GiB. Its", ""),
    "8B in 16 bits, tight": (B8, "bfloat16", 18.0, L4, "Of the GPU it may use 18.0 GiB: enough to compare, but hardly to train", "warn"),
    "8B, 15 GiB allowed": (B8, "auto", 15.0, H200, "About 4.5 GiB of weights in 4 bits. Of the GPU it may use 15.0 GiB", ""),
    "70B on an H200": (B70, "4bit", None, H200, "About 39.5 GiB of weights in 4 bits. The GPU has 139.8 GiB. Its files, about 141 GB", ""),
    "70B on an L4": (B70, "auto", None, L4, "in 4 bits. The GPU has 22.0 GiB: too little. Choose a smaller model.$", "warn"),
    "nano on a GPU": ("nano", "auto", None, H200, "About 19 MiB of weights in 32 bits. The GPU has 139.8 GiB.", ""),
    "not in the catalogue": ("owner/model", "auto", None, L4, "A parameter takes 4 bytes.* The GPU has 22.0 GiB", ""),
    "not in the catalogue, no engine": ("owner/model", "auto", None, None, "good half in 4 bits. Files are downloaded", ""),
}


@pytest.mark.parametrize("case", TAKES)
def test_what_a_model_takes_is_told_against_what_there_is(case: str) -> None:
    name, precision, most, device, expected, kind = TAKES[case]
    words, told_as = what_it_takes(ModelConfig.of({"name": name, "precision": precision, "gpu_memory_gib": most}), device)
    assert re.search(expected.replace("(", r"\(").replace(")", r"\)"), words), words
    assert told_as == kind
