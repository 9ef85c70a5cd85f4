"""The train tab's handlers over a fed engine and real run folders."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import gradio as gr
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from deepdoctor.config import PRESETS, DatasetConfig, FinetuneConfig, ModelConfig, preset
from deepdoctor.engine.protocol import EngineState
from deepdoctor.runs import Run, Runs
from deepdoctor.ui import train_tab
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import build_form
from deepdoctor.ui.loaded import Loaded
from deepdoctor.ui.train_events import NOTHING_SEEN, TrainEvents
from tests.studies.prepared import prepared
from tests.ui.fakes import NANO, READY, RECIPE, FakeEngine, fake_context, fake_run, in_event_loop

SKIPPED = gr.skip()
QUICK = PRESETS["quick"]


@pytest.fixture
def dataset(tmp_path: Path) -> dict[str, object]:
    """Thirty short rows in a file."""
    rows = [{"Question": f"Which sign {word}?", "Complex_CoT": f"Think {word}.", "Response": f"Sign {word}."} for word in range(30)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return DatasetConfig(source="file", path=str(file)).model_dump()


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A context whose model's tokenizer takes one token a character."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    state = replace(READY, model=replace(NANO, tokenizer_file=str(tmp_path / "tokenizer.json")))
    return fake_context(tmp_path / "data", state)


@pytest.fixture
def events(context: Context) -> TrainEvents:
    def made() -> TrainEvents:
        with gr.Blocks():
            return TrainEvents(context, Loaded(), build_form(QUICK, without=("preset",)))

    return in_event_loop(made)


def values(events: TrainEvents, config: FinetuneConfig = QUICK, **changes: object) -> list[object]:
    updates = dict(zip((each.name for each in events.form.settings), events.form.show(config), strict=True))
    return [changes.get(name, update["value"]) for name, update in updates.items()]


def start(events: TrainEvents, dataset: dict[str, object], name: str = "", **changes: object) -> list[Any]:
    """What the last of `start` puts on the page: notice, name, then the form's inputs."""
    return list(events.start(None, dataset, "quick", name, *values(events, **changes)))[-1]


def refusal(told: Iterator[Any]) -> str:
    """What a refused handler puts on the page before it raises."""
    shown = next(told)
    with pytest.raises(gr.Error) as caught:
        next(told)
    words = shown if isinstance(shown, str) else shown[0]
    assert str(caught.value.message) in words
    return words


def engine(context: Context) -> FakeEngine:
    assert isinstance(context.engine, FakeEngine)
    return context.engine


def test_the_tab_builds(context: Context) -> None:
    def made() -> gr.Blocks:
        with gr.Blocks(analytics_enabled=False) as page:
            dataset = gr.State(DatasetConfig().model_dump())
            with gr.Tabs(), gr.Tab("Train") as tab:
                train_tab.build(context, dataset, tab)
        return page

    labels = {getattr(block, "label", None) for block in in_event_loop(made).blocks.values()}
    assert {"Steps", "Learning rate", "Name of the run", "Smoothing"} <= labels


def long_run(context: Context) -> Run:
    """A run that trains, with 2,500 logged steps."""
    run = fake_run(context.settings.data_dir, state="running", steps=())
    rows = ({"step": step, "loss": 1 + step % 7 / 10, "learning_rate": 1e-4, "memory_gib": 2.0} for step in range(1, 2501))
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return run


def test_no_run_is_started_while_another_model_comes(context: Context, events: TrainEvents, dataset: dict[str, object]) -> None:
    engine(context).pace = 1.0
    coming = Thread(target=context.engine.load, args=[ModelConfig(name="owner/other")])
    coming.start()
    while not context.engine.loading:
        time.sleep(0.01)
    assert "owner/other is being loaded" in refusal(events.start(None, dataset, "quick", "", *values(events)))
    coming.join()
    assert context.runs.list() == []
    assert "Started" in start(events, dataset)[0]


