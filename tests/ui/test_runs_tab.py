"""The runs tab's handlers over real run folders and a fed engine."""

import zipfile
from pathlib import Path

import gradio as gr
import pytest

from deepdoctor.config import PRESETS, DatasetConfig, ModelConfig
from deepdoctor.engine.protocol import Export
from deepdoctor.errors import RunError
from deepdoctor.prompts import ARTICLE
from deepdoctor.runs import Run
from deepdoctor.tokens import SUPERVISION
from deepdoctor.ui import run_view, runs_tab
from deepdoctor.ui.context import Context
from deepdoctor.ui.runs_events import RunsEvents, details, overlay, runs_table
from tests.ui.fakes import FakeEngine, fake_context, fake_run, in_event_loop

NONE = {"open": "", "compare": []}
SKIPPED = gr.skip()


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return fake_context(tmp_path)


@pytest.fixture
def events(context: Context) -> RunsEvents:
    return RunsEvents(context)


def opened(run: Run) -> dict[str, object]:
    return {"open": run.id, "compare": []}


def event(**data: object) -> gr.EventData:
    return gr.EventData(None, data)


def test_the_tab_builds(context: Context) -> None:
    def made() -> gr.Blocks:
        with gr.Blocks(analytics_enabled=False) as page, gr.Tabs(), gr.Tab("Runs") as tab:
            runs_tab.build(context, gr.State(DatasetConfig().model_dump()), tab)
        return page

    shown = {getattr(block, "value", None) for block in in_event_loop(made).blocks.values() if isinstance(block, gr.Button)}
    assert {"Rename", "Resume", "Delete", "Export", "Delete for good", "Keep it", "Push"} <= shown


def test_an_empty_list_says_how_to_fill_it(events: RunsEvents) -> None:
    assert "Train tab" in events.refresh(NONE, ())[0]


def test_the_list_tells_each_run(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "quick one")
    table = runs_table([run], NONE)
    for part in ("quick one", "finished", "nano", "quick", "60 of 60", "1.000", "1.125"):
        assert part in table


def test_only_what_changed_is_sent(events: RunsEvents, tmp_path: Path) -> None:
    first, second = fake_run(tmp_path, "first"), fake_run(tmp_path, "second", "stopped")
    chosen = opened(first)
    seen = events.refresh(chosen, ())[-1]
    assert events.refresh(chosen, seen) == SKIPPED
    second.set_status(message="Waiting")
    drawn = events.refresh(chosen, seen)
    assert "first" in drawn[0]
    assert all(update == SKIPPED for update in drawn[1:-1])


def test_a_run_is_opened_by_its_name(events: RunsEvents, tmp_path: Path) -> None:
    run = fake_run(tmp_path, "mine", "stopped")
    chosen, name, *_, repo, _pushed = events.pick(NONE, event(open=run.id))
    assert (chosen, name, repo) == (opened(run), "mine", f"owner/nano-medical-{run.id[-4:]}")
    _, _, part, shown, settings, log, resume, delete, _ = events.refresh(chosen, ())
    assert part["visible"]
    assert "Held out" in shown
    assert "Learning rate" in settings
    assert "A line of the log" in log
    assert (resume["visible"], delete["visible"]) == (True, True)


def test_a_run_that_is_gone_is_told(events: RunsEvents) -> None:
    with pytest.raises(gr.Error, match="There is no run"):
        events.pick(NONE, event(open="../../etc"))


def test_ticked_runs_are_laid_over_each_other(events: RunsEvents, tmp_path: Path) -> None:
    one = fake_run(tmp_path, "one")
    two = fake_run(tmp_path, "two", finetune=PRESETS["quick"].changed(lora_rank=32))
    chosen, *_ = events.pick(NONE, event(compare=[one.id, two.id, "unknown"]))
    assert chosen["compare"] == [one.id, two.id]
    shown = events.refresh(chosen, ())[1]
    assert shown.count("<figure") == 2
    assert "one from" in shown
    assert "two from" in shown
    assert overlay([one]) == ""


def test_only_differing_settings_are_marked(tmp_path: Path) -> None:
    one = fake_run(tmp_path, "one")
    two = fake_run(tmp_path, "two", finetune=PRESETS["quick"].changed(lora_rank=32))
    marked, same = run_view.settings_table([one, two]).split("<details")
    assert "LoRA rank" in marked
    assert "Learning rate" not in marked
    assert "Learning rate" in same
    assert "LoRA rank" not in same


