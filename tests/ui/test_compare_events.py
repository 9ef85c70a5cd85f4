"""What the compare tab's events do, with an engine that is fed: asking, stopping, failing, choosing, reopening."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from deepdoctor.checkpoints import rotate
from deepdoctor.comparison import Further
from deepdoctor.config import DatasetConfig, ModelConfig, SamplingConfig, preset
from deepdoctor.engine.protocol import EngineState
from deepdoctor.errors import EngineError, ModelError, ProofError
from deepdoctor.ui.choices import FINAL
from deepdoctor.ui.compare_events import HIDE_REFERENCE, SHOW_REFERENCE, Handlers, toggle_reference
from deepdoctor.ui.components import limited
from deepdoctor.ui.findings import findings
from deepdoctor.ui.form import build_form
from deepdoctor.ui.transcript import SIDES
from tests.studies.prepared import prepared
from tests.ui.fakes import (
    BASE_TEXT,
    NANO,
    PROOF,
    QUESTION,
    READY,
    RECIPE,
    TUNED_TEXT,
    fake_comparison,
    fake_context,
    fake_run,
    growing,
    in_event_loop,
    stopped,
    transcript,
)

BUSY = 7  # its place in what `refresh` gives
SAMPLING = (0.6, 0.95, 0, 0.0, 1.0, 1200, 3407)
# Places in what `answers` yields.
NUMBER, COMPARE, STOP, PAIR, AFTER, FINDINGS, LINK, DOWNLOAD, REFERENCE_BUTTON, REFERENCE, COMPARISON = range(11)


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    return fake_context(tmp_path / "data", pace=0.11)


@pytest.fixture
def handlers(context):
    def form():
        with gr.Blocks(analytics_enabled=False):
            return build_form(SamplingConfig())

    return Handlers(context, in_event_loop(form), {QUESTION: "The reference."})


def ask(handlers, run, question=QUESTION, sampling=SAMPLING, **chosen):
    step, also, style = ({"step": FINAL, "also": [], "style": "article"} | chosen).values()
    return handlers.answers(None, question, run.id, step, also, style, *sampling)


def test_asking_shows_both_sides_as_they_grow_and_ends_with_everything(handlers, context):
    run = fake_run(context.settings.data_dir)
    final = context.comparisons.save(fake_comparison(run=run.id))
    context.engine.feed(["Waiting: another question", *growing(final, 3)[:-1], final])
    steps = list(ask(handlers, run))
    assert steps[0][NUMBER] == 1
    assert steps[0][STOP]["interactive"]
    assert not steps[0][COMPARE]["interactive"]
    assert steps[1][PAIR]["base"]["status"] == "Waiting: another question"
    grown = [step[PAIR]["base"]["reasoning"] + step[PAIR]["base"]["answer"] for step in steps[2:]]
    assert sorted(grown, key=len) == grown
    assert all(step[PAIR]["tuned"]["source"] == "quick run, final adapter" for step in steps[2:])
    last = steps[-1]
    assert last[COMPARE] == gr.skip(), "it comes back when the event is over"
    assert handlers.ready()["interactive"]
    assert not last[STOP]["interactive"]
    assert last[NUMBER] is None
    assert last[COMPARISON] == final
    assert f'href="?comparison={final.id}"' in last[LINK]
    copy = Path(last[DOWNLOAD]["value"])
    assert copy.is_relative_to(context.settings.data_dir.parent / "cache")
    assert json.loads(copy.read_text()) == final.to_dict()
    assert "What changed" in last[FINDINGS]
    assert len({step[PAIR]["key"] for step in steps}) == 1


def test_the_request_carries_all_that_was_chosen(handlers, context):
    run = fake_run(context.settings.data_dir, steps=(20, 40))
    for _ in range(2):
        context.engine.feed([fake_comparison(run=run.id)])
    list(ask(handlers, run, step=20, style="native", sampling=(0, 0.5, 0, 0.0, 1.0, 64, 7)))
    list(ask(handlers, run, question="Something of my own?"))
    first, second = context.engine.asked
    assert (first.run, first.step, first.prompt_style, first.reference) == (run.id, 20, "native", "The reference.")
    assert first.sampling == SamplingConfig(temperature=0, top_p=0.5, max_new_tokens=64, seed=7)
    assert (second.step, second.reference) == (None, "")


def test_further_checkpoints_are_asked_with_the_pair_and_shown_below_it(handlers, context):
    run = fake_run(context.settings.data_dir, steps=(20, 40))
    further = (Further(40, transcript(BASE_TEXT), PROOF), Further(None, transcript(TUNED_TEXT), PROOF))
    final = context.comparisons.save(fake_comparison(run=run.id, step=20, further=further))
    context.engine.feed(["Waiting: another question", *growing(final, 3)[:-1], final])
    steps = list(ask(handlers, run, step=20, also=[40, FINAL]))
    (asked,) = context.engine.asked
    assert (asked.step, asked.also) == (20, (40, None))
    for step in steps:
        shown = [step[PAIR][side]["title"] for side in SIDES]
        assert shown == ["Base", "Tuned", "Checkpoint 40", "Final adapter", ""]
    assert steps[0][PAIR]["further2"]["status"] == "Waiting for the engine"
    assert steps[-1][PAIR]["further2"]["answer"] == steps[-1][PAIR]["tuned"]["answer"] != ""
    assert handlers.reopen(SimpleNamespace(comparison=final.id))[-1] == final
    assert "checkpoint 20 and 2 more" in handlers.saved()


def test_what_can_be_shown_beside_the_chosen_checkpoint_are_the_others_of_its_run(handlers, context):
    run = fake_run(context.settings.data_dir, steps=(20, 40))
    final, last, first = ("Final adapter", FINAL), ("Step 40", 40), ("Step 20", 20)
    also = handlers.steps_of(run.id)[1]
    assert (also["choices"], also["value"], also["visible"]) == ([last, first], [], True)
    also = handlers.also_of(run.id, 40, [20, 40])
    assert (also["choices"], also["value"]) == ([final, first], [20])
    assert handlers.refresh(run.id, 40, [20], None)[5]["value"] == [20]
    other = fake_run(context.settings.data_dir, "other", steps=(20,))
    assert handlers.refresh("gone", 40, [20], None)[5]["value"] == []
    assert handlers.refresh(other.id, FINAL, [20, 40], None)[5]["value"] == [20]
    assert not handlers.also_of(None, None, None)["visible"]


def test_the_checkpoint_that_is_the_final_adapter_is_not_offered_beside_it(handlers, context):
    last = RECIPE.max_steps
    run = fake_run(context.settings.data_dir, steps=(20, last))
    assert [value for _label, value in handlers.steps_of(run.id)[1]["choices"]] == [20]
    assert [value for _label, value in handlers.also_of(run.id, last, [])["choices"]] == [20]
    assert [value for _label, value in handlers.also_of(run.id, 20, [])["choices"]] == [FINAL, last]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"question": "  "}, "write a question"),
        ({"question": "What is </think>?"}, "obeys instead of reading"),
        ({"sampling": (3, 0.95, 0, 0.0, 1.0, 1200, 1)}, "Temperature"),
        ({"step": 33}, "no adapter at step 33"),
        ({"also": [20, 33]}, "no adapter at step 33"),
        ({"step": 20, "also": [20]}, "must be another one than the tuned side"),
        ({"step": 20, "also": [FINAL, 40, FINAL, 40]}, "At most 3"),
    ],
)
def test_what_cannot_be_asked_is_told_and_never_reaches_the_engine(handlers, context, changes, words):
    run = fake_run(context.settings.data_dir)
    with pytest.raises(gr.Error, match=words):
        list(ask(handlers, run, **changes))
    assert context.engine.asked == []


def test_without_a_run_the_question_is_refused(handlers, context):
    with pytest.raises(gr.Error, match="Choose the run"):
        list(handlers.answers(None, QUESTION, None, None, [], "article", *SAMPLING))
    assert context.engine.asked == []


def test_stop_reaches_the_engine_and_keeps_what_was_written(handlers, context):
    run = fake_run(context.settings.data_dir)
    context.engine.feed(growing(fake_comparison(run=run.id), 30))
    answers = ask(handlers, run)
    number = next(answers)[NUMBER]
    for _ in range(3):
        written = next(answers)[PAIR]["base"]["reasoning"]
    handlers.stop(number)
    last = list(answers)[-1]
    assert written
    assert last[PAIR]["base"]["reasoning"] == written
    assert last[PAIR]["base"]["note"] == "You stopped it: no answer was given."
    assert context.engine.stopped == [number]


def test_stop_without_anything_to_stop_does_nothing(handlers, context):
    handlers.stop(None)
    assert context.engine.stopped == []


def test_a_reader_who_leaves_closes_the_engines_stream(handlers, context):
    run = fake_run(context.settings.data_dir)
    closed = []

    def follow(_number):
        try:
            yield from growing(fake_comparison(run=run.id), 5)
        finally:
            closed.append(True)

    context.engine.feed([])
    context.engine.follow = follow
    answers = ask(handlers, run)
    next(answers)
    next(answers)
    answers.close()
    assert closed == [True]


def test_an_engine_that_dies_is_told_in_the_panels_and_keeps_the_texts(handlers, context):
    run = fake_run(context.settings.data_dir)
    context.engine.feed([growing(fake_comparison(run=run.id), 3)[0], EngineError("The engine process was killed.")])
    answers, steps = ask(handlers, run), []
    with pytest.raises(gr.Error, match="was killed"):
        steps.extend(answers)
    last = steps[-1]
    assert last[PAIR]["base"]["note"] == "The engine process was killed."
    assert last[PAIR]["base"]["reasoning"]
    assert last[COMPARE] == gr.skip()
    assert last[NUMBER] is None


@pytest.mark.parametrize("where", ["raised by the engine", "found in what it sent"])
def test_a_pair_whose_proof_fails_shows_no_word(handlers, context, where):
    run = fake_run(context.settings.data_dir)
    wrong = fake_comparison(run=run.id, proof=replace(PROOF, effect=0.0))
    end = ProofError("This pair is not shown.") if where == "raised by the engine" else wrong
    context.engine.feed([growing(wrong, 3)[0], end])
    steps = []
    with pytest.raises(gr.Error, match="This pair is not shown"):
        steps.extend(ask(handlers, run))
    for side in ("base", "tuned"):
        assert "not shown" in steps[-1][PAIR][side]["note"]
        assert steps[-1][PAIR][side]["reasoning"] == steps[-1][PAIR][side]["answer"] == ""


def test_at_most_ten_snapshots_a_second_reach_the_page_and_never_fewer_than_the_last():
    final = fake_comparison()
    snapshots = growing(final, 200)[:-2]
    passed = list(limited(iter([*snapshots, final])))
    assert passed[0] == snapshots[0]
    assert passed[-1] == final
    assert len(passed) < 20


def test_without_a_run_the_form_gives_way_to_the_empty_state_until_one_is_trained(handlers, context):
    fingerprint, empty, form, runs, steps, *_ = handlers.refresh(None, None, [], None)
    assert (empty["visible"], form["visible"], runs["choices"], steps["value"]) == (True, False, [], None)
    assert handlers.refresh_if_new(None, None, [], None, fingerprint) == gr.skip()
    run = fake_run(context.settings.data_dir, name="first")
    _fingerprint, empty, form, runs, steps, *_ = handlers.refresh_if_new(None, None, [], None, fingerprint)
    assert (empty["visible"], form["visible"]) == (False, True)
    assert runs["choices"] == [("first · finished at step 60", run.id)]
    assert runs["value"] == run.id
    assert steps["choices"] == [("Final adapter", FINAL), ("Step 40", 40), ("Step 20", 20)]
    assert steps["value"] == FINAL


def test_the_best_checkpoint_is_marked_and_a_chosen_one_that_was_removed_is_told(handlers, context):
    run = fake_run(context.settings.data_dir, state="running", steps=(20, 40, 60))
    before = handlers.fingerprint(None)
    assert rotate(run, 2) == [20]
    assert handlers.fingerprint(None) != before
    with pytest.warns(UserWarning, match="step 20 was removed as newer ones came; now chosen: Step 60"):
        update = handlers.refresh(run.id, 20, [], None)[4]
    run.append_metric({"step": 40, "held_out_loss": 0.1})
    rotate(run, 2)
    update = handlers.refresh(run.id, 40, [], None)[4]
    assert (update["choices"], update["value"]) == ([("Step 60", 60), ("Step 40 · best held-out loss", 40)], 40)


def test_refreshing_keeps_what_is_chosen_and_puts_runs_of_another_base_last(handlers, context):
    mine = fake_run(context.settings.data_dir, name="mine", state="stopped", steps=(20,))
    fake_run(context.settings.data_dir, name="no adapter yet", state="running", steps=())
    other = context.runs.create(ModelConfig(name="org/other"), mine.dataset, mine.finetune, "other base")
    for step in (20,):
        folder = other.checkpoint_dir(step)
        folder.mkdir(parents=True)
        for name in ("trainer_state.json", "adapter_model.safetensors"):
            (folder / name).write_text("{}")
    later = fake_run(context.settings.data_dir, name="later")
    choices = handlers.refresh(mine.id, 20, [], None)
    *own, (_label, last) = choices[3]["choices"]
    assert ({value for _label, value in own}, last) == ({mine.id, later.id}, other.id)
    assert choices[3]["choices"][-1][0].endswith("needs other")
    assert (choices[3]["value"], choices[4]["value"]) == (mine.id, 20)
    assert not choices[5]["visible"], "it has one checkpoint"
    assert choices[6] == gr.skip()
    steps, also, style, needs, load, told = handlers.steps_of(mine.id)
    assert style == "article"
    assert steps["choices"] == [("Step 20", 20)]
    assert (also["choices"], also["value"], also["visible"]) == ([], [], False)
    assert not needs["visible"]
    assert not load["visible"]
    assert told == ""


def test_a_run_that_is_chosen_brings_the_prompt_style_that_it_was_tuned_with(handlers, context):
    run = context.runs.create(ModelConfig(), DatasetConfig(), preset("quick").changed(prompt_style="native"), "native")
    run.checkpoint_dir(20).mkdir(parents=True)
    for name in ("trainer_state.json", "adapter_model.safetensors"):
        (run.checkpoint_dir(20) / name).write_text("{}")
    assert handlers.refresh(None, None, [], None)[6] == "native"
    assert handlers.steps_of(run.id)[2] == "native"
    assert handlers.steps_of(None)[2] == gr.skip()


def run_of(context, model, name="other base"):
    """A finished run made with another base model."""
    run = fake_run(context.settings.data_dir, name=name)
    config = json.loads((run.path / "config.json").read_text())
    config["model"]["name"] = model
    (run.path / "config.json").write_text(json.dumps(config))
    return context.runs.get(run.id)


def test_a_run_of_another_base_says_which_it_needs_and_loads_it(handlers, context):
    other = run_of(context, "org/<b>other</b>")
    _fingerprint, empty, form, run, _step, _also, _style, _busy, needs, load = handlers.refresh(None, None, [], None)
    assert (empty["visible"], form["visible"], run["value"]) == (False, True, other.id)
    assert needs["visible"]
    assert "was made with org/&lt;b&gt;other&lt;/b&gt;, but nano is in use" in needs["value"]
    assert load["visible"]
    with pytest.raises(gr.Error, match=r"Load org/.*under Model at the top of the page"):
        next(ask(handlers, other))
    before = handlers.fingerprint(None)
    *_, last = handlers.load_needed(None, other.id)
    assert "Loaded org/&lt;b&gt;other" in last
    assert context.engine.loaded == [other.model]
    assert handlers.fingerprint(None) != before
    assert not handlers.refresh(other.id, FINAL, [], None)[-1]["visible"]


def test_a_needed_model_that_cannot_be_loaded_is_told_in_place(handlers, context):
    other = run_of(context, "org/other")
    context.engine.feed_load(ModelError("There is no model org/other on the Hub."))
    told = handlers.load_needed(None, other.id)
    assert "Loading org/other" in next(told)
    assert "There is no model org/other on the Hub. nano is still loaded." in next(told)
    with pytest.raises(gr.Error):
        next(told)


def test_what_the_engine_does_is_said_before_one_asks(handlers, context):
    assert handlers.busy() == ""
    context.engine.state = replace(READY, phase="busy", doing="training quick run")
    assert "training quick run" in handlers.busy()
    context.engine.state = EngineState("loading", "Loading")
    assert "still loading" in handlers.busy()
    context.engine.state = EngineState("failed", "The <b>model</b> is missing.")
    assert "The &lt;b&gt;model&lt;/b&gt; is missing." in handlers.busy()


def test_a_model_that_is_not_decoded_in_pairs_is_told_to_whoever_asks(handlers, context):
    fingerprint = handlers.fingerprint(None)
    assert handlers.refresh(None, None, [], None)[BUSY] == gr.update(value="", visible=False)
    model = replace(NANO, name="owner/<b>Mistral</b>", decoding="it attends through a sliding window")
    context.engine.state = replace(READY, model=model)
    assert handlers.fingerprint(None) != fingerprint, "it is shown as soon as the model is there"
    for number in (None, 7):
        told = handlers.refresh(None, None, [], number)[BUSY]
        assert told["visible"]
        assert "owner/&lt;b&gt;Mistral&lt;/b&gt; is not decoded in pairs: base and tuned are written one after the other." in told["value"]
        assert "Why: it attends through a sliding window." in told["value"]


def test_a_saved_comparison_opens_from_link_and_history_even_when_its_run_is_gone(handlers, context):
    saved = context.comparisons.save(fake_comparison(run="20250101-000000-dead"))
    opened = handlers.open_linked(SimpleNamespace(query_params={"comparison": saved.id}))
    assert opened[-1] == saved
    assert opened[0]["tuned"]["source"] == "20250101-000000-dead (deleted), final adapter"
    assert handlers.reopen(SimpleNamespace(comparison=saved.id))[-1] == saved
    assert handlers.open_linked(SimpleNamespace(query_params={})) == gr.skip()


@pytest.mark.parametrize("linked", ["20250101-000000-deadbeef", "../../etc/passwd"])
def test_a_link_to_nothing_says_so(handlers, linked):
    with pytest.raises(gr.Error, match="There is no comparison"):
        handlers.open_linked(SimpleNamespace(query_params={"comparison": linked}))


def test_an_altered_file_whose_proof_fails_is_not_opened(handlers, context):
    saved = context.comparisons.save(fake_comparison())
    file = context.comparisons.path(saved.id)
    values = json.loads(file.read_text())
    values["proof"]["base_hash"] = "0" * 64
    file.write_text(json.dumps(values))
    with pytest.raises(gr.Error, match="base weights have changed"):
        handlers.reopen(SimpleNamespace(comparison=saved.id))


def test_a_further_text_whose_proof_fails_takes_the_whole_comparison_away(handlers, context):
    run = fake_run(context.settings.data_dir)
    wrong = fake_comparison(run=run.id, further=(Further(20, transcript(BASE_TEXT), replace(PROOF, effect=0.0)),))
    context.engine.feed([growing(wrong, 3)[0], wrong])
    steps = []
    with pytest.raises(gr.Error, match="for checkpoint 20, the adapter changes nothing"):
        steps.extend(ask(handlers, run, also=[20]))
    for side in SIDES[:3]:
        assert "not shown" in steps[-1][PAIR][side]["note"]
        assert steps[-1][PAIR][side]["reasoning"] == steps[-1][PAIR][side]["answer"] == ""
    assert steps[-1][PAIR]["further1"]["title"] == "Checkpoint 20"


def test_the_reference_is_shown_only_on_request():
    comparison = fake_comparison(reference="Normal <b>volume</b>.")
    assert comparison.reference not in findings(comparison)
    button, card = toggle_reference(SHOW_REFERENCE, comparison)
    assert button["value"] == HIDE_REFERENCE
    assert "Normal &lt;b&gt;volume&lt;/b&gt;." in card["value"]
    button, card = toggle_reference(HIDE_REFERENCE, comparison)
    assert (button["value"], card["value"], card["visible"]) == (SHOW_REFERENCE, "", False)


def test_the_button_for_the_reference_is_there_only_where_one_is_known(handlers, context):
    for reference in ("", "Known."):
        saved = context.comparisons.save(fake_comparison(reference=reference))
        values = handlers.reopen(SimpleNamespace(comparison=saved.id))
        assert values[5]["visible"] is bool(reference)


def test_a_stop_marks_only_sides_that_were_still_writing():
    half = replace(growing(fake_comparison(), 4)[1])
    assert {stopped(half).base.finish_reason, stopped(half).tuned.finish_reason} <= {"stop", "stopped"}
    assert stopped(half).finished


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """The handlers on a network without a login, where a study is judged; its first question, and a run."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    context = fake_context(tmp_path / "data")
    context = replace(context, settings=context.settings.changed(host="0.0.0.0"))
    study = prepared(context.settings.data_dir, 3)

    def form():
        with gr.Blocks(analytics_enabled=False):
            return build_form(SamplingConfig())

    return Handlers(context, in_event_loop(form), {}), study, fake_run(context.settings.data_dir)


