"""The trainer's callback: averages over windows, when it evaluates and asks, what a checkpoint keeps of it, and how it obeys a stop."""

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from deepdoctor.config import DatasetConfig
from deepdoctor.engine.adapters import fresh_adapter
from deepdoctor.engine.finetune import trainer_arguments
from deepdoctor.engine.follow import Follow, memory_gib, peak_bytes, reset_peak
from deepdoctor.engine.rows import prepare_rows
from deepdoctor.engine.session import Session, never
from deepdoctor.engine.tracking import Tracker
from deepdoctor.errors import RunError
from deepdoctor.estimates import How
from deepdoctor.runs import Run
from tests.engine import tiny

ARGUMENTS: Any = SimpleNamespace()


def follower(session: Session, dataset: DatasetConfig, should_stop: Any = never, **changes: Any) -> tuple[Follow, Run]:
    run = tiny.new_run(session, dataset, max_steps=10, **changes)
    loaded = tiny.model_of(session)
    fresh_adapter(loaded, run.finetune)
    return Follow(loaded, run, prepare_rows(loaded, run), Tracker(run), should_stop), run


def walk(follow: Follow, steps: range, losses: dict[int, float]) -> TrainerControl:
    """Feed it steps as the trainer does: step end first, then the log."""
    control = TrainerControl()
    for step in steps:
        state = TrainerState(global_step=step, max_steps=10)
        follow.on_step_end(ARGUMENTS, state, control)
        follow.on_log(ARGUMENTS, state, control, logs={"loss": losses[step], "learning_rate": 0.1, "grad_norm": 1.0, "epoch": 0.5})
    return control


def test_losses_are_averaged_over_the_logging_window(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset, logging_steps=4)
    walk(follow, range(1, 11), {step: float(step) for step in range(1, 11)})
    assert tiny.losses(run) == {4: 2.5, 8: 6.5, 10: 9.5}


def test_a_window_cut_by_a_stop_continues_after_the_resume(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset, logging_steps=4)
    losses = {step: float(step) for step in range(1, 11)}
    walk(follow, range(1, 7), losses)
    saved = TrainerState(global_step=6, max_steps=10, stateful_callbacks={"Follow": follow.state()})
    again = Follow(follow.loaded, run, follow.rows, follow.tracker, never)
    again.on_train_begin(ARGUMENTS, saved, TrainerControl())
    walk(again, range(7, 11), losses)
    assert tiny.losses(run) == {4: 2.5, 8: 6.5, 10: 9.5}


def test_it_evaluates_and_asks_when_told_and_at_both_ends(session: Session, dataset: DatasetConfig) -> None:
    questions = ("What is fever?", "What is thirst?")
    follow, run = follower(session, dataset, eval_steps=4, probe_steps=3, probe_questions=questions)
    follow.on_train_begin(ARGUMENTS, TrainerState(global_step=0, max_steps=10), TrainerControl())
    walk(follow, range(1, 11), dict.fromkeys(range(1, 11), 1.0))
    assert list(tiny.losses(run, "held_out_loss")) == [0, 4, 8, 10]
    assert [(row["step"], row["question"]) for row in run.probes()] == [(step, each) for step in (0, 3, 6, 9, 10) for each in questions]


def test_zero_means_only_both_ends_for_losses_and_never_for_probes(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset, eval_steps=0, probe_steps=0)
    follow.on_train_begin(ARGUMENTS, TrainerState(global_step=0, max_steps=10), TrainerControl())
    walk(follow, range(1, 11), dict.fromkeys(range(1, 11), 1.0))
    assert list(tiny.losses(run, "held_out_loss")) == [0, 10]
    assert run.probes() == []


def test_a_probe_is_the_greedy_answer_of_the_adapter_in_training(session: Session, dataset: DatasetConfig, llama: Path) -> None:
    from deepdoctor.prompts import render_question

    follow, run = follower(session, dataset, probe_steps=1, probe_questions=("What is fever?",))
    loaded = follow.loaded
    assert loaded.peft is not None
    with torch.no_grad():
        for name, weight in loaded.peft.named_parameters():
            if "lora_B.default" in name:
                weight.add_(0.1)
    follow._probe(1)
    loaded.peft.save_pretrained(run.path / "now", selected_adapters=["default"])
    prompt = loaded.tokenizer(render_question("What is fever?"))["input_ids"]
    wanted = tiny.generate(tiny.with_adapter(llama, run.path / "now"), prompt, run.finetune.probe_tokens)
    [probe] = run.probes()
    assert probe["text"] == loaded.tokenizer.decode(wanted, skip_special_tokens=True)
    assert wanted != tiny.generate(tiny.plain(llama), prompt, run.finetune.probe_tokens)


