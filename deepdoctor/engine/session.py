"""One engine session: the loaded model and everything one can ask of it. Used by the engine process, the command line and tests alike."""

from deepdoctor.engine.accelerator import available_bytes, free_bytes
from deepdoctor.engine.accelerator import prepare as prepare_device

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from deepdoctor.comparison import Comparison, Comparisons
from deepdoctor.config import ModelConfig
from deepdoctor.dataset import known_reference
from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.ahead import ahead_of, require_base
from deepdoctor.engine.compare import Pair, Question
from deepdoctor.engine.export import Say, export, must_merge, require_room
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.model import Found, Free, LoadedModel, Report, find, first_line, load_found, require_memory, unheard
from deepdoctor.engine.pairs import Pairs
from deepdoctor.engine.prepare import prepare
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.engine.room import found_again, free, weight_bytes
from deepdoctor.engine.several import train_on_several
from deepdoctor.engine.unwritten import Unwritten
from deepdoctor.errors import DeepDoctorError, EngineError, ModelError, RunError, Stopped, is_disk_full, is_out_of_memory, print_trace, told
from deepdoctor.hub_adapters import FOLDER, PREFIX, HubAdapter, HubAdapters
from deepdoctor.overlap import graded
from deepdoctor.runs import Run, Runs, logged
from deepdoctor.studies.progress import keep_losses, require_unopened
from deepdoctor.studies.study import Studies, Study

Ask = Callable[[], bool]


def never() -> bool:
    """A should_stop for work that nobody will stop."""
    return False


