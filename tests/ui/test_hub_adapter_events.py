"""An adapter of the Hub on the compare tab, with a loopback Hub and a fed engine: fetched, chosen, asked, and told what is not known."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from deepdoctor.config import ModelConfig, SamplingConfig
from deepdoctor.engine.protocol import Compare
from deepdoctor.ui import history
from deepdoctor.ui.choices import FINAL
from deepdoctor.ui.compare_events import Handlers
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import build_form
from deepdoctor.ui.hub_adapter_events import HubAdapterEvents
from tests.loopback_hub import LoopbackHub
from tests.made_export import adapter_files
from tests.ui.fakes import QUESTION, FakeEngine, fake_comparison, fake_context, fake_run, in_event_loop

SAMPLING = (0.6, 0.95, 0, 0.0, 1.0, 1200, 3407)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    return fake_context(tmp_path / "data")


@pytest.fixture
def handlers(context: Context) -> Handlers:
    def form() -> Any:
        with gr.Blocks(analytics_enabled=False):
            return build_form(SamplingConfig())

    return Handlers(context, in_event_loop(form), {})


def fetched(handlers: Handlers, repo: str = "owner/lora", revision: str = "") -> list[list[Any]]:
    return list(HubAdapterEvents(handlers).fetch(repo, revision))


def test_it_is_fetched_and_chosen_beside_the_runs(loopback_hub: LoopbackHub, handlers: Handlers, context: Context) -> None:
    run = fake_run(context.settings.data_dir)
    commit = loopback_hub.add_repo("owner/lora", adapter_files()).commits[-1].id
    before = handlers.fingerprint(None)
    first, *_, (words, choice) = fetched(handlers)
    assert "Looking for owner/lora on the Hub" in first[0]
    assert commit[:12] in words
    assert "What it was trained on is not known" in words
    found = f"hub--owner--lora--{commit[:12]}"
    assert choice["value"] == found
    assert [value for _label, value in choice["choices"]] == [run.id, found]
    assert choice["choices"][1][0] == "owner/lora (Hub)"
    assert handlers.fingerprint(None) != before, "other viewers see it too"
    _, empty, form, runs, steps, also, style, _, needs, load = handlers.refresh(found, None, [], None)
    assert (empty["visible"], form["visible"], runs["value"]) == (False, True, found)
    assert steps["value"] == FINAL
    assert not also["visible"], "an adapter of the Hub has no checkpoints"
    assert style == gr.skip()
    assert "says that it was made for owner/base, not for nano" in needs["value"]
    assert not load["visible"]


def test_a_question_asks_it_and_the_comparison_is_called_after_it(loopback_hub: LoopbackHub, handlers: Handlers, context: Context) -> None:
    loopback_hub.add_repo("owner/lora", adapter_files())
    (found,) = [fetched(handlers)[-1][1]["value"]]
    final = context.comparisons.save(fake_comparison(run=found, seen={"grade": "unknown"}))
    assert isinstance(context.engine, FakeEngine)
    context.engine.feed([final])
    *_, last = handlers.answers(None, QUESTION, found, FINAL, [], "article", *SAMPLING)
    assert context.engine.asked == [Compare(QUESTION, found, None, SamplingConfig(), "article")]
    assert last[3]["tuned"]["source"] == "owner/lora (Hub), final adapter"
    assert "Not known" in last[5]
    assert "nseen" not in last[5]
    assert "owner/lora (Hub)" in history.saved(context)
    for file in context.adapters.get(found).path.iterdir():
        file.unlink()
    assert handlers.saved_values(None, final.id)[0]["tuned"]["source"].startswith(f"{found} (deleted)")


@pytest.mark.parametrize(
    ("repo", "words"),
    [("", "Give the adapter&#x27;s name"), ("owner/<b>", "Expected owner/name"), ("owner/none", "There is no model owner/none")],
)
@pytest.mark.usefixtures("loopback_hub")
def test_what_cannot_be_fetched_is_told_in_place(repo: str, words: str, handlers: Handlers) -> None:
    told, choice = fetched(handlers, repo)[-1]
    assert words in told
    assert 'class="dd-note bad"' in told
    assert "<b>" not in told
    assert choice == gr.skip()


def test_one_made_for_the_base_in_use_needs_no_warning(loopback_hub: LoopbackHub, handlers: Handlers, context: Context) -> None:
    loopback_hub.add_repo("owner/lora", adapter_files(base_model_name_or_path="owner/base"))
    context.engine.model = ModelConfig(name="owner/base")
    words, choice = fetched(handlers)[-1]
    assert 'class="dd-note ok"' in words
    assert not handlers.needs(context.side(choice["value"]))[0]["visible"]


def test_the_chosen_one_is_removed_and_runs_are_not(loopback_hub: LoopbackHub, handlers: Handlers, context: Context) -> None:
    run = fake_run(context.settings.data_dir)
    loopback_hub.add_repo("owner/lora", adapter_files())
    found = fetched(handlers)[-1][1]["value"]
    events = HubAdapterEvents(handlers)
    for chosen in (run.id, None):
        words, choice = events.remove(chosen)
        assert "Choose an adapter of the Hub" in words
        assert choice == gr.skip()
    before = handlers.fingerprint(None)
    words, choice = events.remove(found)
    assert "owner/lora (Hub) was removed. Comparisons made with it stay" in words
    assert ([value for _label, value in choice["choices"]], choice["value"]) == ([run.id], run.id)
    assert context.adapters.list() == []
    assert handlers.fingerprint(None) != before
    words, choice = events.remove(found)
    assert "There is no adapter" in words
    assert 'class="dd-note bad"' in words
    assert [each.id for each in context.runs.list()] == [run.id]


def test_a_comparison_with_a_folder_is_called_after_it(handlers: Handlers, context: Context) -> None:
    made = context.comparisons.save(fake_comparison(run="folder--lora", seen={"grade": "unknown"}))
    assert handlers.saved_values(None, made.id)[0]["tuned"]["source"].startswith("lora (folder, asked from the command line)")
