"""Stand-ins for the page's tests: an engine that is fed what to say, and runs on disk without training."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import gradio as gr

from deepdoctor import nano
from deepdoctor.comparison import Comparison, Comparisons, Transcript
from deepdoctor.config import PRESETS, DatasetConfig, FinetuneConfig, ModelConfig, SamplingConfig, Settings
from deepdoctor.engine.client import EngineClient
from deepdoctor.engine.protocol import Compare, EngineState, Export, ModelInfo
from deepdoctor.errors import DeepDoctorError, EngineError
from deepdoctor.files import write_json
from deepdoctor.overlap import Seen
from deepdoctor.proof import Proof
from deepdoctor.runs import Run, Runs, State
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.mirror import Copy
from deepdoctor.studies.study import Studies
from deepdoctor.ui.context import Context

T = TypeVar("T")
# what fake runs were trained with, whatever the preset itself becomes
RECIPE = PRESETS["quick"].changed(max_steps=60, logging_steps=2, eval_steps=20, checkpoint_steps=20, probe_steps=20)
MODEL_DIR = Path(nano.__file__).parent / "model"
NANO = ModelInfo(
    name="nano",
    device="CPU (2 cores)",
    precision="float32",
    parameters=4_200_000,
    layers=6,
    hidden_size=256,
    vocabulary=4096,
    max_length=4096,
    projections={"q_proj": (256, 256), "k_proj": (256, 128), "v_proj": (256, 128), "o_proj": (256, 256)}
    | {"gate_proj": (256, 688), "up_proj": (256, 688), "down_proj": (688, 256)},
    tokenizer_file=str(MODEL_DIR / "tokenizer.json"),
    eos="<｜end▁of▁sentence｜>",
    base_hash="b" * 64,
    flops=5e10,
    memory_bytes=8 * 2**30,
)
READY = EngineState("ready", "Ready", model=NANO)
PROOF = Proof(2.1e-6, 3.4e-6, 4.7, 0.8, 0.8, 1e-3, "b1" * 32, "b1" * 32, "ad" * 32, "c0" * 32)
QUESTION = "A 61-year-old woman loses urine when she coughs or sneezes, but not at night. What would cystometry most likely show?"
BASE_TEXT = (
    "Okay, so the patient is 61 and leaks urine on coughing. Hmm, let me think about what that means.\n\n"
    "Wait, I should consider urge incontinence too. But she does not leak at night, so perhaps not. "
    "Alternatively it could be overflow, though nothing says that she retains urine.\n\n"
    "So stress incontinence seems likely, I think.</think>\n\n"
    "**Most likely finding**\n- **Residual volume**: normal\n- **Detrusor**: no involuntary contractions\n\n"
    "**Why**\n- Leakage only with coughing points to the urethral support."
)
TUNED_TEXT = (
    "She leaks when she coughs and sleeps dry, so pressure on the bladder is what drives it. That is stress incontinence, "
    "and the bladder muscle itself should be quiet.</think>\n"
    "Cystometry would most likely show a normal residual volume and no involuntary detrusor contractions, as in stress incontinence."
)


class FakeEngine(EngineClient):
    """An engine client without an engine: it says what it was fed, in order, and remembers what it was asked.

    `feed` queues the answer to one comparison, `feed_export` to one export; an error among the items is raised, as is what `feed_load`
    is given. `asked`, `trained`, `exported`, `loaded`, `stopped` and `prepared` list the requests; `refusal`, if set, is raised by
    `prepare`. `state` can be set. `pace` is the pause in seconds before each item, `linger` the one after a comparison's last.
    """

    def __init__(self, data_dir: Path, state: EngineState = READY, pace: float = 0.0) -> None:
        super().__init__(data_dir, ModelConfig())
        self._state = state
        self.pace = pace
        self.linger = 0.0
        self.asked: list[Compare] = []
        self.trained: list[tuple[str, bool]] = []
        self.exported: list[Export] = []
        self.loaded: list[ModelConfig] = []
        self.stopped: list[int] = []
        self.training_stops = 0
        self.prepared: list[str] = []
        self.preparing_stops: list[str] = []
        self.refusal: EngineError | None = None
        self._refused_loads: deque[DeepDoctorError] = deque()
        self._scripts: deque[list[Comparison | str | DeepDoctorError]] = deque()
        self._exports: deque[list[str | Path | DeepDoctorError]] = deque()
        self._following: dict[int, list[Comparison | str | DeepDoctorError]] = {}

    @property
    def state(self) -> EngineState:
        """What was set, or given at the start."""
        return self._state

    @state.setter
    def state(self, state: EngineState) -> None:
        self._state = state

    def feed(self, items: Sequence[Comparison | str | DeepDoctorError]) -> None:
        """Queue what the next comparison without a script is to yield: waiting words, snapshots, or an error to raise."""
        self._scripts.append(list(items))

    def feed_export(self, items: Sequence[str | Path | DeepDoctorError]) -> None:
        """Queue what the next export is to yield: progress lines, then the folder; or an error to raise."""
        self._exports.append(list(items))

    def feed_load(self, error: DeepDoctorError) -> None:
        """Queue what the next load is to raise."""
        self._refused_loads.append(error)

    def start(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to end."""

    def load(self, model: ModelConfig) -> None:
        """Remember the model and be ready with it. Raises EngineError as the real client does, or the error that was fed."""
        self.require_free_to_load()
        self.loaded.append(model)
        self._loading = model.name
        time.sleep(self.pace)
        self._loading = ""
        if self._refused_loads:
            raise self._refused_loads.popleft()
        self.model = model
        self._state = replace(self._state, model=replace(self._state.model or NANO, name=model.name))

    def compare(self, request: Compare) -> int:
        """Remember the request and give the next script to its number. Raises EngineError if nothing was fed."""
        self.asked.append(request)
        if not self._scripts:
            raise EngineError("The fake engine was fed nothing.")
        number = next(self._numbers)
        self._following[number] = self._scripts.popleft()
        return number

    def follow(self, number: int) -> Iterator[Comparison | str]:
        """The fed items, `pace` apart. After `stop` the last snapshot comes once more, marked as stopped, and it ends."""
        last: Comparison | None = None
        for item in self._following.pop(number):
            time.sleep(self.pace)
            if number in self.stopped and last is not None:
                yield stopped(last)
                return
            if isinstance(item, DeepDoctorError):
                raise item
            if isinstance(item, Comparison):
                last = item
            yield item
        time.sleep(self.linger)

    def stop(self, number: int) -> None:
        """Remember which comparison is to stop."""
        self.stopped.append(number)

    def finetune(self, run: str, resume: bool = False) -> None:
        """Remember the run. Raises EngineError while another one trains, as the real client does."""
        active = self.runs.active()
        if active and active.id != run:
            raise EngineError(f"Run {active.name} is training already. Stop it first, or wait for it to end.")
        self.trained.append((run, resume))

    def stop_training(self) -> None:
        """Count it."""
        self.training_stops += 1

    def prepare(self, study: str) -> None:
        """Remember the study, which waits from now on. Raises the `refusal` that was set, and interrupts it then."""
        if self.refusal:
            self.studies.get(study).set_status(state="interrupted", message=str(self.refusal))
            raise self.refusal
        self.prepared.append(study)
        self.studies.get(study).set_status(state="preparing", message="Waiting for the engine")

    def stop_preparing(self, study: str) -> None:
        """Remember which study is to stop."""
        self.preparing_stops.append(study)

    def export(self, request: Export) -> Iterator[str | Path]:
        """The fed progress lines and folder, `pace` apart."""
        self.exported.append(request)
        if not self._exports:
            raise EngineError("The fake engine was fed nothing to export.")
        for item in self._exports.popleft():
            time.sleep(self.pace)
            if isinstance(item, DeepDoctorError):
                raise item
            yield item