def test_a_preset_fills_the_form(events: TrainEvents) -> None:
    _notice, _words, problems, *updates = events.use_preset("article")
    assert problems == {}
    assert events.form.read([update["value"] for update in updates], {"preset": "article"}) == preset("article")


def test_review_tells_what_the_run_takes(events: TrainEvents, dataset: dict[str, object]) -> None:
    _, words, problems, *_ = events.review(dataset, "quick", {}, *values(events, held_out_rows=5))
    assert problems == {}
    assert "<dd>25</dd>" in words
    assert "<dd>30</dd>" in words
    assert "444 k" in words
    assert f"Trains on <strong>{Path(str(dataset['path'])).name}" in words
    assert "about" in words


def test_review_waits_for_the_model(events: TrainEvents, context: Context, dataset: dict[str, object]) -> None:
    engine(context).state = EngineState("loading", "Loading")
    assert "still loading" in events.review(dataset, "quick", {}, *values(events))[1]


def test_review_puts_each_problem_at_its_setting(events: TrainEvents, dataset: dict[str, object]) -> None:
    _, words, problems, *updates = events.review(dataset, "quick", {}, *values(events, batch_size=300, learning_rate=2))
    assert "2 settings need attention: Learning rate, Batch size" in words
    told = [update["info"] for update in updates if "info" in update]
    assert told == ["Must be at most 1 (given: 2).", "Must be at most 256 (given: 300)."]
    again = events.review(dataset, "quick", problems, *values(events, batch_size=300, learning_rate=2))
    assert all(update == SKIPPED for update in again[3:])


def test_review_says_when_no_row_is_left(events: TrainEvents, dataset: dict[str, object]) -> None:
    assert "No row to train on is left" not in events.review(dataset, "quick", {}, *values(events, held_out_rows=5))[1]
    assert "leave none to train on" in events.review(dataset, "quick", {}, *values(events, held_out_rows=30))[1]


