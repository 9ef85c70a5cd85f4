"""Preparing a study: the answers of all its arms, written in batches through the paired decoder and stored one by one with their proofs."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deepdoctor.comparison import Comparison
from deepdoctor.config import StudyConfig
from deepdoctor.engine.adapters import adapter_hash, select_adapter
from deepdoctor.engine.compare import Pair, Question, prove_base
from deepdoctor.engine.decode import Row, transcript
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.pairs import Pairs
from deepdoctor.prompts import NATIVE, render_question
from deepdoctor.proof import BaseProof
from deepdoctor.studies.answers import require_one_adapter
from deepdoctor.studies.questions import BankQuestion
from deepdoctor.studies.study import Study


class Answers(Pair):
    """One question of a study being answered by base and tuned, and by the base under its native prompt if the study has that arm."""

    def __init__(self, loaded: LoadedModel, config: StudyConfig, question: BankQuestion, seed: int, adapter: str) -> None:
        sampling = config.sampling.changed(seed=seed)
        super().__init__(
            loaded, Question(question.question, sampling, config.prompt_style, config.run, config.step, question.reference), adapter
        )
        self.question, self.seed = question, seed
        self.native: Row | None = None
        self.native_proof: BaseProof | None = None
        self.native_text = render_question(question.question, NATIVE)
        if config.native_arm:
            self.native = Row(loaded.tokenizer(self.native_text)["input_ids"], None, sampling)

    @property
    def rows(self) -> list[Row]:
        """Base, tuned and, if there is one, native."""
        return [*super().rows, *([self.native] if self.native else [])]

    def prove(self) -> None:
        """Take the proofs of the pair and of the native answer, once there is something to prove. Raises ProofError if one fails."""
        super().prove()
        if self.native is None or self.native_proof or self.proof is None or self.tuned.adapter is None:
            return
        if self.native.first_logits is not None:
            proof = prove_base(self.loaded, self.native_text, self.native, self.proof, self.tuned.adapter)
            proof.require("under the native prompt")
            self.native_proof = proof

    def to_row(self, seen: str) -> dict[str, object]:
        """A row of the study's answers; see `Study.answers`."""
        made: Comparison = replace(self.snapshot(), seen={"grade": seen}, created=time.time())
        native = None
        if self.native:
            assert self.native_proof
            native = {**transcript(self.loaded, self.native).to_dict(), "proof": self.native_proof.to_dict()}
        return {"question": self.question.id, "seed": self.seed, "comparison": made.to_dict(), "native": native}


def prepare(pairs: Pairs, study: Study, adapter_folder: Path, should_stop: Callable[[], bool]) -> None:
    """Write what the study lacks, as many questions at a time as fit into memory, and open it to raters when nothing is missing.

    Each answer is on disk as soon as it is written, so a later call goes on where this one ended. When `should_stop` says yes, what is
    half written is dropped and the study is "interrupted". Raises ProofError, ConfigError or ModelError for what cannot be answered, and
    StudyError, before anything is written, if its first answers are of another adapter or base.
    """
    config, seen, pending = study.config, study.seen(), deque(study.pending())
    answered, adapter = study.answers(), select_adapter(pairs.loaded, adapter_folder)
    if pending:
        require_one_adapter(answered.values(), (adapter_hash(pairs.loaded, adapter), pairs.loaded.info.base_hash))
    done, began = 0, time.monotonic()
    open_: list[Answers] = []
    try:
        while pending or open_:
            while pending and len(open_) < 8:
                question, seed = pending.popleft()
                open_.append(Answers(pairs.loaded, config, question, seed, adapter))
                pairs.submit(open_[-1])
            ended = pairs.step()
            for each in open_:
                each.prove()
            for each in [each for each in open_ if each in ended]:
                study.append_answer(each.to_row(seen[each.question.id]))
                open_.remove(each)
                done += 1
                left = (time.monotonic() - began) / done * (len(pending) + len(open_))
                study.set_status(done=len(answered) + done, eta_seconds=round(left, 1))
            if should_stop():
                study.set_status(state="interrupted", message="Stopped; what is written stays.", eta_seconds=None, process=None)
                return
    finally:
        for each in open_:
            pairs.drop(each)
    study.open()