@pytest.mark.parametrize("words", ["{}", " {} Please be brief.", "Please: {}\n"])
def test_a_question_that_is_judged_is_not_answered_to_who_could_be_a_rater(judged, words):
    handlers, study, run = judged
    asked = study.questions()[0].question
    for spelled in (words.format(asked), words.format(asked.upper())):
        with pytest.raises(gr.Error, match="You may not ask this question here for now"):
            list(ask(handlers, run, question=spelled))
    assert handlers.context.engine.asked == []
    study.close()
    handlers.context.engine.feed([fake_comparison(run=run.id)])
    assert list(ask(handlers, run, question=asked))[-1][COMPARISON]


def test_other_questions_are_answered_while_a_study_is_judged(judged):
    handlers, _study, run = judged
    handlers.context.engine.feed([fake_comparison(run=run.id)])
    assert list(ask(handlers, run))[-1][COMPARISON]


def test_a_saved_comparison_of_a_judged_question_opens_once_the_study_is_closed(judged):
    handlers, study, run = judged
    store = handlers.context.comparisons
    saved = store.save(fake_comparison(run=run.id, question=study.questions()[1].question))
    free = store.save(fake_comparison(run=run.id))
    ways = (
        lambda found: handlers.reopen(SimpleNamespace(comparison=found.id)),
        lambda found: handlers.open_linked(SimpleNamespace(query_params={"comparison": found.id})),
    )
    for open_it in ways:
        assert open_it(free)[-1] == free
        with pytest.raises(gr.Error, match="You may not open this comparison here for now"):
            open_it(saved)
    assert (saved.id in handlers.saved(), free.id in handlers.saved()) == (False, True)
    assert "not listed until it is closed" in handlers.saved()
    study.close()
    assert saved.id in handlers.saved()
    assert all(open_it(saved)[-1] == saved for open_it in ways)


def test_who_may_do_everything_is_not_held_up(handlers, context):
    study, run = prepared(context.settings.data_dir, 2), fake_run(context.settings.data_dir)
    asked = study.questions()[0].question
    saved = context.comparisons.save(fake_comparison(run=run.id, question=asked))
    context.engine.feed([saved])
    assert list(ask(handlers, run, question=asked))[-1][COMPARISON] == saved
    assert handlers.reopen(SimpleNamespace(comparison=saved.id))[-1] == saved
    assert saved.id in handlers.saved()
