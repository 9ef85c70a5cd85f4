"""Following a training run: the trainer's callback that writes metrics, held-out losses, probe answers and progress, and obeys a stop."""

import math
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from deepdoctor.checkpoints import rotate
from deepdoctor.config import SamplingConfig
from deepdoctor.engine.adapters import write_base_name
from deepdoctor.engine.backends import TRAINED
from deepdoctor.engine.decode import Row, decode, transcript
from deepdoctor.engine.evaluate import evaluate
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.rows import TrainingRows
from deepdoctor.engine.tracking import Tracker
from deepdoctor.errors import ConfigError, RunError, Stopped
from deepdoctor.files import write_complete
from deepdoctor.prompts import render_question, style_named
from deepdoctor.runs import Run
from deepdoctor.studies.progress import checkpoints_asked
from deepdoctor.studies.study import Studies

# after so many losses in a row that are no numbers, a run ends
LOST_AFTER = 3


class Follow(TrainerCallback, ExportableState):
    """Writes down what the trainer does: losses averaged over the logging window, held-out loss, probes, progress; obeys a stop.

    The window's losses are saved with each checkpoint, so that a resumed run logs the same averages as an uninterrupted one.
    """

    def __init__(self, loaded: LoadedModel, run: Run, rows: TrainingRows, tracker: Tracker, should_stop: Callable[[], bool]) -> None:
        self.loaded, self.run, self.rows, self.tracker, self.should_stop = loaded, run, rows, tracker, should_stop
        self.config = run.finetune
        self.window: list[float] = []
        self.step = 0
        self.stopped = False
        self._began = self._window_began = time.perf_counter()
        self._first, self._earlier = 0, 0.0
        self._tokens = sum(len(row.ids) for row in rows.train)
        self._window_epoch = 0.0
        self._lost = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {"args": {}, "attributes": {"window": self.window}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate the untouched model, or on resume take up the saved window. Raises Stopped if the run is to stop before it trains on."""
        self._first = self.step = state.global_step
        self._earlier = float(self.run.status.get("seconds") or 0.0) if state.global_step else 0.0
        self._window_epoch = float(state.epoch or 0.0)
        if state.global_step:
            self.window = _saved_window(state)
            goes_on = self._ask_what_was_left_out(state.global_step)
        else:
            self._evaluate(0)
            goes_on = self._probe(0)
        if not goes_on:  # the trainer would not look at its control before it has trained a step
            raise Stopped(f"Stopped at step {self.step}")
        self._began = self._window_began = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Collect the loss of a step; at the end of a window write the mean."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        self.window.append(float(logs["loss"]))
        lost = self._is_lost(logs)
        if lost or state.global_step % self.config.logging_steps == 0 or state.global_step == state.max_steps:
            self._write(state.global_step, logs)
        if lost:
            raise RunError(
                f"The run diverged at step {state.global_step}: its loss or the adapter's weights are no numbers any more. A learning rate "
                "that is too high is the usual reason: start again with a lower one. Checkpoints of earlier steps are kept."
            )
        self._after_step(state, control)

    def _is_lost(self, logs: dict[str, Any]) -> bool:
        """Whether nothing comes of going on: weights that are no numbers, told before they are saved, or LOST_AFTER such losses in a row.

        A single step without numbers comes where they are of 16 bits: its gradients are too large, and it changes no weight.
        """
        loss, gradient = self.window[-1], float(logs.get("grad_norm", 0.0))
        self._lost = 0 if math.isfinite(loss) else self._lost + 1
        if math.isfinite(loss) and math.isfinite(gradient):
            return False
        trained = (weight for weight in self.loaded.peft.parameters() if weight.requires_grad) if self.loaded.peft else ()
        return self._lost == LOST_AFTER or not all(bool(weight.isfinite().all()) for weight in trained)

    def _write(self, step: int, logs: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self._window_began
        epoch = float(logs.get("epoch", 0.0))
        # the last step of an epoch takes what rows are left, and a window begun before a resume was partly read then
        trained = self._tokens * (epoch - self._window_epoch)
        row = {
            "step": step,
            "loss": round(sum(self.window) / len(self.window), 5),
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": round(float(logs.get("grad_norm", 0.0)), 4),
            "epoch": round(epoch, 4),
            "tokens_per_second": round(trained / seconds, 1),
            "memory_gib": memory_gib(self.loaded.device),
        }
        self._append(row)
        self.run.log(f"step {step}: loss {row['loss']:.4f}")
        self.window, self._window_began, self._window_epoch = [], time.perf_counter(), epoch

    def _append(self, row: dict[str, Any]) -> None:
        self.run.append_metric(row)
        self.tracker.log(row)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Progress and stop."""
        self.step = state.global_step
        elapsed = time.perf_counter() - self._began
        eta = elapsed / max(1, self.step - self._first) * (state.max_steps - self.step)
        done = round(self._earlier + elapsed, 1)
        self.run.set_status(step=self.step, seconds=done, eta_seconds=round(eta, 1), peak_bytes=peak_bytes(self.loaded.device))
        if self.should_stop():
            self._end(state, control)

    def _end(self, state: TrainerState, control: TrainerControl) -> None:
        """Have a checkpoint saved at this step, and the training end."""
        self.stopped = state.global_step < state.max_steps
        control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the checkpoint's adapter its base model's real name, note that it is complete, and remove those that need not stay."""
        if self.config.devices > 1:
            distributed.barrier()  # each process has a file of its own in it
        if not self.run.writes:
            return
        folder = self.run.checkpoint_dir(state.global_step)
        write_base_name(folder, self.loaded.config.name)
        write_complete(folder, {"step": state.global_step})
        # an earlier stop's; the newest checkpoint stands for it now
        (self.run.path / "adapter" / "complete.json").unlink(missing_ok=True)
        asked = checkpoints_asked(Studies(self.run.path.parents[1]), self.run.id)
        if removed := rotate(self.run, self.config.checkpoints_kept, asked):
            self.run.log(f"step {state.global_step}: removed {', '.join(f'checkpoint {step}' for step in removed)}")

    def _after_step(self, state: TrainerState, control: TrainerControl) -> None:
        step, last = state.global_step, state.max_steps
        if step == last or (self.config.eval_steps and step % self.config.eval_steps == 0):
            self._evaluate(step)
        due = self.config.probe_steps and (step == last or step % self.config.probe_steps == 0)
        if due and not self._probe(step):
            self._end(state, control)

    def _evaluate(self, step: int) -> None:
        began = time.perf_counter()
        if losses := evaluate(self.loaded, self.rows.held_out, TRAINED):
            self._append({"step": step, **losses})
            self.run.log(f"step {step}: held-out loss {losses['held_out_loss']:.4f}")
        self._window_began += time.perf_counter() - began

    def _given_up(self) -> bool:
        """Whether the run is to stop, asked between steps. Processes that share a run answer it together, and there only after a step."""
        return self.config.devices == 1 and self.should_stop()

    def _ask_what_was_left_out(self, step: int) -> bool:
        """Ask the probes of the step that a run goes on from which a stop did not wait for; whether it still goes on."""
        due = self.config.probe_steps and step % self.config.probe_steps == 0
        answered = {row["question"] for row in self.run.probes() if row["step"] == step}
        return not due or self._probe(step, answered)

    def _probe(self, step: int, answered: Collection[str] = ()) -> bool:
        """Ask the probe questions that are not `answered`; False, without an answer to those that are left, if the run is to stop."""
        began = time.perf_counter()
        sampling = SamplingConfig(temperature=0, max_new_tokens=self.config.probe_tokens)
        questions = self.config.probe_questions or tuple(self.rows.held_out_questions[:1])
        for question in questions if self.config.probe_steps else ():
            if question in answered:
                continue
            try:
                prompt = self.loaded.tokenizer(render_question(question, style_named(self.config.prompt_style)))["input_ids"]
                written = Row(prompt, TRAINED, sampling)
                for _ in decode(self.loaded, [written]):
                    if self._given_up():
                        self.run.log(f"step {step}: probe left out, because the run is to stop")
                        return False
            except ConfigError as error:  # a question that cannot be asked must not end the training
                self.run.log(f"step {step}: probe left out: {error}")
                continue
            said = transcript(self.loaded, written)
            self.run.append_probe({"step": step, "question": question, **said.to_dict()})
        self._window_began += time.perf_counter() - began
        return True


def _saved_window(state: TrainerState) -> list[float]:
    saved: Any = state.stateful_callbacks
    return list(saved.get(Follow.__name__, {}).get("attributes", {}).get("window", []))


def reset_peak(device: torch.device) -> None:
    """From now on `peak_bytes` counts anew; off a GPU only where the system lets a process ask for that, which Linux does."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Most GPU memory held since the peak was last reset; off a GPU, the most that this process had resident since then."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    # told in kilobytes, on macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_gib(device: torch.device) -> float:
    """Peak GPU memory of this process, or on a CPU its resident memory now, in GiB."""
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    return round(used / 2**30, 3)
