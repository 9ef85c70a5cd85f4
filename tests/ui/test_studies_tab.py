"""The studies tab's handlers over real study folders and a fed engine."""

import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from deepdoctor.config import DatasetConfig, SamplingConfig, Settings, StudyConfig
from deepdoctor.errors import EngineError
from deepdoctor.studies.bundle import recompute
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.study import Study
from deepdoctor.ui import studies_tab, study_view
from deepdoctor.ui.context import Context
from deepdoctor.ui.form import build_form
from deepdoctor.ui.loaded import Loaded
from deepdoctor.ui.studies_events import DRAFTED, NO_PROBLEMS, OPENED, StudiesEvents
from tests.studies.prepared import created, prepared, verdict
from tests.ui.fakes import FakeCopy, FakeEngine, fake_context, fake_run, in_event_loop

SKIPPED = gr.skip()
PAYLOAD = "<img src=x onerror=alert(1)>${a}{{b}}"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return fake_context(tmp_path)


def events_of(context: Context) -> StudiesEvents:
    def made() -> StudiesEvents:
        with gr.Blocks(analytics_enabled=False):
            form = build_form(StudyConfig(run="r"), without=("run", "step", "sampling", "login_required"))
            return StudiesEvents(context, Loaded(), form, build_form(SamplingConfig()))

    return in_event_loop(made)


@pytest.fixture
def events(context: Context) -> StudiesEvents:
    return events_of(context)


@pytest.fixture
def engine(context: Context) -> FakeEngine:
    assert isinstance(context.engine, FakeEngine)
    return context.engine


def given(events: StudiesEvents, run: str, changes: dict[str, Any] | None = None, /, **asked: Any) -> list[Any]:
    """The inputs of a draft: `asked` by the names of DRAFTED, `changes` of either form's settings."""
    usual = {"dataset": DatasetConfig().model_dump(), "run": run, "step": "final", "sources": ["held_out"], "file": None}
    usual |= {"specialties": [], "kinds": [], "difficulties": [], "most": 0, "ids": []}
    forms = [(setting.name, setting.default) for form in (events.form, events.sampling) for setting in form.settings]
    return [*({**usual, **asked}[name] for name in DRAFTED), *((changes or {}).get(name, default) for name, default in forms)]


def shown(events: StudiesEvents, chosen: str = "") -> dict[str, Any]:
    """What `refresh` sends to somebody who has seen nothing."""
    names = ("above", "body", "run", "step", "table", "opened", "standing", "prepare", "stop", "open", "close", "delete", "results")
    return dict(zip((*names, *study_view.PARTS, "seen"), events.refresh(None, chosen, ()), strict=True))


def judged(study: Study, data_dir: Path, raters: int = 2, pairs: int = 13, **changes: Any) -> None:
    """So many raters judge so many pairs alike."""
    store = Judgments(data_dir)
    for number in range(raters):
        rater = study.join(f"Rater {number}", "Urology", number)
        for trial in rater.trials[:pairs]:
            store.add(verdict(study, rater.token, trial.id, preference=trial.tuned_slot, **changes))


def test_the_tab_builds_and_holds_nothing_of_a_study(context: Context, tmp_path: Path) -> None:
    study = prepared(tmp_path, 2)

    def made() -> dict[str, Any]:
        with gr.Blocks(analytics_enabled=False) as page, gr.Tabs(), gr.Tab("Studies") as tab:
            studies_tab.build(context, gr.State(DatasetConfig().model_dump()), tab)
        return page.get_config_file()

    config = in_event_loop(made)
    buttons = {each["props"].get("value") for each in config["components"] if each["type"] == "button"}
    assert {"Make and prepare", "Prepare the answers", "Stop preparing", "Close to raters", "Open again", "Delete", "Export"} <= buttons
    assert study.id not in json.dumps(config, default=str)
    assert study.name not in json.dumps(config, default=str)
    assert "Raters log in" not in json.dumps(config, default=str)


