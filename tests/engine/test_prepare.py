"""Preparing a study: every answer proven and equal to one made singly, nothing written twice, and words for what goes wrong."""

import hashlib
import shutil
import time
from pathlib import Path

import pytest
import torch

from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.config import SamplingConfig
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.compare import TOLERANCES, Question, reference_logits
from deepdoctor.engine.decode import Decoder, Row, transcript
from deepdoctor.engine.fingerprint import base_weights
from deepdoctor.engine.prepare import Answers
from deepdoctor.engine.session import Session
from deepdoctor.errors import ConfigError, ProofError, RunError, StudyError
from deepdoctor.files import read_rows
from deepdoctor.prompts import NATIVE, render_question
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.measures import losses
from deepdoctor.studies.progress import losses_of
from deepdoctor.studies.study import Study
from tests.engine import tiny
from tests.studies.prepared import created, prepared

DRAWN = SamplingConfig(temperature=0.9, max_new_tokens=12, seed=5)
TEXT = ("text", "tokens", "reasoning_tokens", "finish_reason")


def study_of(session: Session, run: Run, questions: int = 3, **settings: object) -> Study:
    """A study of that run which has no answers yet."""
    return created(session.data_dir, questions, **{"run": run.id, "sampling": DRAWN.model_dump(), **settings})


def answers_of(study: Study) -> dict[tuple[str, int], Answer]:
    return {key: Answer.from_row(row) for key, row in study.answers().items()}


def rows_of(study: Study) -> list[dict]:
    """All rows of answers.jsonl, repeated ones too."""
    return read_rows(study.path / "answers.jsonl")[0]


def said(side: Transcript) -> list[object]:
    """What a side wrote, without how long it took."""
    return [getattr(side, name) for name in TEXT]


@pytest.mark.parametrize("close", [False, True])
def test_a_study_that_is_open_or_closed_is_left_alone(session: Session, close: bool) -> None:
    study = prepared(session.data_dir, 2)
    if close:
        study.close()
    before = study.status
    with pytest.raises(StudyError, match="its answers are all written"):
        session.prepare(study.id)
    assert study.status == before


@pytest.fixture
def copied(session: Session, trained: tuple[Session, Run]) -> tuple[Session, Run]:
    """A session of one's own, with the trained run."""
    shutil.copytree(trained[1].path, session.runs.root / trained[1].id)
    return session, trained[1]


def test_all_answers_are_there_proven_and_the_study_opens(trained: tuple[Session, Run], tmp_path: Path) -> None:
    session, run = trained
    study = study_of(session, run, 10, seeds_per_question=2)
    assert session.prepare(study.id) == study
    assert study.state == "open"
    status = study.status
    assert (status["done"], status["total"], status["eta_seconds"], status["process"]) == (20, 20, None, None)
    assert len(rows_of(study)) == 20
    assert study.pending() == []
    assert losses_of(study, Runs(tmp_path)) == losses(run.curve()), "kept for when the run is gone"
    seen = study.seen()
    for (question, seed), answer in answers_of(study).items():
        made = answer.comparison
        assert made.proof is not None
        assert made.proof.problems() == []
        assert made.finished
        assert (made.sampling, made.run, made.prompt_style, made.seen) == (
            DRAWN.changed(seed=seed),
            run.id,
            "article",
            {"grade": seen[question]},
        )
        assert made.created > 0
        assert 2 <= made.rows_at_once <= 16
    assert max(answer.comparison.rows_at_once for answer in answers_of(study).values()) == 16, "many are written together"


def test_each_answer_is_the_one_that_a_single_comparison_gives(trained: tuple[Session, Run]) -> None:
    session, run = trained
    study = study_of(session, run, 9, step=4, prompt_style="article")
    session.prepare(study.id)
    loaded = tiny.model_of(session)
    for question in study.questions():
        answer = answers_of(study)[question.id, 5].comparison
        single: Comparison = tiny.pair(
            loaded, run.adapter_dir(4), Question(question.question, DRAWN, "article", run.id, 4, question.reference)
        )
        assert [said(side) for side in (answer.base, answer.tuned)] == [said(side) for side in (single.base, single.tuned)]
        assert answer.proof is not None
        assert single.proof is not None
        assert answer.proof.adapter_hash == single.proof.adapter_hash
        assert answer.proof.prompt_hash == single.proof.prompt_hash
        assert (answer.step, answer.reference, answer.versions) == (4, question.reference, single.versions)


