"""What happens on the train tab: recipes chosen, saved and loaded, runs planned, started, stopped and resumed, and the live view drawn."""

import os
from collections.abc import Iterator, Mapping
from math import gcd
from pathlib import Path
from typing import Any, cast

import gradio as gr

from deepdoctor.checks import check, token_lengths
from deepdoctor.config import PRESETS, DatasetConfig, FinetuneConfig, preset
from deepdoctor.dataset import keep_apart
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import ConfigError, DatasetError, EngineError, RunError
from deepdoctor.estimates import QUICK_SECONDS
from deepdoctor.plan import plan, require_disk, roughly
from deepdoctor.prompts import style_named
from deepdoctor.runs import LIVE_FILES, RESUMABLE, Run, changed_files
from deepdoctor.ui import run_view
from deepdoctor.ui.choices import require_base
from deepdoctor.ui.components import empty_state, note, told_in_place, user_errors
from deepdoctor.ui.context import Context, name_of
from deepdoctor.ui.form import Form, problems_of
from deepdoctor.ui.loaded import Loaded, Recent
from deepdoctor.ui.watched import Watched

NOTHING_SEEN: tuple[Any, ...] = ()
ACTIVE = ("queued", "running")
OWN = "own"
PROBES_HELD = "Answers to a question of a study are not shown until it is closed: its raters must not know what the tuned model writes."
PRESET_WORDS = {
    "article": "The source article's recipe: 60 steps of 8 rows, rank 16, over the whole text. "
    "Rows kept apart for the held-out loss come off the rows that are read.",
    "quick": f"For the embedded model on a CPU: about {roughly(QUICK_SECONDS)} on two free cores, evaluation and probe answers included.",
    "full_epoch": "The article's recipe over every row once; what that takes is told below.",
    OWN: "Loaded from a file.",
}


