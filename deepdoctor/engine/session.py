"""One engine session: the loaded model and everything one can ask of it. Used by the engine process, the command line and tests alike."""

from deepdoctor.engine.accelerator import free_bytes

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from deepdoctor.comparison import Comparison, Comparisons
from deepdoctor.config import EMBEDDED_MODEL, ModelConfig
from deepdoctor.dataset import held_out_examples
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.compare import Pair, Question
from deepdoctor.engine.export import Say, export
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.model import LoadedModel, Report, folder_of, load, parameters_in, unheard
from deepdoctor.engine.pairs import Pairs
from deepdoctor.engine.prepare import prepare
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.errors import DeepDoctorError, EngineError, ModelError, Stopped, told
from deepdoctor.overlap import graded
from deepdoctor.plan import precision_for
from deepdoctor.runs import Run, Runs
from deepdoctor.studies.progress import keep_losses
from deepdoctor.studies.study import Studies, Study

Ask = Callable[[], bool]


def never() -> bool:
    """A should_stop for work that nobody will stop."""
    return False


class Session:
    """Holds the one loaded model of this process; does one thing at a time."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = Path(data_dir)
        self.runs = Runs(self.data_dir)
        self.comparisons = Comparisons(self.data_dir)
        self.studies = Studies(self.data_dir)
        self.loaded: LoadedModel | None = None
        self._pairs: Pairs | None = None

    def load(self, config: ModelConfig, report: Report = unheard) -> LoadedModel:
        """Load a base model in place of the current one, which stays if this raises ModelError, or if it is the same and unharmed."""
        before = self.loaded
        if before and before.config == config and base_hash(before.base) == before.info.base_hash:
            return before
        if before and not self._fits_beside(config, before):
            self.loaded = before = self._pairs = None
            free()
            report("Making room for the new model", 0.1)
        try:
            self.loaded, self._pairs = load(config, self.data_dir, report), None
        finally:
            del before
            free()
        if self.loaded.device.type == "cuda":
            report("Preparing the kernels", 0.9)
            self.pairs.warm()
        return self.loaded

    def _fits_beside(self, config: ModelConfig, before: LoadedModel) -> bool:
        """Whether another model can be loaded while this one stays, so that it is still there if that fails."""
        if before.device.type != "cuda" or config.name == EMBEDDED_MODEL:
            return True
        return parameters_in(folder_of(config)) * 2 < free_bytes(config.gpu_memory_gib)

    def _for(self, run: Run) -> LoadedModel:
        """The loaded model, if the run belongs to it; with nothing loaded yet, its own model is loaded."""
        if self.loaded is None:
            return self.load(run.model)
        if self.loaded.config.name != run.model.name:
            raise ModelError(
                f"Run {run.name} was made with {run.model.name}, but {self.loaded.config.name} is loaded. Load that model first."
            )
        return self.loaded

    @property
    def pairs(self) -> Pairs:
        """The comparisons being written with the loaded model."""
        if self.loaded is None:
            raise EngineError("No model is loaded.")
        if self._pairs is None or self._pairs.loaded is not self.loaded:
            self._pairs = Pairs(self.loaded)
        return self._pairs

    def begin(self, request: Compare) -> Pair:
        """Queue a comparison; `step` writes it. Raises DeepDoctorError, and queues nothing, if it cannot be made."""
        run = self.runs.get(request.run)
        loaded = self._for(run)
        asked = Question(
            question=request.question.strip(),
            sampling=request.sampling,
            prompt_style=request.prompt_style,
            run=run.id,
            step=request.step,
            reference=request.reference or known_reference(request.question),
        )
        pair = Pair(loaded, asked, select_adapter(loaded, run.adapter_dir(request.step), self.pairs.adapters))
        self.pairs.submit(pair)
        return pair

    def step(self) -> list[Pair]:
        """One more token for all comparisons that are being written; returns those that ended."""
        return self.pairs.step()

    def finish(self, pair: Pair) -> Comparison:
        """Grade a pair that has ended as seen or unseen, and save it. Raises Stopped if nothing was written."""
        if pair.proof is None:
            raise Stopped("Stopped before anything was written.")
        latest = pair.snapshot()
        seen = graded(self.runs.get(latest.run).training_questions(), latest.question)
        return self.comparisons.save(replace(latest, seen=seen))

    def _in_precision(self, run: Run) -> LoadedModel:
        """The run's model in the precision that its recipe asks for; on a CPU there is only one."""
        loaded = self._for(run)
        wanted = precision_for(run.finetune, loaded.info)
        if wanted == loaded.info.precision:
            return loaded
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        return self.load(loaded.config.changed(precision="4bit" if wanted == "4bit" else half))

    def compare(self, request: Compare, should_stop: Ask = never) -> Iterator[Comparison]:
        """Snapshots of one comparison; the last one is proven, graded seen or unseen, and saved."""
        pair = self.begin(request)
        try:
            while not pair.finished:
                self.step()
                pair.prove()
                if should_stop():
                    self.pairs.drop(pair)
                elif pair.due():
                    yield pair.snapshot()
        finally:
            self.pairs.drop(pair)
        yield self.finish(pair)

    def finetune(self, run_id: str, resume: bool = False, should_stop: Ask = never) -> Run:
        """Train a run to its end. Whatever goes wrong is written into the run's status and log, then raised."""
        from deepdoctor.engine.finetune import finetune

        run = self.runs.get(run_id)
        began = time.perf_counter()
        try:
            loaded = self._in_precision(run)
            self.pairs.release()
            finetune(loaded, run, should_stop, resume)
        except torch.OutOfMemoryError as error:
            self._failed(run, "Out of memory. Lower the batch size or the longest row, or choose 4-bit precision.")
            said = EngineError(run.status["message"])
            error.__traceback__ = None  # it holds the tensors that did not fit
            free()
            raise said from None
        except DeepDoctorError as error:
            self._failed(run, str(error))
            raise
        except Exception as error:
            self._failed(run, f"{type(error).__name__}: {error}")
            raise
        run.set_status(wall_seconds=round(time.perf_counter() - began, 1))
        return run

    def prepare(self, study_id: str, should_stop: Ask = never) -> Study:
        """Write the answers that a study lacks. Whatever goes wrong is written into its status, then raised."""
        study = self.studies.get(study_id)
        study.claim()
        try:
            run = self.runs.get(study.config.run)
            self._for(run)
            keep_losses(study, run)
            prepare(self.pairs, study, run.adapter_dir(study.config.step), should_stop)
        except Exception as error:
            study.set_status(state="failed", message=str(told(error, "preparing")), eta_seconds=None, process=None)
            raise
        return study

    def _failed(self, run: Run, message: str) -> None:
        run.set_status(state="failed", message=message)
        run.log(f"Failed: {message}")

    def export(self, request: Export, say: Say = print) -> Path:
        """Write a run's adapter, tokenizer and, if asked, merged model to `<data>/exports/<run>[-step]` and return that folder."""
        run = self.runs.get(request.run)
        target = self.data_dir / "exports" / (run.id + (f"-{request.step}" if request.step is not None else ""))
        return export(self._for(run), run, request.step, target, request.merged, say)


def free() -> None:
    """Give back memory that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def known_reference(question: str) -> str:
    """The reference answer of a bundled held-out question, or ""."""
    return next((case.example.response for case in held_out_examples() if case.example.question == question.strip()), "")