def test_a_probe_question_that_does_not_fit_does_not_end_the_run(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset, probe_steps=1, probe_questions=("fever " * tiny.CONTEXT, "What is fever?"))
    follow._probe(0)
    assert [row["question"] for row in run.probes()] == ["What is fever?"]
    assert "too long" in run.log_tail()


def test_a_stop_within_a_probe_ends_the_run_at_that_step_and_it_is_asked_when_the_run_goes_on(
    session: Session, dataset: DatasetConfig
) -> None:
    questions = ("What is fever?", "What is thirst?")
    # asked after each of two steps, for each token of the first answer, and for some of the second
    stop = tiny.StopAfter(2 + 8 + 3)
    follow, run = follower(session, dataset, stop, probe_steps=2, probe_questions=questions, probe_tokens=8)
    follow.loaded = tiny.Endless(**vars(follow.loaded))
    control = walk(follow, range(1, 3), {1: 1.0, 2: 1.0})
    assert (control.should_save, control.should_training_stop, follow.stopped) == (True, True, True)
    assert [row["question"] for row in run.probes()] == ["What is fever?"]
    assert "step 2: probe left out, because the run is to stop" in run.log_tail()
    again = Follow(follow.loaded, run, follow.rows, follow.tracker, never)
    for _ in range(2):
        again.on_train_begin(ARGUMENTS, TrainerState(global_step=2, max_steps=10), TrainerControl())
    again.on_train_begin(ARGUMENTS, TrainerState(global_step=3, max_steps=10), TrainerControl())
    assert [(row["step"], row["question"]) for row in run.probes()] == [(2, question) for question in questions]
    assert (run.path / "probes.jsonl").read_text().count("\n") == 2


def test_processes_that_share_a_run_are_not_asked_between_tokens(session: Session, dataset: DatasetConfig) -> None:
    def together() -> bool:
        raise AssertionError("the others would have to answer too")

    follow, run = follower(session, dataset, together, probe_steps=2, probe_questions=("What is fever?",), devices=3)
    follow._probe(2)
    assert len(run.probes()) == 1


def test_tokens_a_second_are_of_the_rows_that_were_read(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset, logging_steps=1, batch_size=8)
    tokens = sum(len(row.ids) for row in follow.rows.train)
    for began, ends in ((0.0, (8 / 9, 1.0)), (1.0, (1 + 8 / 9,))):  # the second time as resumed
        first = 2 if began else 0
        follow.on_train_begin(ARGUMENTS, TrainerState(global_step=first, max_steps=10, epoch=began), TrainerControl())
        for step, epoch in enumerate(ends, first + 1):
            follow._window_began = time.perf_counter() - 10
            follow.on_log(ARGUMENTS, TrainerState(global_step=step, max_steps=10), TrainerControl(), logs={"loss": 1.0, "epoch": epoch})
    found = [row["tokens_per_second"] for row in run.curve() if "loss" in row]
    assert found == pytest.approx([tokens * share / 10 for share in (8 / 9, 1 / 9, 8 / 9)], rel=0.01)


def test_a_stop_asks_for_a_checkpoint_and_the_end(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset, tiny.StopAfter(3))
    assert not walk(follow, range(1, 3), {1: 1.0, 2: 1.0}).should_training_stop
    control = walk(follow, range(3, 4), {3: 1.0})
    assert control.should_training_stop
    assert control.should_save
    assert follow.stopped
    assert run.status["step"] == 3


def test_a_stop_at_the_last_step_is_a_finish(session: Session, dataset: DatasetConfig) -> None:
    follow, _run = follower(session, dataset, tiny.StopAfter(10))
    walk(follow, range(1, 11), dict.fromkeys(range(1, 11), 1.0))
    assert not follow.stopped