class TrainEvents:
    """Handlers of the train tab. Everything they know is on disk, in the engine client, or handed to them."""

    def __init__(self, context: Context, loaded: Loaded, form: Form) -> None:
        self.context, self.loaded, self.form = context, loaded, form
        self._reports, self._watched = Recent(8), Watched()

    # Recipe

    def use_preset(self, name: str | None) -> list[Any]:
        """Outputs: notice, description, problems, then the form's inputs."""
        if name not in PRESETS:
            return [gr.skip()] * (3 + len(self.form.inputs))
        return ["", _described(name), {}, *self.form.show(preset(name))]

    @user_errors
    def config_text(self, name: str | None, *values: Any) -> str:
        """The form as a configuration file's text. Tells the user what is wrong with it instead, if something is."""
        return self._config(name, values).to_json()

    def load_config(self, file: str | None) -> list[Any]:
        """Outputs: notice, preset, description, problems, then the form's inputs. A file that is refused changes nothing but the notice."""
        if not file:
            return [gr.skip()] * (4 + len(self.form.inputs))
        try:
            config = FinetuneConfig.read(Path(file))
        except ConfigError as error:
            return [note(str(error), "bad"), *[gr.skip()] * (3 + len(self.form.inputs))]
        name = config.preset if config.preset in PRESETS else None
        loaded = note(f"Loaded {Path(file).name}.", "ok")
        return [loaded, gr.update(value=name), _described(name or OWN), {}, *self.form.show(config)]

    def _config(self, name: str | None, values: tuple[Any, ...]) -> FinetuneConfig:
        return cast(FinetuneConfig, self.form.read(values, {"preset": name or OWN}))

    def _problems(self, values: tuple[Any, ...]) -> dict[str, str]:
        given = self.form.given(values)
        problems = problems_of(FinetuneConfig, given)
        if given.get("wandb") == "online" and not os.environ.get("WANDB_API_KEY"):
            problems.setdefault("wandb", "Online needs WANDB_API_KEY in the environment of the app; offline works without.")
        return problems

    # Plan and start

    def review(self, dataset: dict[str, Any], name: str | None, before: Mapping[str, str], *values: Any) -> list[Any]:
        """Outputs: notice, plan, problems, then the form's inputs with what is wrong told at each."""
        problems = self._problems(values)
        if problems:
            words = note(_count(problems), "bad")
        elif (model := self.context.engine.state.model) is None:
            words = empty_state("The model is still loading", "What the run will take is shown as soon as it is there.")
        else:
            words = self._planned(self._config(name, values), model, dataset)
        mended = bool(before) and not problems
        return ["" if mended else gr.skip(), words, problems, *self.form.tell(problems, before)]

    def _planned(self, config: FinetuneConfig, model: ModelInfo, dataset: dict[str, Any]) -> str:
        try:
            chosen = DatasetConfig.of(dataset)
            rows, lengths = self._lengths(config, model, chosen)
            found = plan(config, model, lengths)
        except (DatasetError, ConfigError) as error:
            return note(str(error), "warn")
        source = self.loaded.table(chosen).rows.source
        return run_view.trained_on(source) + run_view.plan_stats(found, rows - found.rows, self.context.runs.free_bytes())

    def _lengths(self, config: FinetuneConfig, model: ModelInfo, dataset: DatasetConfig) -> tuple[int, list[int]]:
        """(rows before checks, tokens of each row that will be trained on), as the engine will find them."""
        limit = model.longest_row(config.max_seq_length)
        key = (dataset.to_json(), config.prompt_style, limit, config.held_out_rows, config.seed, model.tokenizer_file)

        def make() -> tuple[int, list[int]]:
            examples = self.loaded.table(dataset).examples
            examples, held_out = keep_apart(examples, dataset.source, config.held_out_rows, config.seed)
            tokenizer = self.loaded.tokenizer(model.tokenizer_file)
            lengths = token_lengths(examples, tokenizer, model.eos, style_named(config.prompt_style))
            report = check(examples, lengths, model.eos, limit, held_out)
            report.kept_examples(examples)
            return len(examples), [report.lengths["total"][index] for index in report.kept]

        return self._reports.get(key, make)

    @user_errors
    def start(
        self, profile: gr.OAuthProfile | None, dataset: dict[str, Any], preset_name: str | None, run_name: str, *values: Any
    ) -> Iterator[list[Any]]:
        """Make a run and hand it to the engine. Outputs: notice, name, then the form's inputs. Raises what keeps it from starting."""
        kept = [gr.skip()] * (1 + len(self.form.inputs))

        def work() -> list[Any]:
            self.context.access.require(name_of(profile), "start a run")
            return self._started(dataset, preset_name, run_name, values)

        yield from told_in_place(work, lambda said: [said, *kept])

    def _started(self, dataset: dict[str, Any], preset_name: str | None, run_name: str, values: tuple[Any, ...]) -> list[Any]:
        if problems := self._problems(values):
            return [note(f"Not started. {_count(problems)}", "bad"), gr.skip(), *self.form.tell(problems, {})]
        self._must_be_free()
        model = self.context.engine.state.model
        if model is None:
            raise EngineError("The model is not loaded yet; start again when the line at the top says Ready.")
        config, rows = self._config(preset_name, values), DatasetConfig.of(dataset)
        require_disk(plan(config, model, self._lengths(config, model, rows)[1]).disk_bytes, self.context.runs.free_bytes())
        run = self.context.runs.create(self.context.engine.model, rows, config, run_name)
        self.context.engine.finetune(run.id)
        return [note(f"Started {run.name}.", "ok"), gr.update(value=""), *[gr.skip()] * len(self.form.inputs)]

    def _must_be_free(self) -> None:
        if active := self.context.runs.active():
            raise RunError(f"Run {active.name} is training already. Stop it first, or wait for it to end.")
        if coming := self.context.engine.loading:  # or the run would be of a model that is about to go
            raise EngineError(f"{coming} is being loaded; start again when the line at the top says Ready.")

    @user_errors
    def stop(self, profile: gr.OAuthProfile | None = None) -> Iterator[str]:
        """Ask the engine to stop and save. Output: notice."""

        def work() -> str:
            self.context.access.require(name_of(profile), "stop a run")
            active = self.context.runs.active()
            if active is None:
                raise RunError("No run is training.")
            engine = self.context.engine
            if active.is_claimed() and engine.state.run != active.id:
                raise RunError(f"{active.name} is trained by another program, not by this app. Stop it there, with Ctrl-C.")
            engine.stop_training()
            return note(f"Stopping {active.name} after this step; a checkpoint is saved.")

        yield from told_in_place(work, str)

    @user_errors
    def resume(self, seen: tuple[Any, ...], profile: gr.OAuthProfile | None = None) -> Iterator[str]:
        """Continue the run that is shown. Output: notice."""

        def work() -> str:
            self.context.access.require(name_of(profile), "resume a run")
            if not seen:
                raise RunError("There is no run to resume.")
            return resume_run(self.context, seen[0])

        yield from told_in_place(work, str)

    # Live view

    def shown_run(self) -> Run | None:
        """The run that trains or waits, else the newest."""
        return self.context.runs.active() or next(iter(self.context.runs.list()), None)

    def tick(self, seen: tuple[Any, ...], smoothing: str, at: float, profile: gr.OAuthProfile | None = None) -> Any:
        """What of `draw` is new, if anything is. `seen` is (run id, fingerprint, last probed step, whether active)."""
        run = self.shown_run()
        if (run is None and not seen) or (run is not None and seen and (run.id, _print(run, self._held(run, profile))) == tuple(seen[:2])):
            return gr.skip()
        return self.draw(seen, smoothing, at, profile, only_new=True)

    def _held(self, run: Run, profile: gr.OAuthProfile | None) -> set[str]:
        """The run's probe questions whose answers a study keeps from this visitor."""
        return self.context.held_from(profile, _asked(run))

    def draw(
        self, seen: tuple[Any, ...], smoothing: str, at: float, profile: gr.OAuthProfile | None = None, only_new: bool = False
    ) -> list[Any]:
        """Outputs: progress, stop, resume, curves, slider over probed steps, probe answers, log, notice, seen.

        only_new: curves, probe answers and log are left as they are if nothing they are drawn from has changed.
        """
        run = self.shown_run()
        if run is None:
            hidden = gr.update(visible=False)
            return [run_view.no_run(), hidden, hidden, "", hidden, run_view.probes([], 0), "", gr.skip(), NOTHING_SEEN]
        rows, answers, status, held = self._watched.rows(run), run.probes(), run.status, self._held(run, profile)
        steps, active, now = run_view.probe_steps(answers), status["state"] in ACTIVE, _print(run, held)
        last = steps[-1] if steps else 0
        _, before, known, was_active = seen if seen and seen[0] == run.id else (None, None, None, False)
        chosen = last if known is None or at >= known else int(at)
        same = only_new and before is not None and was_active == active
        new = changed_files(before, now) if same else set(LIVE_FILES)
        return [
            run_view.progress(run, rows),
            gr.update(visible=active),
            gr.update(visible=status["state"] in RESUMABLE),
            self._watched.curves(run, smoothing, int(status.get("steps") or 0)) if new & {"metrics.jsonl", "config.json"} else gr.skip(),
            gr.skip() if last == known else _slider(steps, chosen),
            _probes(run, answers, chosen, held) if new & {"probes.jsonl", "config.json", ""} else gr.skip(),
            run_view.log_tail(run) if "train.log" in new else gr.skip(),
            "" if was_active and not active else gr.skip(),
            (run.id, now, last, active),
        ]

    def step_through(self, seen: tuple[Any, ...], at: float, profile: gr.OAuthProfile | None = None) -> str:
        """Probe answers at the last probed step up to `at`."""
        if not seen:
            return ""
        run = self.context.runs.get(seen[0])
        return _probes(run, run.probes(), int(at), self._held(run, profile))

    def model_known(self, known: str) -> Any:
        """Which model is loaded, or nothing if this viewer knows."""
        model = self.context.engine.state.model
        now = model.base_hash if model else ""
        return gr.skip() if now == known else now