def test_online_logging_without_a_key_is_told_at_its_setting(
    events: TrainEvents, dataset: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "WANDB_API_KEY" in events.review(dataset, "quick", {}, *values(events, wandb="online"))[2]["wandb"]


def test_start_makes_a_run_and_hands_it_over(events: TrainEvents, context: Context, dataset: dict[str, object]) -> None:
    notice, name, *_ = start(events, dataset, "mine", held_out_rows=5)
    (run,) = context.runs.list()
    assert engine(context).trained == [(run.id, False)]
    assert run.name == "mine"
    assert run.finetune == QUICK.changed(held_out_rows=5)
    assert run.dataset == DatasetConfig.of(dataset)
    assert run.model == ModelConfig()
    assert "Started mine" in notice
    assert name["value"] == ""


class FullDisk(Runs):
    """Runs on a disk with a megabyte left."""

    def free_bytes(self) -> int:
        """A megabyte."""
        return 2**20


def test_a_run_whose_checkpoints_do_not_fit_on_the_disk_is_not_started(context: Context, dataset: dict[str, object]) -> None:
    full = replace(context, runs=FullDisk(context.settings.data_dir))

    def made() -> TrainEvents:
        with gr.Blocks():
            return TrainEvents(full, Loaded(), build_form(QUICK, without=("preset",)))

    events = in_event_loop(made)
    assert "no room" in events.review(dataset, "quick", {}, *values(events, held_out_rows=5))[1]
    refused = refusal(events.start(None, dataset, "quick", "", *values(events, held_out_rows=5)))
    assert "but only 1.0 MiB are free" in refused
    assert full.runs.list() == []


def test_a_second_start_names_the_run_that_trains(events: TrainEvents, context: Context, dataset: dict[str, object]) -> None:
    start(events, dataset, "first", held_out_rows=5)
    again = events.start(None, dataset, "quick", "second", *values(events, held_out_rows=5))
    assert "Run first is training already" in refusal(again)
    assert len(context.runs.list()) == 1


def test_start_with_wrong_settings_makes_no_run(events: TrainEvents, context: Context, dataset: dict[str, object]) -> None:
    notice, name, *updates = start(events, dataset, "kept", lora_rank=0)
    assert "Not started" in notice
    assert name == SKIPPED
    assert sum("info" in update for update in updates) == 1
    assert context.runs.list() == []


def test_start_without_rows_or_model_makes_no_run(events: TrainEvents, context: Context, dataset: dict[str, object]) -> None:
    assert "leave none" in refusal(events.start(None, dataset, "quick", "", *values(events, held_out_rows=30)))
    engine(context).state = EngineState("loading", "Loading")
    assert "not loaded yet" in refusal(events.start(None, dataset, "quick", "", *values(events)))
    assert context.runs.list() == []


def test_stop_asks_the_engine(events: TrainEvents, context: Context) -> None:
    assert "No run is training" in refusal(events.stop())
    fake_run(context.runs.root.parent, "long one", "running")
    assert "Stopping long one" in next(events.stop())
    assert engine(context).training_stops == 1


def test_a_run_that_processes_of_the_engine_train_is_stopped_through_it(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent, "shared", "running")
    run.claim()  # by another process than the engine's own, as several GPUs' first process does
    assert "trained by another program" in refusal(events.stop())
    engine(context).state = replace(engine(context).state, phase="busy", run=run.id)
    assert "Stopping shared" in next(events.stop())
    assert engine(context).training_stops == 1


@pytest.mark.parametrize("state", ["stopped", "interrupted", "failed"])
def test_resume_continues_the_shown_run(events: TrainEvents, context: Context, state: str) -> None:
    run = fake_run(context.runs.root.parent, "cut", state)
    seen = events.draw(NOTHING_SEEN, "none", 1)[-1]
    assert "from step 40" in next(events.resume(seen))
    assert engine(context).trained == [(run.id, True)]


def test_a_run_of_another_model_is_not_resumed_and_stays_as_it_is(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent, "cut", "interrupted")
    model = engine(context).state.model
    assert model
    engine(context).state = replace(engine(context).state, model=replace(model, name="someone/else"))
    told = refusal(events.resume(events.draw(NOTHING_SEEN, "none", 1)[-1]))
    assert f"was made with {run.model.name}, but someone/else is in use. Load {run.model.name} first" in told
    assert (engine(context).trained, run.state) == ([], "interrupted")


def test_a_finished_run_is_not_resumed(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent)
    assert "is finished" in refusal(events.resume((run.id,)))


def test_the_notice_goes_when_it_no_longer_holds(events: TrainEvents, context: Context, dataset: dict[str, object]) -> None:
    assert events.use_preset("article")[0] == ""
    assert events.review(dataset, "quick", {"lora_rank": "wrong"}, *values(events))[0] == ""
    assert events.review(dataset, "quick", {}, *values(events))[0] == SKIPPED
    run = fake_run(context.runs.root.parent, "live", "running")
    seen = events.draw(NOTHING_SEEN, "none", 1)[-1]
    run.append_metric({"step": 42, "loss": 0.1})
    assert events.tick(seen, "none", 1)[-2] == SKIPPED
    run.set_status(state="finished")
    *_, notice, seen = events.tick(seen, "none", 1)
    assert notice == ""
    run.rename("another name")
    assert events.tick(seen, "none", 1)[-2] == SKIPPED


def test_config_file_goes_out_and_comes_back(events: TrainEvents, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    config = QUICK.changed(lora_rank=8, probe_questions=("Why?",))
    file.write_text(events.config_text("quick", *values(events, config)), encoding="utf-8")
    notice, chosen, _words, _problems, *updates = events.load_config(str(file))
    assert "mine.json" in notice
    assert chosen["value"] == "quick"
    assert events.form.read([update["value"] for update in updates], {"preset": "quick"}) == config


@pytest.mark.parametrize(
    ("text", "says"), [('{"learning_speed": 3}', "learning_speed"), ("{", "not a configuration file"), ("[1]", "expected")]
)
def test_a_wrong_config_file_changes_nothing(events: TrainEvents, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    notice, *others = events.load_config(str(file))
    assert says in notice
    assert all(update == SKIPPED for update in others)


def test_without_runs_the_live_view_says_what_will_be_there(events: TrainEvents) -> None:
    assert "No run yet" in events.draw(NOTHING_SEEN, "none", 1)[0]
    assert events.tick(NOTHING_SEEN, "none", 1) == SKIPPED


def test_a_tick_draws_only_what_is_new(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent, "live", "running")
    seen = events.tick(NOTHING_SEEN, "none", 1)[-1]
    assert events.tick(seen, "none", 1) == SKIPPED
    run.append_metric({"step": 42, "loss": 0.123})
    drawn = events.tick(seen, "none", 1)
    assert "0.123" in drawn[0]
    assert "Step 42" in drawn[3]
    assert drawn[5:7] == [SKIPPED, SKIPPED], "neither probe answers nor log are sent again"
    other_viewer = events.tick(NOTHING_SEEN, "none", 1)
    assert other_viewer[:4] == drawn[:4]
    assert SKIPPED not in other_viewer[3:7:2]
    run.log("a new line")
    run.set_status(step=43)
    progress, *_, curves, _slider, probes, log, _notice, _seen = events.tick(drawn[-1], "none", 1)
    assert "Step 43" in progress
    assert (curves, probes) == (SKIPPED, SKIPPED)
    assert "a new line" in log


def test_ten_viewers_of_a_long_run_share_one_drawing(events: TrainEvents, context: Context) -> None:
    """The work of a tick in bounds that cannot flake; how long it takes is measured by benchmarks/long_run.py."""
    run = long_run(context)
    seen = [events.draw(NOTHING_SEEN, "none", 1)[-1] for _ in range(10)]
    run.append_metric({"step": 2501, "loss": 0.5, "learning_rate": 1e-5})
    began = time.perf_counter()
    with ThreadPoolExecutor(10) as pool:
        outputs = list(pool.map(lambda each: events.tick(each, "none", 1), seen))
    assert time.perf_counter() - began < 5, "all ten together, on a machine as busy as it may be"
    assert len({id(output[3]) for output in outputs}) == 1
    assert "to 0.5 at step 2,501" in outputs[0][3]
    assert len(outputs[0][3]) < 150_000
    assert all(events.tick(output[-1], "none", 1) == SKIPPED for output in outputs)


def test_the_buttons_follow_the_state(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent, "live", "running")
    _, stop, resume, *_ = events.draw(NOTHING_SEEN, "none", 1)
    assert (stop["visible"], resume["visible"]) == (True, False)
    run.set_status(state="interrupted", message="The engine process was killed by signal 9.")
    progress, stop, resume, *_ = events.draw(NOTHING_SEEN, "none", 1)
    assert (stop["visible"], resume["visible"]) == (False, True)
    assert "killed by signal 9" in progress


def probe(step: int, **changes: object) -> dict[str, object]:
    return {"step": step, "question": "Why?", "reasoning": f"Thought {step}", "response": f"Answer {step}", "closed": True, **changes}


def test_probe_answers_are_stepped_through_and_followed(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent, "live", "running")
    run.append_probe(probe(0))
    run.append_probe(probe(20))
    first = events.draw(NOTHING_SEEN, "none", 1)
    assert (first[4]["minimum"], first[4]["maximum"], first[4]["step"], first[4]["value"]) == (0, 20, 20, 20)
    assert "Answer 0" in first[5]
    assert "Answer 20" in first[5]
    run.append_probe(probe(30))
    assert events.tick(first[-1], "none", 20)[4] | {"step": 10, "value": 30} == events.tick(first[-1], "none", 20)[4]
    assert events.tick(first[-1], "none", 0)[4]["value"] == 0
    assert "Answer 20" in events.step_through(first[-1], 20)
    assert "Answer 20" in events.step_through(first[-1], 24)
    assert "Answer 20" not in events.step_through(first[-1], 30)
    assert "Answer 30" in events.step_through(first[-1], 30)


def test_a_run_without_probes_takes_away_the_slider_and_promises_none(events: TrainEvents, context: Context) -> None:
    before = fake_run(context.runs.root.parent, "probed")
    before.append_probe(probe(0))
    before.append_probe(probe(20))
    seen = events.draw(NOTHING_SEEN, "none", 1)[-1]
    fake_run(context.runs.root.parent, "unprobed", "running", finetune=RECIPE.changed(probe_steps=0))
    drawn = events.tick(seen, "none", 20)
    assert drawn[4]["visible"] is False
    assert "asks no probe question" in drawn[5]
    assert "asks no probe question" in events.step_through(drawn[-1], 20)


def test_a_cut_off_thought_is_no_answer(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent, "live", "running")
    run.append_probe(probe(0, closed=False, response="half of it"))
    shown = events.draw(NOTHING_SEEN, "none", 1)[5]
    assert "Cut off" in shown
    assert "half of it" not in shown


def test_model_text_stays_text(events: TrainEvents, context: Context) -> None:
    run = fake_run(context.runs.root.parent, "<script>alert(1)</script>", "failed")
    run.set_status(message="<img src=x onerror=alert(2)>", wandb_url="javascript:alert(3)")
    run.log("<form>${1}{{2}}")
    run.append_probe(probe(0, reasoning="<svg onload=alert(4)>", response="**<marquee>** ${3}", question="<iframe>"))
    drawn = "".join(part for part in events.draw(NOTHING_SEEN, "none", 1) if isinstance(part, str))
    for payload in ("<script", "<img", "<form", "<svg onload", "<marquee", "<iframe", "${", "{{", "javascript:"):
        assert payload not in drawn


def test_the_address_of_a_logged_run_is_a_link(events: TrainEvents, context: Context) -> None:
    fake_run(context.runs.root.parent).set_status(wandb_url="https://wandb.ai/me/deepdoctor/runs/1")
    assert 'href="https://wandb.ai/me/deepdoctor/runs/1"' in events.draw(NOTHING_SEEN, "none", 1)[0]


def test_the_form_is_reviewed_once_the_model_is_there(events: TrainEvents) -> None:
    assert events.model_known("") == NANO.base_hash
    assert events.model_known(NANO.base_hash) == SKIPPED


def test_probe_answers_to_a_judged_question_are_kept_from_who_could_be_a_rater(context: Context) -> None:
    study = prepared(context.settings.data_dir, 2)
    asked = study.questions()[0].question
    run = fake_run(context.settings.data_dir)
    for step in (0, 20):
        for question, answer in ((asked, "Kept back"), ("Which sign?", "Free")):
            run.append_probe({"step": step, "question": question, "reasoning": "", "response": f"{answer} {step}", "closed": True})
    stranger = replace(context, settings=context.settings.changed(host="0.0.0.0"))

    def made(of: Context) -> TrainEvents:
        def built() -> TrainEvents:
            with gr.Blocks():
                return TrainEvents(of, Loaded(), build_form(QUICK, without=("preset",)))

        return in_event_loop(built)

    events = made(stranger)
    first = events.draw(NOTHING_SEEN, "none", 20)
    shown = f"{first} {events.step_through(first[-1], 0)}"
    assert "Free 20" in shown
    assert "Kept back" not in shown
    assert "not shown until it is closed" in shown
    assert events.tick(first[-1], "none", 20) == SKIPPED
    local = made(context).draw(NOTHING_SEEN, "none", 20)[5]
    assert "Kept back 20" in local
    assert "not shown" not in local
    study.close()
    assert "Kept back 20" in events.tick(first[-1], "none", 20)[5]
