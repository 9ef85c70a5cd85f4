"""One engine session: the loaded model and everything one can ask of it. Used by the engine process, the command line and tests alike."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from deepdoctor.comparison import Comparison, Comparisons
from deepdoctor.config import ModelConfig
from deepdoctor.dataset import held_out_examples
from deepdoctor.engine.compare import Question, compare
from deepdoctor.engine.export import Say, export
from deepdoctor.engine.model import LoadedModel, Report, base_hash, load, unheard
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.errors import DeepDoctorError, EngineError, ModelError
from deepdoctor.overlap import Overlap
from deepdoctor.runs import Run, Runs

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
        self.loaded: LoadedModel | None = None

    def load(self, config: ModelConfig, report: Report = unheard) -> LoadedModel:
        """Load a base model in place of the current one, which stays if this raises ModelError, or if it is the same and unharmed."""
        if self.loaded is None or self.loaded.config != config or base_hash(self.loaded.base) != self.loaded.info.base_hash:
            self.loaded = load(config, self.data_dir, report)
            gc.collect()
        return self.loaded

    def _for(self, run: Run) -> LoadedModel:
        """The loaded model, if the run belongs to it; with nothing loaded yet, its own model is loaded."""
        if self.loaded is None:
            return self.load(run.model)
        if self.loaded.config.name != run.model.name:
            raise ModelError(
                f"Run {run.name} was made with {run.model.name}, but {self.loaded.config.name} is loaded. Load that model first."
            )
        return self.loaded

    def compare(self, request: Compare, should_stop: Ask = never) -> Iterator[Comparison]:
        """Snapshots of one comparison; the last one is proven, graded seen or unseen, and saved."""
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
        latest: Comparison | None = None
        for latest in compare(loaded, asked, run.adapter_dir(request.step), should_stop):
            if not latest.finished:
                yield latest
        if latest is None:
            raise EngineError("Nothing was written; please ask again.")
        seen = Overlap(run.training_questions()).grade(asked.question)
        yield self.comparisons.save(replace(latest, seen=vars(seen)))

    def finetune(self, run_id: str, resume: bool = False, should_stop: Ask = never) -> Run:
        """Train a run to its end. Whatever goes wrong is written into the run's status and log, then raised."""
        from deepdoctor.engine.finetune import finetune

        run = self.runs.get(run_id)
        began = time.perf_counter()
        try:
            finetune(self._for(run), run, should_stop, resume)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            self._failed(run, "Out of memory. Lower the batch size or the longest row, or choose 4-bit precision.")
            raise EngineError(run.status["message"]) from error
        except DeepDoctorError as error:
            self._failed(run, str(error))
            raise
        except Exception as error:
            self._failed(run, f"{type(error).__name__}: {error}")
            raise
        run.set_status(wall_seconds=round(time.perf_counter() - began, 1))
        return run

    def _failed(self, run: Run, message: str) -> None:
        run.set_status(state="failed", message=message)
        run.log(f"Failed: {message}")

    def export(self, request: Export, say: Say = print) -> Path:
        """Write a run's adapter, tokenizer and, if asked, merged model to `<data>/exports/<run>[-step]` and return that folder."""
        run = self.runs.get(request.run)
        target = self.data_dir / "exports" / (run.id + (f"-{request.step}" if request.step is not None else ""))
        return export(self._for(run), run, request.step, target, request.merged, say)


def known_reference(question: str) -> str:
    """The reference answer of a bundled held-out question, or ""."""
    return next((case.example.response for case in held_out_examples() if case.example.question == question.strip()), "")
