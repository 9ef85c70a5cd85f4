"""What the command line does: one function a command, each returning the value for --json and the words for people.

Torch is imported only by the commands that need the model, through the engine's session.
"""

import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepdoctor.comparison import comparison_text
from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig, FinetuneConfig, ModelConfig, preset
from deepdoctor.dataset import held_out_examples
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.errors import ConfigError, ModelError, RunError
from deepdoctor.preview import READING, preview
from deepdoctor.runs import RESUMABLE, Run, Runs

if TYPE_CHECKING:
    from deepdoctor.engine.session import Session
    from deepdoctor.hub_adapters import HubAdapter

__all__ = ["READING", "Outcome", "compare", "compare_adapter", "dataset", "export", "finetune", "info", "push", "resume"]

PACKAGES = ("deepdoctor", "torch", "transformers", "trl", "peft", "datasets", "gradio")
LOG_EVERY = 0.5


@dataclass(frozen=True)
class Outcome:
    """What a command found or did: a JSON-ready value, the same in words, and the exit code."""

    value: Any
    text: str
    code: int = 0


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def _session(data_dir: Path, model: ModelConfig | None = None) -> "Session":
    say("Loading the model …")
    from deepdoctor.engine.session import Session

    session = Session(data_dir)
    if model:
        session.load(model)
    return session