def test_an_empty_list_says_how_to_fill_it(events: StudiesEvents) -> None:
    first = shown(events)
    assert "No study yet" in first["table"]
    assert not first["opened"]["visible"]
    assert first["body"]["visible"]


def test_strangers_see_nothing(tmp_path: Path) -> None:
    study = prepared(tmp_path, 2)
    events = events_of(replace(fake_context(tmp_path), settings=Settings(data_dir=tmp_path, host="0.0.0.0")))
    for answer in (events.refresh(None, study.id, ()), events.review(None, NO_PROBLEMS, *given(events, "none"))):
        told = json.dumps(answer, default=str)
        assert "You may not" in told
        assert study.id not in told
        assert study.name not in told
    for refused in (events.prepare, events.stop, events.let_in, events.close, events.ask_to_delete, events.delete):
        with pytest.raises(gr.Error, match="You may not"):
            refused(None, study.id)
    assert study.state == "open"


def test_the_plan_is_told_before_anything_is_made(events: StudiesEvents, context: Context, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    (run.path / "questions.json").write_text(json.dumps([question.question for question in questions(events, "held_out")[:20]]))
    words, specialties, _ids, problems, *_ = events.review(None, NO_PROBLEMS, *given(events, run.id, {"raters_expected": 5}, most=12))
    assert problems == NO_PROBLEMS
    for part in ("20 seen", "180 unseen", "20 that training knows are left out", "Verdicts of 5 raters", "To tell 65% from a half"):
        assert part in words
    assert ">12</dd>" in words
    assert "13 min 00 s" in words
    assert "urology" in specialties["choices"]
    assert context.studies.list() == []


def questions(events: StudiesEvents, source: str) -> list[Any]:
    return events._questions({"sources": [source], "file": None, "dataset": DatasetConfig().model_dump()})


def test_filters_follow_the_sources(events: StudiesEvents, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    asked = given(events, run.id, sources=["bundled"], specialties=["cardiology", "no such"], kinds=["clinical", "emergency"])
    words, specialties, *_ = events.review(None, NO_PROBLEMS, *asked)
    assert specialties["value"] == ["cardiology"]
    assert "Of 4 chosen questions" in words
    assert len(questions(events, "rows")) == 500


@pytest.mark.parametrize(
    ("changes", "asked", "told"),
    [
        ({"effect": 2.0}, {}, "Effect"),
        ({"effect": 2.0, "temperature": 9}, {}, "2 settings need attention"),
        ({"native_arm": True, "prompt_style": "native"}, {}, "Native arm needs another prompt style"),
        ({}, {"run": None}, "Choose the run"),
        ({}, {"sources": ["file"]}, "Choose the file"),
        ({}, {"difficulties": ["hard"]}, "No question is left"),
        ({}, {"most": -3}, "at least one"),
    ],
)
def test_what_is_wrong_is_told(events: StudiesEvents, tmp_path: Path, changes: dict, asked: dict, told: str) -> None:
    inputs = given(events, fake_run(tmp_path).id, changes, **asked)
    assert told in events.review(None, NO_PROBLEMS, *inputs)[0]
    if not asked:
        assert "Not made" in events.create(None, *inputs)[0]
    else:
        with pytest.raises(gr.Error):
            events.create(None, *inputs)


def test_single_questions_are_picked_among_those_that_pass_the_filters(events: StudiesEvents, context: Context, tmp_path: Path) -> None:
    run, known = fake_run(tmp_path), questions(events, "bundled")
    asked = {"sources": ["bundled"], "kinds": ["emergency"], "ids": ["no such", known[0].id]}
    picked = events.review(None, NO_PROBLEMS, *given(events, run.id, **asked))[2]
    emergencies = [question for question in known if question.kind == "emergency"]
    assert [value for _label, value in picked["choices"]] == [question.id for question in emergencies]
    assert all(len(label) <= 100 and label.startswith(value) for label, value in picked["choices"])
    assert picked["value"] == [each.id for each in emergencies if each.id == known[0].id]
    asked["ids"] = [emergencies[2].id, emergencies[0].id]
    words, _specialties, picked, *_ = events.review(None, NO_PROBLEMS, *given(events, run.id, **asked))
    assert picked["value"] == asked["ids"]
    assert "Of 2 chosen questions" in words
    study = context.studies.get(events.create(None, *given(events, run.id, **asked))[1])
    assert [question.id for question in study.questions()] == [emergencies[0].id, emergencies[2].id]


def test_a_run_that_does_not_record_its_rows_gets_no_study(events: StudiesEvents, context: Context, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    (run.path / "questions.json").unlink()
    assert "does not record the rows it was trained on" in events.review(None, NO_PROBLEMS, *given(events, run.id))[0]
    with pytest.raises(gr.Error, match="does not record the rows"):
        events.create(None, *given(events, run.id))
    assert context.studies.list() == []


def test_a_study_is_made_and_handed_to_the_engine(events: StudiesEvents, context: Context, engine: FakeEngine, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    changes = {"name": "Twelve", "max_new_tokens": 60, "raters_expected": 2}
    told, chosen, fold, *_ = events.create(None, *given(events, run.id, changes, step=20, most=12))
    study = context.studies.get(chosen)
    assert "Made Twelve" in told
    assert not fold["open"]
    assert (study.config.run, study.config.step, study.config.sampling.max_new_tokens, len(study.questions())) == (run.id, 20, 60, 12)
    assert engine.prepared == [study.id]
    study.claim()
    study.set_status(done=5, eta_seconds=42.0)
    now = shown(events, chosen)
    assert "5 of 12 questions answered" in now["standing"]
    assert "42 s remaining" in now["standing"]
    assert {name for name in ("prepare", "stop", "open", "close", "delete") if now[name]["visible"]} == {"stop"}
    assert not now["results"]["visible"]
    events.stop(None, chosen)
    assert engine.preparing_stops == [chosen]


def test_a_refusal_of_the_engine_leaves_a_study_that_can_be_prepared(
    events: StudiesEvents, context: Context, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.refusal = EngineError("Another study is being prepared.")
    chosen = events.create(None, *given(events, fake_run(tmp_path).id, most=2))[1]
    now = shown(events, chosen)
    assert "Another study is being prepared." in now["standing"]
    assert now["prepare"]["visible"]
    engine.refusal = None
    events.prepare(None, chosen)
    assert engine.prepared == [chosen]
    with pytest.raises(gr.Error, match="nothing to prepare"):
        events.prepare(None, chosen)
    assert context.studies.get(chosen).state == "preparing"


def test_a_study_is_opened_closed_and_opened_again(events: StudiesEvents, tmp_path: Path) -> None:
    study = prepared(tmp_path, 3)
    chosen, question, *_ = events.pick(None, gr.EventData(None, {"open": study.id}))
    assert chosen == study.id
    assert not question["visible"]
    now = shown(events, chosen)
    assert f'href="judge/{study.id}"' in now["standing"]
    assert "Only this machine" in now["standing"]
    assert "Nobody has joined yet" in now["standing"]
    assert "No verdicts yet." in now["findings"]
    events.close(None, chosen)
    assert study.state == "closed"
    now = shown(events, chosen)
    assert (now["open"]["visible"], now["close"]["visible"]) == (True, False)
    assert "judge/" not in now["standing"] + now["table"]
    events.let_in(None, chosen)
    assert study.state == "open"
    with pytest.raises(gr.Error, match="no such study"):
        events.pick(None, gr.EventData(None, {"open": "../../etc"}))


def test_only_what_changed_is_sent(events: StudiesEvents, tmp_path: Path) -> None:
    one, two = prepared(tmp_path, 2), created(tmp_path, 2)
    seen = shown(events, one.id)["seen"]
    assert events.refresh(None, one.id, seen) == SKIPPED
    two.set_status(done=1)
    drawn = events.refresh(None, one.id, seen)
    assert "1 of 2" in drawn[4]
    assert drawn[5:-1] == [SKIPPED] * OPENED
    judged(one, tmp_path, raters=1, pairs=1)
    drawn = events.refresh(None, one.id, seen)
    assert "1 of 2" in drawn[6]


def test_results_say_the_finding_first_and_keep_measures_apart(events: StudiesEvents, tmp_path: Path) -> None:
    study = prepared(tmp_path, 12)
    judged(study, tmp_path, comment=PAYLOAD)
    now = shown(events, study.id)
    assert "Raters preferred the tuned answer in 24 of 24 decided pairs" in now["findings"]
    assert now["findings"].index("Raters preferred") < now["findings"].index('<img src="data:image/svg+xml')
    assert "The study was still open when this was computed, with 24 of 36 planned verdicts" in now["findings"]
    assert "chrF" in now["measured"]
    assert "chrF" not in now["findings"] + now["tables"]
    assert "McNemar" in now["tables"]
    assert "Take a chest radiograph" in now["pairs"]
    assert "run" in now["protocol"]
    assert "character 5-grams overlap by at least 60%" in now["protocol"]
    assert "a true paraphrase in other words stays unseen" in now["protocol"]
    assert "Rater 0" in now["standing"]
    everything = "".join(now[name] for name in study_view.PARTS)
    assert "<img src=x" not in everything
    assert "${a}" not in everything
    assert "&lt;img src=x" in now["pairs"]
    assert all(rater.token not in everything for rater in study.raters())


def test_disagreement_is_marked(events: StudiesEvents, tmp_path: Path) -> None:
    study, store = prepared(tmp_path, 2, repeat_share=0.0), Judgments(tmp_path)
    for name, wanted in (("Ada", "tuned"), ("Ben", "base")):
        rater = study.join(name, "Urology", 1)
        for trial in rater.trials:
            slot = "A" if trial.arms[0] == (wanted if trial.question == "question-1" else "tuned") else "B"
            store.add(verdict(study, rater.token, trial.id, preference=slot))
    pairs = shown(events, study.id)["pairs"]
    agreed, contested = pairs.split('<section class="pair')[1:]
    assert "contradict" not in agreed
    assert contested.startswith(' contested">')
    assert "raters contradict each other: preference" in contested


def test_everything_is_exported(events: StudiesEvents, tmp_path: Path) -> None:
    study = prepared(tmp_path, 12)
    judged(study, tmp_path, comment="=1+1")
    *_, (told, files) = events.export(None, study.id)
    paths = {Path(file).name: Path(file) for file in files["value"]}
    assert "Preference rows: 11 for DPO" in told
    bundle = paths.pop(f"study-{study.id}.zip")
    assert set(paths) == {"report.html", "verdicts.csv", "verdicts.jsonl", "raters.csv", "dpo.jsonl", "kto.jsonl", "llm_comparator.json"}
    assert recompute(bundle).differences == []
    with zipfile.ZipFile(bundle) as archive, paths["verdicts.csv"].open(newline="") as table:
        assert archive.read("report.html") == paths["report.html"].read_bytes()
        assert {row["comment"] for row in csv.DictReader(table)} == {"'=1+1"}


def test_delete_asks_first(events: StudiesEvents, context: Context, tmp_path: Path) -> None:
    study = prepared(tmp_path, 2)
    question, words = events.ask_to_delete(None, study.id)
    assert question["visible"]
    assert study.name in words
    assert "dataset" not in words
    assert context.studies.list() == [study]
    assert events.delete(None, study.id)[0] == ""
    assert context.studies.list() == []
    with pytest.raises(gr.Error, match="Open a study first"):
        events.delete(None, "")


def test_damaged_files_are_reported_and_the_rest_is_shown(events: StudiesEvents, tmp_path: Path) -> None:
    whole, lost = prepared(tmp_path, 2, name="Whole"), prepared(tmp_path, 2, name="Lost")
    ada = whole.join("Ada", "Urology", 1)
    whole.join("Ben", "Urology", 1)
    judged(whole, tmp_path, raters=1, pairs=1)
    seen = shown(events, whole.id)["seen"]
    assert shown(events)["above"] == ""
    (whole.path / "raters" / f"{ada.token}.json").write_text("{")
    (lost.path / "status.json").write_text("{}")
    (store,) = (tmp_path / "judgments").glob("*.jsonl")
    store.write_bytes(store.read_bytes() + b'{"torn": ')
    now = dict(zip(("above", "body", "run", "step", "table", "opened", "standing"), events.refresh(None, whole.id, seen), strict=False))
    assert f"The study {lost.id} cannot be read" in now["above"]
    assert "1 line of the judgments cannot be read" in now["above"]
    assert "Whole" in now["table"]
    assert lost.id not in now["table"]
    assert "The file of 1 rater cannot be read" in now["standing"]
    assert "Ben" in now["standing"]
    assert ada.token[:6] not in json.dumps(now, default=str)
    assert events.refresh(None, whole.id, shown(events, whole.id)["seen"]) == SKIPPED


def test_an_opened_study_whose_answers_are_damaged_says_so(events: StudiesEvents, tmp_path: Path) -> None:
    study, other = prepared(tmp_path, 2), prepared(tmp_path, 2, name="Another")
    file = study.path / "answers.jsonl"
    file.write_text(file.read_text().replace('"finish_reason"', '"ended"'))
    now = shown(events, study.id)
    assert "cannot be shown" in now["standing"]
    assert not now["results"]["visible"]
    assert "Another" in now["table"]
    assert "Nobody has joined yet" in shown(events, other.id)["standing"]


def test_the_copy_on_the_hub_is_told_and_cleaned_of_what_is_deleted(context: Context, tmp_path: Path) -> None:
    study, copy = prepared(tmp_path, 2), FakeCopy("Copied, last at 10:00 <b>.")
    events = events_of(replace(context, copy=copy))
    assert shown(events)["above"] == '<p class="dd-note ">Copied, last at 10:00 &lt;b&gt;.</p>'
    failing = shown(events_of(replace(context, copy=FakeCopy("The copy fails.", failing=True))))
    assert "dd-note bad" in failing["above"]
    assert "The copy fails." in failing["above"]
    _question, words = events.ask_to_delete(None, study.id)
    assert "from the dataset ada/judgments too" in words
    assert "earlier commits still hold it" in words
    assert copy.asked == 0
    events.delete(None, study.id)
    assert copy.asked == 1
    hidden = replace(context, copy=copy, settings=Settings(data_dir=tmp_path, host="0.0.0.0"))
    assert "10:00" not in json.dumps(events_of(hidden).refresh(None, "", ()), default=str)


def test_names_stay_text(events: StudiesEvents, tmp_path: Path) -> None:
    study = prepared(tmp_path, 2, name=PAYLOAD)
    study.join(PAYLOAD, PAYLOAD, 1)
    now = shown(events, study.id)
    everything = now["table"] + now["standing"] + now["protocol"]
    assert "<img" not in everything
    assert "${a}" not in everything


def test_organisers_find_the_own_link_of_each_rater_and_strangers_do_not(events: StudiesEvents, tmp_path: Path) -> None:
    study = prepared(tmp_path, 3)
    raters = [study.join(name, "Urology", 1) for name in ("Ada", "Ben")]
    standing = shown(events, study.id)["standing"]
    for rater in raters:
        assert standing.count(f'href="judge/{study.id}/{rater.token}"') == 1
    assert "Send it to nobody else" in standing
    stranger = events_of(replace(fake_context(tmp_path), settings=Settings(data_dir=tmp_path, host="0.0.0.0")))
    told = json.dumps(stranger.refresh(None, study.id, ()), default=str)
    assert not [rater for rater in raters if rater.token in told]
    study.close()
    assert raters[0].token not in shown(events, study.id)["standing"]
