"""A session: one model, its runs and comparisons, and clear words where they do not belong together."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepdoctor import nano
from deepdoctor.comparison import Comparison
from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig, ModelConfig
from deepdoctor.dataset import held_out_examples, known_reference
from deepdoctor.engine.decode import Row
from deepdoctor.engine.fingerprint import base_weights
from deepdoctor.engine.model import ROOM_TO_WORK, find, load_found
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.engine.room import weight_bytes
from deepdoctor.engine.session import Session, never
from deepdoctor.errors import EngineError, ModelError, ProofError, RunError
from deepdoctor.runs import Run, Runs, logged
from tests.engine import tiny

QUESTION = "A patient aged 33 has a strange rash and two dogs. Why?"


def ask(session: Session, run: Run, question: str = QUESTION, step: int | None = None) -> Comparison:
    *_, made = session.compare(Compare(question, run.id, step, tiny.GREEDY))
    return made


def test_a_comparison_is_proven_graded_and_saved(trained: tuple[Session, Run]) -> None:
    session, run = trained
    made = ask(session, run)
    assert made.finished
    assert made.proof is not None
    assert made.proof.problems() == []
    assert made.seen["grade"] == "unseen"
    assert session.comparisons.get(made.id) == made


def test_a_question_of_the_training_rows_is_graded_seen(trained: tuple[Session, Run]) -> None:
    session, run = trained
    assert ask(session, run, f"  {run.training_questions()[0]} ").seen["grade"] == "seen"


def test_snapshots_come_before_the_end_and_only_the_last_is_saved(session: Session, trained: tuple[Session, Run]) -> None:
    shutil.copytree(trained[1].path, session.runs.root / trained[1].id)
    request = Compare(QUESTION, trained[1].id, sampling=tiny.GREEDY.changed(max_new_tokens=60))
    *snapshots, last = session.compare(request)
    assert snapshots
    assert not any(snapshot.id or snapshot.finished for snapshot in snapshots)
    assert [each.id for each in session.comparisons.list()] == [last.id]


def test_a_comparison_whose_run_is_deleted_meanwhile_is_saved_ungraded(session: Session, trained: tuple[Session, Run]) -> None:
    shutil.copytree(trained[1].path, session.runs.root / trained[1].id)
    writing = session.compare(Compare(QUESTION, trained[1].id, sampling=tiny.GREEDY.changed(max_new_tokens=60)))
    next(writing)
    session.runs.delete(trained[1].id)
    *_, last = writing
    assert last.seen == {"grade": "unknown"}
    assert session.comparisons.get(last.id) == last


def test_each_checkpoint_is_another_tuned_side(trained: tuple[Session, Run]) -> None:
    session, run = trained
    early, late, final = (ask(session, run, step=step) for step in (2, 6, None))
    assert early.base.text == late.base.text == final.base.text
    assert late.tuned.text == final.tuned.text
    assert early.proof is not None
    assert late.proof is not None
    assert early.proof.adapter_hash != late.proof.adapter_hash


def test_several_checkpoints_answer_in_one_pass_as_each_does_alone(trained: tuple[Session, Run]) -> None:
    session, run = trained
    *_, made = session.compare(Compare(QUESTION, run.id, None, tiny.GREEDY, also=(2, 4)))
    made.require_proven()
    alone = {step: ask(session, run, step=step) for step in (None, 2, 4)}
    assert (made.base.text, made.tuned.text) == (alone[None].base.text, alone[None].tuned.text)
    assert [(each.step, each.written.text) for each in made.further] == [(step, alone[step].tuned.text) for step in (2, 4)]
    for each in made.further:
        mine, own = each.proof, alone[each.step].proof
        assert mine is not None
        assert own is not None
        assert (mine.adapter_hash, mine.prompt_hash, mine.base_hash) == (own.adapter_hash, own.prompt_hash, own.base_hash)
        assert mine.problems() == []
    assert made.rows_at_once == 4
    assert session.comparisons.get(made.id) == made


class Unwanted(Run):
    """A run that is deleted the moment it says that it has ended."""

    def set_status(self, **changes: Any) -> None:
        """The status, as it is for an instant."""
        super().set_status(**changes)
        if self.state in ("finished", "stopped"):
            Runs(self.path.parents[1]).delete(self.id)


class UnwantedRuns(Runs):
    """Runs whose user waits for nothing else."""

    def get(self, run_id: str) -> Run:
        """One of them."""
        return Unwanted(super().get(run_id).path)


@pytest.mark.parametrize("stop", [never, tiny.StopAfter(2)])
def test_a_run_that_says_it_has_ended_is_written_no_more(session: Session, dataset: DatasetConfig, stop: Callable[[], bool]) -> None:
    run = tiny.new_run(session, dataset, max_steps=3)
    session.runs = UnwantedRuns(session.data_dir)
    session.finetune(run.id, should_stop=stop)
    assert list(session.runs.root.iterdir()) == []


def test_base_and_two_checkpoints_of_the_embedded_model_write_together_what_each_writes_alone(tmp_path: Path) -> None:
    session, model = tiny.open_session(tmp_path, Path(EMBEDDED_MODEL)), Path(nano.__file__).parent / "model"
    run = tiny.new_run(session, DatasetConfig())
    for step in (20, 60):
        tiny.save_adapter(run.checkpoint_dir(step), model, seed=step, strength=0.02)
        (run.checkpoint_dir(step) / "trainer_state.json").write_text("{}")
    greedy = tiny.GREEDY.changed(max_new_tokens=150)
    pair = session.begin(Compare(QUESTION, run.id, 60, greedy, also=(20,)))
    while not pair.finished:
        session.step()
    pair.prove()
    pair.snapshot().require_proven()
    assert len({tuple(row.tokens) for row in pair.rows}) == 3
    for row in pair.rows:
        assert tiny.write(pair.loaded, Row(row.prompt, row.adapter, row.sampling)) == [row.tokens]


def test_a_checkpoint_that_is_not_there_is_told_and_nothing_is_queued(trained: tuple[Session, Run]) -> None:
    session, run = trained
    with pytest.raises(RunError, match="no adapter at step 4242"):
        session.begin(Compare(QUESTION, run.id, also=(2, 4242)))
    assert list(session.pairs.waiting) == []


def test_right_after_training_the_tuned_side_is_there(session: Session, dataset: DatasetConfig, llama: Path) -> None:
    base = tiny.model_of(session).base
    for seed in (1, 2):
        run = session.finetune(tiny.new_run(session, dataset, seed=seed).id)
        made = ask(session, run)
        assert made.proof is not None
        assert made.proof.problems() == []
        loaded = tiny.model_of(session)
        assert loaded.base is base, "nothing was loaded again"
        from deepdoctor.prompts import render_question

        prompt = loaded.tokenizer(render_question(QUESTION))["input_ids"]
        wanted = tiny.generate(tiny.with_adapter(llama, run.adapter_dir()), prompt, 24)
        assert made.tuned.text == loaded.tokenizer.decode(wanted, skip_special_tokens=True)


def test_a_stopped_comparison_is_saved_as_stopped(trained: tuple[Session, Run]) -> None:
    session, run = trained
    *_, made = session.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY), tiny.StopAfter(2))
    assert session.comparisons.get(made.id).tuned.finish_reason == "stopped"


def test_an_unknown_run_or_step(trained: tuple[Session, Run]) -> None:
    session, run = trained
    with pytest.raises(RunError, match="no run"):
        next(session.compare(Compare(QUESTION, "20200101-000000-abcd")))
    with pytest.raises(RunError, match="no adapter at step 4242"):
        ask(session, run, step=4242)


def test_a_run_of_another_model_is_refused(trained: tuple[Session, Run], tmp_path: Path) -> None:
    session, run = trained
    other = tiny.open_session(session.data_dir, tiny.save_model(tmp_path / "other", seed=3))
    with pytest.raises(ModelError, match=r"was made with .* but .*other is loaded\. Load .* first, under Model at the top"):
        ask(other, run)


def test_a_run_is_compared_resumed_and_exported_over_a_mirror_of_the_same_name(
    trained: tuple[Session, Run], llama: Path, dataset: DatasetConfig, tmp_path: Path
) -> None:
    """Packed in 4 bits by somebody else, its weights have another fingerprint. The name stays the original's everywhere."""
    session, run = trained
    mirror = shutil.copytree(llama, tmp_path / "mirror")
    weights = load_file(mirror / "model.safetensors")
    save_file({name: weight * 1.001 for name, weight in weights.items()}, mirror / "model.safetensors", {"format": "pt"})
    over = Session(tmp_path / "data")
    over.loaded = load_found(replace(find(run.model), folder=mirror), over.data_dir)
    assert over.loaded.info.base_hash != tiny.model_of(session).info.base_hash
    over.loaded.info = replace(over.loaded.info, precision="4bit")
    shutil.copytree(run.path, over.runs.root / run.id)
    made = ask(over, run)
    assert made.proof is not None
    assert made.proof.problems() == []
    assert (made.model, over.loaded.info.name) == (run.model.name, run.model.name)
    stopped = tiny.new_run(over, dataset)
    over.finetune(stopped.id, should_stop=tiny.StopAfter(3))
    stopped = over.finetune(stopped.id, resume=True)
    assert stopped.state == "finished"
    config = json.loads((over.export(Export(stopped.id, merged=False)) / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == run.model.name
    assert over.load(run.model) is over.loaded, "it is the model that was asked for"


def test_a_run_that_needs_another_precision_logs_what_is_done_for_it(session: Session, dataset: DatasetConfig) -> None:
    loaded = tiny.model_of(session)
    loaded.info = replace(loaded.info, backend="unsloth", precision="4bit")
    run = tiny.new_run(session, dataset, base_precision="16bit")
    session.finetune(run.id, should_stop=tiny.StopAfter(1))
    assert tiny.model_of(session).dtype in (torch.bfloat16, torch.float16)
    assert re.search(r"Loading tokenizer and weights in b?float16\.\n.*Fingerprinting", run.log_tail(100))


def test_what_is_logged_of_a_download_is_one_line(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset)
    report = logged(run)
    report("Looking for owner/model on the Hub", None)
    for done in range(9):
        report(f"Downloading owner/model: {done} of 9 GB", done / 9)
    report("Loading weights", 0.4)
    assert [line[9:] for line in run.log_tail().splitlines()] == [
        *("Looking for owner/model on the Hub.", "Downloading owner/model.", "Loading weights."),
    ]


def test_with_nothing_loaded_a_run_brings_its_own_model(trained: tuple[Session, Run]) -> None:
    session, run = trained
    fresh = Session(session.data_dir)
    assert ask(fresh, run).tuned.text == ask(session, run).tuned.text


def test_loading_the_same_model_again_keeps_it_and_another_replaces_it(session: Session, llama: Path, tmp_path: Path) -> None:
    first = tiny.model_of(session)
    assert session.load(ModelConfig(name=str(llama))) is first
    other = session.load(ModelConfig(name=str(tiny.save_model(tmp_path / "other", "qwen3"))))
    assert session.loaded is other
    assert other.info.base_hash != first.info.base_hash


def test_memory_that_ends_behind_the_weights_is_told_and_the_former_model_stays(
    session: Session, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.save_model(tmp_path / "other", seed=1)

    def full(_base: object) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("deepdoctor.engine.model.base_hash", full)
    with pytest.raises(ModelError, match="does not fit into this machine's memory"):
        session.load(ModelConfig(name=str(other)))
    assert tiny.model_of(session).config.name == str(llama)


def test_reloading_mends_weights_that_were_tampered_with(session: Session, trained: tuple[Session, Run], llama: Path) -> None:
    shutil.copytree(trained[1].path, session.runs.root / trained[1].id)
    _name, weight = list(base_weights(tiny.model_of(session).base))[3]
    weight.view(torch.int32).flatten()[0] ^= 1
    with pytest.raises(ProofError, match="Reload the model"):
        ask(session, trained[1])
    session.load(ModelConfig(name=str(llama)))
    assert ask(session, trained[1]).finished


class Memory:
    """Bytes that are free, as a session asks for them: one number after the other, the last one from then on."""

    def __init__(self, *told: int) -> None:
        self.left = list(told)

    def __call__(self, _most_gib: float | None = None) -> int:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def damaged(folder: Path) -> Path:
    """A model whose weights only prove not to fit its configuration when they are loaded."""
    tiny.save_model(folder, seed=5)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    return folder


def needed(folder: Path) -> int:
    return find(ModelConfig(name=str(folder))).bytes_to_load


def tight(session: Session, run: Run, *free: int) -> None:
    """From now on so many bytes are free, one number for each time that the session asks. The run can be compared with."""
    shutil.copytree(run.path, session.runs.root / run.id)
    session.free = Memory(*free)


PLENTY = 2**40


def test_a_model_that_needed_room_and_failed_leaves_the_former_answering(
    session: Session, trained: tuple[Session, Run], tmp_path: Path
) -> None:
    bad, before = damaged(tmp_path / "bad"), tiny.model_of(session)
    tight(session, trained[1], needed(bad) - 1, needed(bad) - 1, PLENTY)
    told: list[str] = []
    with pytest.raises(ModelError, match=rf"bad is damaged: it lacks .* Fetch it again; {before.config.name} was loaded again\.$"):
        session.load(ModelConfig(name=str(bad)), lambda words, _fraction: told.append(words))
    assert told.index("Making room for the new model") < told.index(f"Loading {before.config.name} again")
    again = tiny.model_of(session)
    assert again is not before
    assert (again.info.base_hash, again.config) == (before.info.base_hash, before.config)
    made = ask(session, trained[1])
    assert made.proof is not None
    assert made.proof.problems() == []
    assert made.tuned.text == ask(*trained).tuned.text


def test_room_is_made_only_where_it_is_needed_and_helps(session: Session, llama: Path, tmp_path: Path) -> None:
    other, first = ModelConfig(name=str(tiny.save_model(tmp_path / "other", "qwen3"))), tiny.model_of(session)
    size, told = find(other).bytes_to_load, []
    session.free = Memory(size - 1, size - 1, PLENTY)
    session.load(other, lambda words, _fraction: told.append(words))
    assert "Making room for the new model" in told
    session.free = Memory(PLENTY)
    told.clear()
    session.load(ModelConfig(name=str(llama)), lambda words, _fraction: told.append(words))
    assert "Making room for the new model" not in told
    assert tiny.model_of(session).info.base_hash == first.info.base_hash


def test_a_model_that_can_never_fit_is_refused_with_both_numbers_before_anything_is_given_up(session: Session, tmp_path: Path) -> None:
    large, before = tiny.save_model(tmp_path / "large", hidden_size=512, intermediate_size=2048, vocab_size=60_000), tiny.model_of(session)
    session.free = Memory(2**27)
    assert needed(large) > 2**27 + weight_bytes(before)
    with pytest.raises(
        ModelError, match=r"large needs about 0\.[45] GiB of memory in float32, but only 0\.1 GiB are free\. Choose a smaller"
    ):
        session.load(ModelConfig(name=str(large)))
    assert session.loaded is before


def test_a_first_model_that_does_not_fit_is_refused(llama: Path, tmp_path: Path) -> None:
    session = Session(tmp_path, Memory(ROOM_TO_WORK))
    with pytest.raises(ModelError, match=r"needs about 0\.3 GiB of memory in float32, but only 0\.2 GiB are free"):
        session.load(ModelConfig(name=str(llama)))
    assert session.loaded is None


def test_a_former_model_that_is_gone_too_is_told(session: Session, llama: Path, tmp_path: Path) -> None:
    former, bad = tmp_path / "former", damaged(tmp_path / "bad")
    shutil.copytree(llama, former)
    session.load(ModelConfig(name=str(former)))
    shutil.rmtree(former)
    session.free = Memory(needed(bad) - 1, needed(bad) - 1, PLENTY)
    with pytest.raises(ModelError, match=r"bad is damaged: .*\. The model .*former could not be loaded"):
        session.load(ModelConfig(name=str(bad)))
    assert session.loaded is None
    assert session.load(ModelConfig(name=str(llama)))


def test_out_of_memory_is_told_with_what_to_do(session: Session, dataset: DatasetConfig) -> None:
    run = tiny.new_run(session, dataset)

    def full() -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(EngineError, match="Lower the batch size"):
        session.finetune(run.id, should_stop=full)
    assert run.state == "failed"
    assert "Out of memory" in run.status["message"]


def test_unsloth_could_patch_before_what_it_patches_is_imported() -> None:
    """In a process of its own, the module that imports Unsloth comes before the libraries that it changes."""
    program = "import sys, deepdoctor.engine.session, deepdoctor.engine.finetune; print('\\n'.join(sys.modules))"
    order = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    first = order.index("deepdoctor.engine.accelerator")
    assert [name for name in ("transformers", "peft", "trl") if order.index(name) < first] == []


def test_references_are_known_for_held_out_questions_only() -> None:
    case = held_out_examples()[0].example
    assert known_reference(f" {case.question}\n") == case.response
    assert known_reference("What is love?") == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would load the model in 4 bits")
def test_a_model_that_does_not_fit_the_plan_in_16_bits_is_loaded_anew_in_4(session: Session, dataset: DatasetConfig) -> None:
    loaded = tiny.model_of(session)
    loaded.info = replace(loaded.info, backend="unsloth", precision="bfloat16", device="NVIDIA L4", memory_bytes=1)
    run = tiny.new_run(session, dataset, base_precision="auto")
    with pytest.raises(ModelError, match="4-bit weights need an NVIDIA GPU"):
        session.finetune(run.id)
    assert run.state == "failed"