def info(data_dir: Path, model: ModelConfig) -> Outcome:
    """Versions, device, model, data folder, runs. A model that cannot be loaded is told in its place."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    try:
        loaded = asdict(_session(data_dir, model).loaded.info)  # type: ignore[union-attr]
        told = f"{loaded['name']}: {loaded['parameters']:,} parameters, {loaded['precision']}, on {loaded['device']}"
    except ModelError as error:
        loaded, told = {"name": model.name, "device": None, "error": str(error)}, str(error)
    runs = len(Runs(data_dir).list())
    value = {"versions": versions, "device": loaded["device"], "model": loaded, "data_dir": str(data_dir.resolve()), "runs": runs}
    lines = [f"model     {told}", f"data      {data_dir.resolve()}, runs: {runs}"]
    return Outcome(value, "\n".join([*lines, "versions  " + ", ".join(f"{name} {number}" for name, number in versions.items())]))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def dataset(config: DatasetConfig, model: ModelConfig, recipe: FinetuneConfig, row: int | None, listed: int | None) -> Outcome:
    """What the rows are and what training would do with them; or one row as it is trained on. Raises DatasetError."""
    value, lines = preview(config, model, recipe, row, listed, say)
    return Outcome(value, "\n".join(lines))


def starting_point(name: str | None, model: ModelConfig) -> FinetuneConfig:
    """The preset of that name; without a name the one made for the model. Raises ConfigError."""
    return preset(name or ("quick" if model.name == EMBEDDED_MODEL else "article"))


def finetune(data_dir: Path, model: ModelConfig, rows: DatasetConfig, recipe: FinetuneConfig, name: str = "") -> Outcome:
    """Make a run and train it to its end, or until Ctrl-C. Raises DeepDoctorError."""
    _must_be_free(data_dir)
    session = _session(data_dir, model)
    run = session.runs.create(model, rows, recipe, name)
    say(f"Run {run.id} ({run.name}) in {run.path}; Ctrl-C stops and saves.")
    return _train(session, run, resume=False)


def resume(data_dir: Path, run_id: str, force: bool = False) -> Outcome:
    """Continue a run from its newest checkpoint. Raises RunError if it is finished, or still training."""
    run = Runs(data_dir).get(run_id)
    if run.state == "finished":
        raise RunError(f"Run {run.name} is finished; there is nothing to resume. Start a new run to train further.")
    if run.state not in RESUMABLE and not force and (run.is_claimed() or run.state == "queued"):
        raise RunError(f"Run {run.name} is {run.state}. Stop it first; if nothing trains it any more, add --force.")
    if not force:
        _must_be_free(data_dir)
    session = _session(data_dir, run.model)
    return _train(session, run, resume=True)


def _must_be_free(data_dir: Path) -> None:
    active = next((run for run in Runs(data_dir).list() if run.state == "running" and run.is_claimed()), None)
    if active:
        raise RunError(f"Run {active.name} is training already, in the app or by another command. Stop it first, or wait for it to end.")


def _train(session: "Session", run: Run, resume: bool) -> Outcome:
    try:
        with stopping("Stopping after this step …") as should_stop, followed(run):
            session.finetune(run.id, resume, should_stop)
    except KeyboardInterrupt:
        run.set_status(state="interrupted", message="Interrupted before a checkpoint could be saved; resume continues from the last one.")
        raise
    value = summary(run)
    lines = [run_line(run), f"adapter: {value['adapter']}"]
    lines.append(
        f"continue: python -m deepdoctor resume {run.id}"
        if value["state"] == "stopped"
        else f'compare: python -m deepdoctor compare --run {run.id} --question "…"'
    )
    return Outcome(value, "\n".join(lines))


@contextmanager
def stopping(told: str) -> Iterator[Callable[[], bool]]:
    """Within this, the first Ctrl-C or SIGTERM only makes the yielded function say yes; a second one raises KeyboardInterrupt."""
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            signal.default_int_handler(number, frame)
        asked.set()
        say(told)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def followed(run: Run) -> Iterator[None]:
    """Within this, new lines of the run's log go to stderr as they are written."""
    ended = threading.Event()
    log = run.path / "train.log"
    start = log.stat().st_size if log.exists() else 0

    def follow(position: int) -> None:
        last = False
        while not last:
            last = ended.wait(LOG_EVERY)
            if log.exists():
                with log.open("rb") as file:
                    file.seek(position)
                    whole, newline, _torn = file.read().rpartition(b"\n")
                position += len(whole) + len(newline)
                if newline:
                    say(whole.decode("utf-8", errors="replace"))

    thread = threading.Thread(target=follow, args=(start,), name="train-log")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def summary(run: Run) -> dict[str, Any]:
    """A run in brief: id, name, model, status, first and last losses, and the folder of its adapter if there is one."""
    curve, status = run.curve(), run.status
    losses: dict[str, Any] = {}
    for name in ("loss", "held_out_loss"):
        found = [row[name] for row in curve if name in row]
        losses[name] = {"first": found[0], "last": found[-1]} if found else None
    try:
        adapter: str | None = str(run.adapter_dir())
    except RunError:
        adapter = None
    names = {"id": run.id, "name": run.name, "path": str(run.path), "model": run.model.name, "preset": run.finetune.preset}
    return {**names, **status, **losses, "adapter": adapter, "checkpoints": run.checkpoints()}


def run_line(run: Run) -> str:
    """A run in one line."""
    value = summary(run)
    losses = [
        f"{label} {value[name]['first']:.3f} → {value[name]['last']:.3f}"
        for name, label in (("loss", "loss"), ("held_out_loss", "held-out"))
        if value[name]
    ]
    seconds = value.get("wall_seconds") or value.get("seconds")
    parts = [run.id, f"{value['state']:<11}", f"step {value['step']}/{value['steps']}", *losses]
    return "  ".join([*parts, *([f"{seconds:.0f} s"] if seconds else []), run.name])


def list_runs(data_dir: Path) -> Outcome:
    """All runs, newest first."""
    runs = Runs(data_dir).list()
    return Outcome([summary(run) for run in runs], "\n".join(map(run_line, runs)) or f"No runs yet in {data_dir}.")


def show_run(data_dir: Path, run_id: str) -> Outcome:
    """One run with its configuration, curve and probe answers."""
    run = Runs(data_dir).get(run_id)
    value = {**summary(run), "config": run.details, "curve": run.curve(), "probes": run.probes()}
    recipe = "\n".join(f"  {name}: {setting}" for name, setting in run.details["finetune"].items())
    return Outcome(value, f"{run_line(run)}\n{run.status.get('message', '')}\nrecipe\n{recipe}\nlog\n{run.log_tail()}")