def test_settings_read_as_on_the_form_and_only_what_was_used_is_listed(tmp_path: Path) -> None:
    found = run_view.settings_of_run(fake_run(tmp_path))
    assert found["Source"] == "Bundled teaching cases"
    assert (found["Preset"], found["Prompt style"]) == ("Quick", ARTICLE.label)
    assert (found["Supervision"], found["Optimizer"]) == (SUPERVISION["whole_text"], "adamw torch")
    assert not {"Hub dataset", "Hub config", "Split", "Revision (dataset)", "File", "Question column"} & found.keys()


@pytest.mark.parametrize(
    ("dataset", "has", "has_not"),
    [
        (DatasetConfig(source="hub"), {"Hub dataset", "Hub config", "Split", "Revision (dataset)", "Question column"}, {"File"}),
        (DatasetConfig(source="file", path="/tmp/rows.json"), {"File", "First rows", "Question column"}, {"Hub dataset", "Split"}),
    ],
)
def test_a_source_is_listed_with_what_names_its_rows(context: Context, dataset: DatasetConfig, has: set[str], has_not: set[str]) -> None:
    found = run_view.settings_of_run(context.runs.create(ModelConfig(), dataset, PRESETS["quick"])).keys()
    assert has <= found
    assert not has_not & found


def test_of_many_runs_what_departs_from_the_first_is_marked(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, str(rank), finetune=PRESETS["quick"].changed(lora_rank=rank)) for rank in (16, 16, 32)]
    differing = run_view.settings_table(runs).split("<details")[0]
    assert differing.count('class="other"') == 1
    assert '<td class="other">32</td>' in differing
    assert 'class="other"' not in run_view.settings_table(runs[1:])


def test_the_plot_says_what_each_loss_is_over(tmp_path: Path) -> None:
    assert "held-out loss over reasoning and answer only" in run_view.curves(fake_run(tmp_path).curve())


def test_an_opened_run_tells_which_checkpoints_there_are_and_which_is_the_best(tmp_path: Path) -> None:
    run = fake_run(tmp_path, steps=(20, 40))
    assert "Checkpoints on disk: 20, 40; best held-out loss, 1.333: <strong>step 40</strong>" in details(run)
    assert "Checkpoints on disk" not in details(fake_run(tmp_path, steps=()))


def test_rename(events: RunsEvents, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert "better name" in events.rename(opened(run), " better name ")
    assert run.name == "better name"
    with pytest.raises(gr.Error, match="1 to 80"):
        events.rename(opened(run), " ")


def test_delete_asks_first(events: RunsEvents, context: Context, tmp_path: Path) -> None:
    run = fake_run(tmp_path, "old one")
    question, words = events.ask_to_delete(opened(run))
    assert question["visible"]
    assert "Delete old one" in words
    assert context.runs.list() == [run]
    chosen, question = events.delete({"open": run.id, "compare": [run.id]})
    assert chosen == NONE
    assert not question["visible"]
    assert context.runs.list() == []


def test_a_run_that_trains_is_not_deleted(events: RunsEvents, context: Context, tmp_path: Path) -> None:
    run = fake_run(tmp_path, "busy", "running")
    with pytest.raises(gr.Error, match="stop it before"):
        events.delete(opened(run))
    assert context.runs.list() == [run]


def test_resume(events: RunsEvents, context: Context, tmp_path: Path) -> None:
    run = fake_run(tmp_path, "cut", "interrupted")
    assert "from step 40" in events.resume(opened(run))
    assert isinstance(context.engine, FakeEngine)
    assert context.engine.trained == [(run.id, True)]


def test_export_tells_its_progress_and_offers_the_adapter(events: RunsEvents, context: Context, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert isinstance(context.engine, FakeEngine)
    context.engine.feed_export(["Writing the adapter", tmp_path / "exports" / run.id])
    said = list(events.export(opened(run), False, True))
    assert [part[0] for part in said[1:2]] == ['<p class="dd-note ">Writing the adapter</p>']
    assert str(tmp_path / "exports" / run.id) in said[-1][0]
    assert context.engine.exported == [Export(run.id, merged=False, gguf="q8_0")]
    with zipfile.ZipFile(said[-1][1]["value"]) as archive:
        assert "adapter_model.safetensors" in archive.namelist()


def test_an_export_that_fails_says_why(events: RunsEvents, context: Context, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert isinstance(context.engine, FakeEngine)
    context.engine.feed_export(["Writing the adapter", RunError("The disk is full.")])
    words, download = list(events.export(opened(run), True, False))[-1]
    assert "The disk is full." in words
    assert not download["visible"]


def test_names_stay_text(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "<img src=x onerror=alert(1)>${a}")
    shown = runs_table([run], NONE) + overlay([run, run]) + run_view.settings_table([run])
    assert "<img" not in shown
    assert "${a}" not in shown