def test_progress_tells_elapsed_and_remaining_time(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset)
    follow.on_train_begin(ARGUMENTS, TrainerState(global_step=0, max_steps=10), TrainerControl())
    follow._began -= 8.0
    walk(follow, range(4, 5), {4: 1.0})
    assert run.status["seconds"] == pytest.approx(8, abs=2)
    assert run.status["eta_seconds"] == pytest.approx(12, abs=3)
    resumed, run = follower(session, dataset)
    resumed.on_train_begin(ARGUMENTS, TrainerState(global_step=8, max_steps=10), TrainerControl())
    resumed._began -= 8.0
    walk(resumed, range(9, 10), {9: 1.0})
    assert run.status["eta_seconds"] == pytest.approx(8, abs=2), "steps before the resume took no time now"


def test_a_full_epoch_that_is_resumed_at_its_last_checkpoint_goes_to_its_end(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset, max_steps=0, warmup_steps=5, logging_steps=10, eval_steps=100, probe_steps=100)
    loaded, end = tiny.model_of(session), 2463
    fresh_adapter(loaded, run.finetune)
    arguments = trainer_arguments(run, How("float32", 2, 4, False), end, loaded)
    assert (arguments.max_steps, arguments.warmup_steps, arguments.save_steps) == (end, 5, run.finetune.checkpoint_steps)
    follow = Follow(loaded, run, prepare_rows(loaded, run), Tracker(run), never)
    follow.on_train_begin(arguments, TrainerState(global_step=2400, max_steps=end), TrainerControl())
    for step in range(2401, end + 1):
        state, control = TrainerState(global_step=step, max_steps=end), TrainerControl()
        follow.on_step_end(arguments, state, control)
        follow.on_log(arguments, state, control, logs={"loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "epoch": 0.99})
    assert list(tiny.losses(run)) == [2410, 2420, 2430, 2440, 2450, 2460, 2463]
    assert list(tiny.losses(run, "held_out_loss")) == [2463]
    assert [row["step"] for row in run.probes()] == [2400, 2463], "the one that was never answered is asked first"
    assert (run.status["step"], run.status["eta_seconds"]) == (end, 0)


def test_a_loss_that_is_not_a_number_is_still_written_as_json(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset)
    walk(follow, range(1, 2), {1: math.nan})
    [row] = run.curve()
    assert math.isnan(row["loss"])


def test_a_run_whose_losses_are_no_numbers_any_more_ends_with_advice(session: Session, dataset: DatasetConfig) -> None:
    follow, _run = follower(session, dataset)
    once = {1: 2.0, 2: math.nan, 3: math.inf, 4: 2.0, 5: math.nan, 6: math.nan, 7: math.nan}
    walk(follow, range(1, 7), once)  # a step that a loss scaler leaves out, and the two after a number, may pass
    with pytest.raises(RunError, match=r"diverged at step 7: .* learning rate"):
        walk(follow, range(7, 8), once)


def test_weights_that_are_no_numbers_end_a_run_before_they_are_saved(session: Session, dataset: DatasetConfig) -> None:
    follow, run = follower(session, dataset, logging_steps=4)
    assert follow.loaded.peft is not None
    weight = next(each for each in follow.loaded.peft.parameters() if each.requires_grad)
    walk(follow, range(1, 3), {1: 2.0, 2: math.nan})
    weight.data[0] = math.nan
    with pytest.raises(RunError, match="diverged at step 3"):
        walk(follow, range(3, 4), {3: math.nan})
    assert list(tiny.losses(run)) == [3], "what was logged until then is written"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts a process's peak anew")
def test_a_peak_is_that_of_the_run_and_not_of_what_was_before() -> None:
    cpu = torch.device("cpu")
    larger = torch.ones(2**27)  # 512 MiB
    before = peak_bytes(cpu)
    del larger
    reset_peak(cpu)
    now = peak_bytes(cpu)
    assert now < before - 2**28
    assert torch.ones(2**26).sum() == 2**26
    assert now + 2**27 < peak_bytes(cpu) < before


def test_memory_is_measured() -> None:
    assert 0.01 < memory_gib(torch.device("cpu")) < 200