def rename_run(data_dir: Path, run_id: str, name: str) -> Outcome:
    """Give a run another name."""
    run = Runs(data_dir).get(run_id)
    run.rename(name)
    return Outcome(summary(run), run_line(run))


def delete_run(data_dir: Path, run_id: str, sure: bool) -> Outcome:
    """Remove a run with all its files, after asking."""
    runs = Runs(data_dir)
    run = runs.get(run_id)
    if not sure:
        if not sys.stdin.isatty():
            raise ConfigError(f"Deleting run {run.name} removes its adapter and checkpoints for good; add --yes to do so.")
        sys.stderr.write(f"Delete run {run.name} with its adapter and checkpoints for good? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return Outcome({"id": run.id, "deleted": False}, "Nothing was deleted.")
    runs.delete(run_id)
    return Outcome({"id": run_id, "deleted": True}, f"Deleted {run_id}.")


def held_out_question(number: int) -> str:
    """The question of the bundled held-out case `number`, from 1. Raises ConfigError."""
    cases = held_out_examples()
    if not 1 <= number <= len(cases):
        raise ConfigError(f"There are {len(cases)} held-out cases; {number} is not one of them.", field="held_out")
    return cases[number - 1].example.question


def compare(data_dir: Path, asked: Compare) -> Outcome:
    """All answers to a question, proven and saved; Ctrl-C keeps what was written. Raises DeepDoctorError."""
    run = Runs(data_dir).get(asked.run)
    for step in (asked.step, *asked.also):
        run.adapter_dir(step)  # before the model is loaded: a run without an adapter is told at once
    return _answered(_session(data_dir, run.model), asked)


def compare_adapter(data_dir: Path, adapter: str, model: ModelConfig, request: Compare) -> Outcome:
    """Both answers to a question, the tuned one by an adapter of the Hub, as it was fetched last or fetched now, or in a local folder.

    `request` names no run. Raises ModelError if there is no such adapter, or by the first tensor that does not fit the base.
    """
    from deepdoctor.hub_adapters import HubAdapters  # the Hub's client takes half a second to load

    side = HubAdapters(data_dir).find(adapter, lambda words, _fraction: say(words))
    side.adapter_dir(request.step)
    if other := side.made_for_another(model.name):
        say(other)
    return _answered(_session(data_dir, model), replace(request, run=side.id), side)


def _answered(session: "Session", asked: Compare, side: "HubAdapter | None" = None) -> Outcome:
    """The finished comparison; Ctrl-C ends it with what was written."""
    with stopping("Stopping …") as should_stop:
        *_, last = session.compare(asked, should_stop, side)
    return Outcome(last.to_dict(), comparison_text(last))


def export(data_dir: Path, wanted: Export) -> Outcome:
    """Write a run's adapter, tokenizer and, if wanted, the merged model and a GGUF file under the data folder. Raises RunError."""
    run = Runs(data_dir).get(wanted.run)
    run.adapter_dir(wanted.step)
    folder = _session(data_dir, run.model).export(wanted, say)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    made = {"run": wanted.run, "step": wanted.step, "folder": str(folder), "files": files}
    return Outcome(made, "\n".join([str(folder), *(f"  {file}" for file in files)]))


def push(data_dir: Path, wanted: Export, repo: str, private: bool, overwrite: bool) -> Outcome:
    """Publish a run's adapter and, if wanted, the merged model on the Hub, exported first where that is not done yet. Raises RunError."""
    from deepdoctor.publish import Destination, push_run  # the Hub's client takes half a second to load, and only this command needs it

    def exported() -> Path:
        return _session(data_dir, Runs(data_dir).get(wanted.run).model).export(wanted, say)

    urls = push_run(data_dir, wanted, Destination(repo, private, overwrite), exported, say)
    return Outcome({"run": wanted.run, "step": wanted.step, "private": private, "urls": urls}, "\n".join(urls))