class FakeCopy(Copy):
    """A copy on no Hub: it says what it was fed, and counts in `asked` how often it was asked to copy soon."""

    def __init__(self, told: str = "", failing: bool = False) -> None:
        self.repo, self.asked, self._told, self._fails = "ada/judgments", 0, told, failing

    def soon(self) -> None:
        """Count it."""
        self.asked += 1

    @property
    def told(self) -> str:
        """What was fed."""
        return self._told

    @property
    def failing(self) -> bool:
        """What was fed."""
        return self._fails


def in_event_loop(make: Callable[[], T]) -> T:
    """What `make` returns, called in a thread with a running event loop: Gradio leaves a loop open where it finds none, and the
    browser's driver holds this thread's."""

    async def called() -> T:
        return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(called())).result()


def close(page: gr.Blocks) -> None:
    """Close a launched page without waiting for the browsers that still listen to it."""
    assert page.server is not None
    page.server.force_exit = True
    page.close(verbose=False)


def fake_context(data_dir: Path, state: EngineState = READY, pace: float = 0.0) -> Context:
    """A page's context around a FakeEngine, with runs and comparisons under `data_dir`."""
    settings = Settings(data_dir=data_dir)
    return Context(
        settings, FakeEngine(data_dir, state, pace), Runs(data_dir), Comparisons(data_dir), Studies(data_dir), Judgments(data_dir)
    )