def test_the_native_arm_is_the_base_under_its_native_prompt(trained: tuple[Session, Run]) -> None:
    session, run = trained
    study = study_of(session, run, 7, native_arm=True)
    session.prepare(study.id)
    loaded = tiny.model_of(session)
    answers = answers_of(study)
    for question in study.questions():
        row = Row(loaded.tokenizer(render_question(question.question, NATIVE))["input_ids"], None, DRAWN)
        tiny.write(loaded, row)
        native = answers[question.id, 5].side("native")
        assert said(native) == said(transcript(loaded, row))
        assert native.text != answers[question.id, 5].side("base").text
        single = tiny.pair(loaded, run.adapter_dir(), Question(question.question, DRAWN, "article", run.id))
        assert said(answers[question.id, 5].side("tuned")) == said(single.tuned)
    assert max(answer.comparison.rows_at_once for answer in answers.values()) == 15, "five questions of three texts each"


def test_the_native_answer_is_proven_under_its_own_prompt(trained: tuple[Session, Run]) -> None:
    session, run = trained
    study = study_of(session, run, 3, native_arm=True)
    session.prepare(study.id)
    loaded = tiny.model_of(session)
    for row in rows_of(study):
        proof, pair = row["native"]["proof"], row["comparison"]["proof"]
        text = render_question(row["comparison"]["question"], NATIVE)
        assert proof["prompt_hash"] == hashlib.sha256(text.encode()).hexdigest() != pair["prompt_hash"]
        assert (proof["problems"], proof["tolerance"], proof["base_hash"]) == ([], TOLERANCES[loaded.dtype], loaded.info.base_hash)
        assert 0 <= proof["base_difference"] <= proof["tolerance"]
        assert proof["base_nearer"] > 0
    assert all(answer.native for answer in answers_of(study).values()), "it is read with its proof beside it"


@pytest.mark.parametrize("made_wrong", ["tuned", "nan"])
def test_a_native_answer_that_is_not_the_bases_fails(trained: tuple[Session, Run], made_wrong: str) -> None:
    session, run = trained
    loaded = tiny.model_of(session)
    study = study_of(session, run, 1, native_arm=True)
    adapter = select_adapter(loaded, run.adapter_dir())
    answers = Answers(loaded, study.config, study.questions()[0], 5, adapter)
    decoder = Decoder(loaded, 3, answers.base.longest)
    decoder.submit(answers.rows)
    decoder.step()
    assert answers.native is not None
    whole = answers.native.first_logits
    assert whole is not None
    _off, on = reference_logits(loaded, answers.native.prompt, adapter)
    answers.native.first_logits = on if made_wrong == "tuned" else whole * float("nan")
    with pytest.raises(ProofError, match="under the native prompt, the base side differs from the plain base"):
        answers.prove()
    answers.native.first_logits = whole
    answers.prove()
    assert answers.native_proof is not None


def test_stopped_in_the_middle_it_goes_on_without_writing_anything_twice(trained: tuple[Session, Run]) -> None:
    session, run = trained
    study = study_of(session, run, 12)
    stop = tiny.StopAfter(18)
    session.prepare(study.id, stop)
    assert stop.left == 0, "it stopped when it was told to"
    assert (study.state, study.status["process"]) == ("interrupted", None)
    before = rows_of(study)
    assert len(before) == study.status["done"] == 8, "the first eight were whole, four were dropped"
    pairs = session.pairs
    assert (pairs.writing, list(pairs.waiting)) == ([], [])
    session.prepare(study.id)
    after = rows_of(study)
    assert after[:8] == before
    assert len(after) == study.status["done"] == len({(row["question"], row["seed"]) for row in after}) == 12
    assert study.state == "open"