class Session:
    """Holds the one loaded model of this process; does one thing at a time. `free` says how many bytes another model may take."""

    def __init__(self, data_dir: Path, free: Free = free_bytes) -> None:
        self.data_dir = Path(data_dir)
        self.free = free
        self.runs = Runs(self.data_dir)
        self.comparisons = Comparisons(self.data_dir)
        self.studies = Studies(self.data_dir)
        self.unwritten = Unwritten()
        self.loaded: LoadedModel | None = None
        self._pairs: Pairs | None = None
        self._set_aside: Found | None = None

    def load(self, config: ModelConfig, report: Report = unheard) -> LoadedModel:
        """Load a base model in place of the current one, which stays if this raises ModelError, or if it is the same and unharmed.

        Where both do not fit side by side the current one is given up first, and loaded again if the new one fails.
        """
        before = self.loaded
        if before and before.config == config and base_hash(before.base) == before.info.base_hash:
            return before
        found = find(config, report)
        if before is None or found.bytes_to_load < self.free(config.gpu_memory_gib):
            del before
            loaded = self._load_beside(found, report)
        else:
            require_memory(found, self.free(config.gpu_memory_gib) + weight_bytes(before))
            del before
            loaded = self._load_instead(found, report)
        self._warm(loaded, report)
        return loaded

    def _load_beside(self, found: Found, report: Report) -> LoadedModel:
        """Load a model while the current one, if any, stays in memory. Raises ModelError."""
        failed = ""
        try:
            self.loaded, self._pairs = load_found(found, self.data_dir, report, self.free), None
        except Exception as error:
            if self.loaded:  # it may use as much of the GPU again as it asked for
                prepare_device(self.loaded.config.gpu_memory_gib)
            if not isinstance(error, ModelError):
                raise
            failed = str(error)  # and not the error, whose traceback holds half a model
        free()
        if failed:
            raise ModelError(failed)
        assert self.loaded
        return self.loaded

    def _load_instead(self, found: Found, report: Report) -> LoadedModel:
        """Give up the current model for another one. If that fails the former is loaded again, and ModelError raised."""
        assert self.loaded
        former = found_again(self.loaded)
        self.loaded = self._pairs = None
        free()
        report("Making room for the new model", 0.3)
        failed = ""
        try:
            return self._load_beside(found, report)
        except ModelError as error:
            failed = str(error)
        except Exception as error:
            print_trace()
            failed = f"The model {found.config.name} could not be loaded: {type(error).__name__}: {first_line(error)}."
        free()
        report(f"Loading {former.config.name} again", 0.3)
        try:
            self._warm(self._load_beside(former, report), report)
        except ModelError as error:
            raise ModelError(f"{failed} {error}") from None
        raise ModelError(f"{failed.rstrip('.')}; {former.config.name} was loaded again.")

    def _warm(self, loaded: LoadedModel, report: Report) -> None:
        """Prepare a GPU's kernels and import the trainer, so that neither a question nor a run waits for that.

        A lack of memory is told to whoever asks the first question.
        """
        if loaded.device.type != "cuda":
            return
        report("Preparing the kernels", 0.9)
        import deepdoctor.engine.finetune  # noqa: F401

        try:
            self.pairs.warm()
        except torch.OutOfMemoryError:
            self._pairs = None
        free()

    def _side(self, name: str) -> Run | HubAdapter:
        """What can be the tuned side: the run with that id, or the adapter of the Hub."""
        return HubAdapters(self.data_dir).get(name) if name.startswith(PREFIX) else self.runs.get(name)

    def _for(self, run: Run | HubAdapter) -> LoadedModel:
        """The loaded model, if the run belongs to it; with nothing loaded yet, its own model is loaded.

        An adapter of the Hub is tried on whatever is loaded: its tensors tell whether it fits.
        """
        if isinstance(run, HubAdapter):
            if self.loaded is None:
                raise EngineError("No model is loaded.")
            return self.loaded
        if self.loaded is None:
            self.load(run.model)
            assert self.loaded
        if self.loaded.config.name != run.model.name:
            raise ModelError(
                f"Run {run.name} was made with {run.model.name}, but {self.loaded.config.name} is loaded. Load {run.model.name} first, "
                "under Model at the top of the page."
            )
        require_base(self.loaded, run)
        return self.loaded

    @property
    def pairs(self) -> Pairs:
        """The comparisons being written with the loaded model."""
        if self.loaded is None:
            raise EngineError("No model is loaded.")
        if self._pairs is None or self._pairs.loaded is not self.loaded:
            self._pairs = Pairs(self.loaded)
        return self._pairs

    def begin(self, request: Compare, side: HubAdapter | None = None) -> Pair:
        """Queue a comparison; `step` writes it. Raises DeepDoctorError, and queues nothing, if it cannot be made.

        side: an adapter that is not looked up by the name in the request, such as one in a folder.
        """
        run = side or self._side(request.run)
        loaded = self._for(run)
        asked = Question(
            question=request.question.strip(),
            sampling=request.sampling,
            prompt_style=request.prompt_style,
            run=run.id,
            step=request.step,
            reference=request.reference or known_reference(request.question),
        )
        adapters: dict[int | None, str] = {}
        for step in (request.step, *request.also):
            adapters[step] = select_adapter(loaded, run.adapter_dir(step), self.pairs.adapters | set(adapters.values()))
        pair = Pair(loaded, asked, adapters.pop(request.step), adapters)
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
        known: list[str] = []
        with suppress(RunError):  # it may have been deleted meanwhile; of an adapter from elsewhere no questions are known
            known = [] if latest.run.startswith((PREFIX, FOLDER)) else self.runs.get(latest.run).training_questions()
        return self.comparisons.save(replace(latest, seen=graded(known, latest.question)))

    def compare(self, request: Compare, should_stop: Ask = never, side: HubAdapter | None = None) -> Iterator[Comparison]:
        """Snapshots of one comparison; the last one is proven, graded seen or unseen, and saved."""
        pair = self.begin(request, side)
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
        run = self.runs.get(run_id)
        try:
            self._finetune(run, resume, should_stop)
        except Exception:
            self._take_up_again()
            raise
        self._take_up_again()
        return run

    def _train(self, run: Run, resume: bool, should_stop: Ask) -> None:
        """Train here, or by several processes, for which the model makes room."""
        from deepdoctor.engine.finetune import finetune

        ahead = ahead_of(self._for(run), run)
        self.pairs.release()
        assert self.loaded
        same = ahead.model == self.loaded.config
        if run.finetune.devices == 1:
            # the original's weights may have to be downloaded, where those in 4 bits came from a mirror
            loaded = self.loaded if same else self.load(ahead.model, logged(run))
            self.pairs.release()  # loading has made a cache for questions
            finetune(loaded, run, should_stop, resume, self.runs.free_bytes(), ahead)
            return
        ahead = replace(ahead, rows=None)  # each process encodes its own
        self._set_aside = found_again(self.loaded) if same else find(ahead.model, logged(run))
        self.loaded = self._pairs = None
        free()
        train_on_several(run, ahead, should_stop, resume)

    def _take_up_again(self) -> None:
        """Load the model again that made room. Raises ModelError."""
        found, self._set_aside = self._set_aside, None
        if found:
            self._warm(self._load_beside(found, unheard), unheard)

    def _finetune(self, run: Run, resume: bool, should_stop: Ask) -> None:
        try:
            self._train(run, resume, should_stop)
        except DeepDoctorError as error:
            self.unwritten.write(run, "failed", str(error))
            raise
        except Exception as error:
            if not is_out_of_memory(error) and not is_disk_full(error):
                self.unwritten.write(run, "failed", f"{type(error).__name__}: {error}")
                raise
            said = told(error, "training")
            self.unwritten.write(run, "failed", str(said))
            error.__traceback__ = None  # it holds the tensors that did not fit
            free()
            raise said from None

    def prepare(self, study_id: str, should_stop: Ask = never) -> Study:
        """Write the answers that a study lacks. Whatever goes wrong is written into its status, then raised."""
        study = self.studies.get(study_id)
        require_unopened(study)
        try:
            study.claim()
            run = self.runs.get(study.config.run)
            self._for(run)
            keep_losses(study, run)
            prepare(self.pairs, study, run.adapter_dir(study.config.step), should_stop)
        except Exception as error:
            self.unwritten.write(study, "failed", str(told(error, "preparing")), eta_seconds=None, process=None)
            raise
        return study

    def export(self, request: Export, say: Say = print) -> Path:
        """Write a run's adapter, tokenizer and, if asked, merged model and GGUF to `<data>/exports/<run>[-step]` and return that folder."""
        run = self.runs.get(request.run)
        target = self.data_dir / "exports" / (run.id + (f"-{request.step}" if request.step is not None else ""))
        loaded = self._for(run)
        if must_merge(target, run, request):
            require_room(loaded, available_bytes())
        return export(loaded, run, request, target, say)