def fake_run(
    data_dir: Path,
    name: str = "quick run",
    state: State = "finished",
    steps: Sequence[int] = (20, 40),
    finetune: FinetuneConfig = RECIPE,
) -> Run:
    """A run on disk as training leaves it: metrics every second step, checkpoints at `steps`, and if finished a final adapter."""
    run = Runs(data_dir).create(ModelConfig(), DatasetConfig(), finetune, name)
    total, last = finetune.max_steps, finetune.max_steps if state == "finished" else max(steps, default=0)
    for step in range(0, last + 1, 2):
        run.append_metric({"step": step, "loss": 2.4 / (1 + step / 20) + 0.4, "learning_rate": 4e-3 * (1 - step / total)})
        if step % 20 == 0:
            run.append_metric({"step": step, "held_out_loss": 2.5 / (1 + step / 20) + 0.5})
    for step in steps:
        folder = run.checkpoint_dir(step)
        write_json(folder / "trainer_state.json", {"global_step": step})
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    if state == "finished":
        write_json(run.path / "adapter" / "complete.json", {"step": total})
        (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    write_json(run.path / "questions.json", ["What would cystometry show in this fake row?"])
    run.log("A line of the log")
    run.set_status(state=state, step=last, steps=total, message=state.capitalize(), seconds=90.0)
    return run


def transcript(text: str, finish_reason: str = "stop", tokens_per_word: float = 1.4, speed: float = 60.0) -> Transcript:
    """A transcript of that text with made-up but consistent lengths."""
    tokens = round(len(text.split()) * tokens_per_word)
    reasoning = round(len(text.partition("</think>")[0].split()) * tokens_per_word)
    return Transcript(text, tokens, min(tokens, reasoning), tokens / speed, finish_reason)  # type: ignore[arg-type]


def fake_comparison(base: str = BASE_TEXT, tuned: str = TUNED_TEXT, **changes: object) -> Comparison:
    """A finished comparison, not saved; `changes` replaces fields (run, step, seen, reference, proof …)."""
    found = Comparison(
        question=QUESTION,
        base=transcript(base),
        tuned=transcript(tuned),
        sampling=SamplingConfig(),
        prompt_style="article",
        model="nano",
        run="20260101-000000-abcd",
        proof=PROOF,
        seen=vars(Seen("unseen", "A 58-year-old woman …", 17, 0.31)),
        reference="Normal residual volume, and no involuntary detrusor contractions.",
        versions={"deepdoctor": "0.1.0"},
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def growing(final: Comparison, steps: int = 20) -> list[Comparison]:
    """Snapshots in which all texts grow, the last but one whole, then the finished comparison itself."""
    longest = max(len(side.text) for side in (final.base, final.tuned, *(each.written for each in final.further)))
    found = []
    for step in range(1, steps + 1):
        shown = longest * step // steps
        sides = {name: _cut(getattr(final, name), shown) for name in ("base", "tuned")}
        further = tuple(replace(each, written=_cut(each.written, shown), proof=None) for each in final.further)
        found.append(replace(final, proof=None, seen={}, id="", further=further, **sides))
    return [*found, final]


def _cut(whole: Transcript, shown: int) -> Transcript:
    if shown >= len(whole.text):
        return whole
    return transcript(whole.text[:shown], "")


def stopped(snapshot: Comparison) -> Comparison:
    """The snapshot as a stop leaves it: what was written stays, sides that were still writing are marked."""
    marked = {name: _stopped(getattr(snapshot, name)) for name in ("base", "tuned")}
    return replace(snapshot, further=tuple(replace(each, written=_stopped(each.written)) for each in snapshot.further), **marked)


def _stopped(side: Transcript) -> Transcript:
    return side if side.finish_reason else replace(side, finish_reason="stopped")