def _asked(run: Run) -> Iterator[str]:
    """The run's probe questions, read only if somebody looks at them."""
    for answer in run.probes():
        yield str(answer["question"])


def _print(run: Run, held: set[str]) -> tuple[Any, ...]:
    """Changes with whatever is drawn of a run for a visitor from whom those questions are held."""
    return (*run.fingerprint(), *sorted(held))


def _probes(run: Run, answers: list[dict[str, Any]], at: int, held: set[str]) -> str:
    """The probe answers but those on questions that are `held`."""
    if not answers and not run.finetune.probe_steps:
        return run_view.no_probes()
    left = [answer for answer in answers if answer["question"] not in held]
    return (note(PROBES_HELD) if held else "") + (run_view.probes(left, at) if left or not held else "")


def _slider(steps: list[int], at: int) -> Any:
    """The slider over probed steps, its places as far apart as they are, so that it stands at steps and not at their numbers."""
    if len(steps) < 2:
        return gr.update(visible=False)
    words = f"Asked at steps {', '.join(map(str, steps))}" if len(steps) <= 16 else f"Asked {len(steps)} times, up to step {steps[-1]}"
    return gr.update(minimum=steps[0], maximum=steps[-1], step=gcd(*steps), value=at, visible=True, info=words)


def resume_run(context: Context, run_id: str) -> str:
    """Continue a stopped, interrupted or failed run; returns a notice. Raises RunError or EngineError saying why it cannot be."""
    run = context.runs.get(run_id)
    if active := context.runs.active():
        raise RunError(f"Run {active.name} is training already. Stop it first, or wait for it to end.")
    if run.state not in RESUMABLE:
        raise RunError(f"Run {run.name} is {run.state}; only stopped, interrupted or failed runs can be resumed.")
    if loaded := context.engine.state.model:
        require_base(run, loaded.name)
    context.engine.finetune(run.id, resume=True)
    return note(f"Resuming {run.name} from step {max(run.checkpoints(), default=0)}.", "ok")


def _described(name: str) -> str:
    return f'<p class="dd-muted">{PRESET_WORDS[name]}</p>'


def _count(problems: Mapping[str, str]) -> str:
    if loose := problems.get(""):
        return loose
    number = "One setting needs" if len(problems) == 1 else f"{len(problems)} settings need"
    titles = ", ".join(str(FinetuneConfig.model_fields[name].title) for name in problems)
    return f"{number} attention: {titles}."