def test_a_run_trained_on_meanwhile_ends_it_before_two_adapters_are_mixed(copied: tuple[Session, Run], llama: Path) -> None:
    session, run = copied
    study = study_of(session, run, 12)
    session.prepare(study.id, tiny.StopAfter(18))
    before = rows_of(study)
    assert len(before) == 8
    tiny.save_adapter(session.runs.get(run.id).adapter_dir(), llama)
    with pytest.raises(StudyError, match=r"its run was trained on.*Make a new study"):
        session.prepare(study.id)
    assert (study.state, study.status["process"]) == ("failed", None)
    assert "Make a new study" in study.status["message"]
    assert rows_of(study) == before


def test_the_remaining_time_is_told_between_answers_and_falls(trained: tuple[Session, Run]) -> None:
    session, run = trained
    study = study_of(session, run, 24)
    told: dict[int, float | None] = {}

    def look() -> bool:
        status = study.status
        told.setdefault(status["done"], status["eta_seconds"])
        time.sleep(0.05)  # or a fast machine would have tenths of a second left, which are told as none
        return False

    session.prepare(study.id, look)
    assert told.pop(0) is None, "nothing is known before the first answer"
    left = [told[done] for done in sorted(told) if done <= 20]
    assert len(left) >= 2
    assert all(each is not None and each > 0 for each in left)
    assert left[-1] < left[0]  # type: ignore[operator]
    assert study.status["eta_seconds"] is None


def test_a_study_that_has_all_its_answers_is_opened_though_its_run_was_trained_on(copied: tuple[Session, Run], llama: Path) -> None:
    session, run = copied
    study = study_of(session, run, 2)
    session.prepare(study.id)
    study.set_status(state="interrupted")
    before = rows_of(study)
    tiny.save_adapter(session.runs.get(run.id).adapter_dir(), llama)
    session.prepare(study.id)
    assert study.state == "open"
    assert rows_of(study) == before


def test_a_proof_that_fails_ends_it_with_words_and_keeps_nothing_unproven(copied: tuple[Session, Run]) -> None:
    session, run = copied
    study = study_of(session, run)
    _name, weight = list(base_weights(tiny.model_of(session).base))[3]
    weight.view(torch.int32).flatten()[0] ^= 1
    with pytest.raises(ProofError, match="base weights have changed"):
        session.prepare(study.id)
    assert study.state == "failed"
    assert "base weights have changed" in study.status["message"]
    assert study.status["process"] is None
    assert rows_of(study) == []
    assert session.pairs.writing == []
    session.load(run.model)
    session.prepare(study.id)
    assert study.state == "open"


def test_a_question_that_does_not_fit_ends_it_with_words(copied: tuple[Session, Run]) -> None:
    session, run = copied
    study = study_of(session, run, 2)
    file = study.path / "questions.json"
    file.write_text(file.read_text().replace("Case 1: ", "Case 1: " + "fever " * tiny.CONTEXT))
    with pytest.raises(ConfigError, match="more than fit"):
        session.prepare(study.id)
    assert study.state == "failed"
    assert "more than fit" in study.status["message"]
    assert (session.pairs.writing, list(session.pairs.waiting)) == ([], [])


def test_memory_that_runs_out_ends_it_with_words_about_a_study(copied: tuple[Session, Run]) -> None:
    session, run = copied
    study = study_of(session, run)

    def full() -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        session.prepare(study.id, full)
    assert study.state == "failed"
    assert study.status["message"].startswith("Out of memory while preparing. Lower the study's longest answer")
    assert (session.pairs.writing, list(session.pairs.waiting)) == ([], [])


def test_a_run_that_is_gone_is_told(session: Session) -> None:
    study = created(session.data_dir, 2, run="20200101-000000-abcd")
    with pytest.raises(RunError, match="no run"):
        session.prepare(study.id)
    assert study.state == "failed"
    assert "no run" in study.status["message"]


def test_the_page_that_goes_away_leaves_it_to_be_marked_interrupted(copied: tuple[Session, Run]) -> None:
    session, run = copied
    study = study_of(session, run)

    def gone() -> bool:
        raise SystemExit

    with pytest.raises(SystemExit):
        session.prepare(study.id, gone)
    assert (study.state, study.is_claimed()) == ("preparing", True)
    assert session.pairs.writing == []
    session.prepare(study.id)
    assert len(rows_of(study)) == 3
