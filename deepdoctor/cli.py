"""The command line: everything the page can do. Every setting is a flag, made from its declaration in config.py.

With --json exactly one JSON value is printed on stdout; progress and whatever libraries print go to stderr. Exit code 0: done (also when
stopped by Ctrl-C with what there was saved), 2: an error whose message says what to do, 130: interrupted with nothing to save.
"""

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from deepdoctor import commands
from deepdoctor.commands import Outcome
from deepdoctor.config import PRESETS, DatasetConfig, FinetuneConfig, ModelConfig, SamplingConfig, Settings, StudyConfig
from deepdoctor.engine.protocol import GGUF_KINDS, Compare, Export
from deepdoctor.errors import ConfigError, DeepDoctorError
from deepdoctor.flags import add_settings, settings_given
from deepdoctor.prompts import ARTICLE
from deepdoctor.runs import Runs
from deepdoctor.studies import commands as study_commands
from deepdoctor.studies.draft import SOURCES, Choice, draft, questions_of

PROMPT_STYLE_HELP = "the text around the question (default: the run's own)"
STUDY_ACTIONS = {
    "prepare": "write the answers that a study lacks, then open it; Ctrl-C keeps what is written",
    "open": "let raters in",
    "close": "let nobody judge any more; what was judged stays",
}
MODEL_FLAGS = {"name": "--model", "revision": "--model-revision"}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are ConfigErrors, told and counted like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of leaving the program."""
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        outcome = _run(parser().parse_args(given))
    except DeepDoctorError as error:
        print(error, file=sys.stderr)
        if as_json:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    print(json.dumps(outcome.value, ensure_ascii=False, indent=2) if as_json else outcome.text)
    return outcome.code


def _run(options: argparse.Namespace) -> Outcome:
    settings = Settings.from_environment({"data_dir": options.data_dir, "model": getattr(options, "model_name", None)})
    command: Callable[[argparse.Namespace, Settings], Outcome] = options.command
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result alone, whatever libraries have to say
        return command(options, settings)


def parser() -> Parser:
    """All commands with their flags."""
    made = Parser(prog="python -m deepdoctor", description="Fine-tune a medical reasoning model, and compare base and tuned.")
    commands_of = made.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace, Settings], Outcome], told: str, under: Any = commands_of) -> Parser:
        added: Parser = under.add_parser(name, help=told, description=f"{told[:1].upper()}{told[1:]}.")
        added.add_argument("--data-dir", metavar="FOLDER", help="where runs, comparisons and exports lie (default: DATA_DIR, or data)")
        added.add_argument("--json", action="store_true", help="print one JSON value on stdout")
        added.set_defaults(command=command)
        return added

    add_settings(add("info", _info, "versions, device, model, data folder and number of runs"), ModelConfig, "model", MODEL_FLAGS)
    _dataset_flags(add("dataset", _dataset, "read and check the rows of a dataset; show one of them as it is trained on"))
    _finetune_flags(add("finetune", _finetune, "fine-tune; Ctrl-C stops and saves"))
    _run_flag(add("resume", _resume, "continue a stopped or interrupted run from its newest checkpoint")).add_argument(
        "--force", action="store_true", help="also if the run is said to be training still"
    )
    _runs_flags(add("runs", _runs, "list the runs, or show, rename or delete one"))
    _compare_flags(_run_flag(add("compare", _compare, "answer one question with base and tuned together")))
    exported = _export_flags(_run_flag(add("export", _export, "write adapter, tokenizer and merged model to a folder")))
    exported.add_argument("--gguf", choices=GGUF_KINDS, default="", help="also a GGUF file; needs Unsloth and a built llama.cpp")
    pushed = _export_flags(_run_flag(add("push", _push, "publish adapter, merged model and model card on the Hub; needs HF_TOKEN")))
    pushed.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository to make; the merged model goes to NAME-merged")
    pushed.add_argument("--public", action="store_true", help="for everybody to see (default: private)")
    pushed.add_argument("--overwrite", action="store_true", help="also if the repository holds something else, which is then removed")
    studies = commands_of.add_parser("study", help="blinded studies").add_subparsers(title="actions", required=True, metavar="ACTION")
    add("list", _study_list, "list the studies", studies)
    _study_create_flags(_run_flag(add("create", _study_create, "make a study; its answers are prepared next", studies)))
    for action, told in STUDY_ACTIONS.items():
        add(action, functools.partial(_study_action, action), told, studies).add_argument("study", metavar="STUDY", help="the study's id")
    bundled = add("bundle", _study_bundle, "write a study's bundle: questions, answers, verdicts, results and every export", studies)
    bundled.add_argument("study", metavar="STUDY", help="the study's id")
    bundled.add_argument("file", type=Path, metavar="FILE", help="the zip file to write")
    reported = add("report", _study_report, "compute the numbers of a study bundle again, and compare them with the stored ones", studies)
    reported.add_argument("bundle", type=Path, metavar="BUNDLE", help="the zip file")
    return made


def _run_flag(target: Parser) -> Parser:
    target.add_argument("run", metavar="RUN", nargs="?", default=argparse.SUPPRESS, help="the run's id, as `runs` lists it")
    target.add_argument("--run", metavar="RUN", default=argparse.SUPPRESS, help="the same")
    return target


def _export_flags(target: Parser) -> Parser:
    target.add_argument("--step", type=int, help="a checkpoint of the run (default: its final adapter)")
    target.add_argument("--merged", action=argparse.BooleanOptionalAction, default=True, help="also the merged model")
    return target


def _dataset_flags(target: Parser) -> None:
    target.add_argument("--row", type=int, metavar="N", help="show row N (from 1) with its training text and tokens")
    target.add_argument("--list", type=int, metavar="N", dest="listed", help="list the first N questions")
    add_settings(target, DatasetConfig, "dataset")
    add_settings(target, ModelConfig, "model", MODEL_FLAGS)
    add_settings(target, FinetuneConfig, "finetune", without=set(FinetuneConfig.model_fields) - set(commands.READING))


def _finetune_flags(target: Parser) -> None:
    start = target.add_mutually_exclusive_group()
    start.add_argument("--preset", choices=list(PRESETS), help="settings to start from (default: quick for nano, else article)")
    start.add_argument("--config", type=Path, metavar="FILE", help="settings to start from, as saved on the train tab")
    target.add_argument("--name", default="", help="what to call the run (default: preset and time)")
    add_settings(target, FinetuneConfig, "finetune", without=("preset",))
    add_settings(target, DatasetConfig, "dataset")
    add_settings(target, ModelConfig, "model", MODEL_FLAGS)


def _runs_flags(target: Parser) -> None:
    target.add_argument("action", nargs="?", default="list", choices=["list", "show", "rename", "delete"])
    target.add_argument("run", metavar="RUN", nargs="?", default="", help="the run's id")
    target.add_argument("name", metavar="NAME", nargs="?", default="", help="its new name")
    target.add_argument("--yes", action="store_true", help="delete without asking")


def _compare_flags(target: Parser) -> None:
    asked = target.add_mutually_exclusive_group(required=True)
    asked.add_argument("--question", help="the question")
    asked.add_argument("--held-out", type=int, metavar="N", help="the bundled held-out case N (from 1)")
    target.add_argument("--step", type=int, help="a checkpoint of the run (default: its final adapter)")
    told = "another checkpoint of the run, or final, that answers in the same pass; can be repeated"
    target.add_argument("--also", action="append", default=[], type=checkpoint, metavar="STEP", help=told)
    target.add_argument("--prompt-style", metavar="{article,native}", help=PROMPT_STYLE_HELP)
    told = "in place of a run: an adapter of the Hub, fetched if it is not here yet, or of a folder; --model names its base"
    target.add_argument("--adapter", default="", metavar="OWNER/NAME|FOLDER", help=told)
    add_settings(target, SamplingConfig, "sampling")
    add_settings(target, ModelConfig, "model", MODEL_FLAGS)


def checkpoint(given: str) -> int | None:
    """The step of a checkpoint, None for "final". Raises ValueError for anything else."""
    return None if given == "final" else int(given)


def _study_create_flags(target: Parser) -> None:
    asked = target.add_argument_group("questions")
    asked.add_argument("--source", action="append", choices=list(SOURCES), help="where questions come from (default: bundled)")
    asked.add_argument("--file", type=Path, metavar="FILE", help="a question bank of your own: TOML, JSON, JSONL, CSV or Parquet")
    for name in ("specialty", "kind", "difficulty"):
        asked.add_argument(f"--{name}", action="append", default=[], metavar="NAME", help=f"only questions of this {name}; can be repeated")
    asked.add_argument("--questions", default="", metavar="ID,ID", help="only these questions, of those that the filters leave")
    asked.add_argument("--most", type=int, metavar="N", help="at most so many questions, drawn at random (default: all)")
    add_settings(target, StudyConfig, "study", {"seed": "--assignment-seed"}, without=("run", "sampling", "prompt_style"))
    target.add_argument("--prompt-style", dest="study_prompt_style", metavar="{article,native}", help=PROMPT_STYLE_HELP)
    add_settings(target, SamplingConfig, "sampling")
    add_settings(target, DatasetConfig, "dataset")


def _run_of(options: argparse.Namespace) -> str:
    if not getattr(options, "run", ""):
        raise ConfigError("Which run? Give its id; `python -m deepdoctor runs` lists them.", field="run")
    return str(options.run)


def _model_of(options: argparse.Namespace, settings: Settings) -> ModelConfig:
    return ModelConfig.of({**settings_given(options, ModelConfig, "model"), "name": settings.model})


def _info(options: argparse.Namespace, settings: Settings) -> Outcome:
    return commands.info(settings.data_dir, _model_of(options, settings))


def _dataset(options: argparse.Namespace, settings: Settings) -> Outcome:
    dataset = DatasetConfig.of(settings_given(options, DatasetConfig, "dataset"))
    recipe = FinetuneConfig.of(settings_given(options, FinetuneConfig, "finetune"))
    return commands.dataset(dataset, _model_of(options, settings), recipe, options.row, options.listed)


def _finetune(options: argparse.Namespace, settings: Settings) -> Outcome:
    model = _model_of(options, settings)
    start = FinetuneConfig.read(options.config) if options.config else commands.starting_point(options.preset, model)
    recipe = start.changed(**settings_given(options, FinetuneConfig, "finetune"))
    dataset = DatasetConfig.of(settings_given(options, DatasetConfig, "dataset"))
    return commands.finetune(settings.data_dir, model, dataset, recipe, options.name)


def _resume(options: argparse.Namespace, settings: Settings) -> Outcome:
    return commands.resume(settings.data_dir, _run_of(options), options.force)


def _runs(options: argparse.Namespace, settings: Settings) -> Outcome:
    if options.action == "list":
        return commands.list_runs(settings.data_dir)
    if options.action == "show":
        return commands.show_run(settings.data_dir, _run_of(options))
    if options.action == "rename":
        return commands.rename_run(settings.data_dir, _run_of(options), options.name)
    return commands.delete_run(settings.data_dir, _run_of(options), options.yes)


def _compare(options: argparse.Namespace, settings: Settings) -> Outcome:
    question = options.question if options.held_out is None else commands.held_out_question(options.held_out)
    sampling = SamplingConfig.of(settings_given(options, SamplingConfig, "sampling"))
    given = settings_given(options, ModelConfig, "model")
    if not options.adapter:
        if given:
            raise ConfigError("A run brings its own base model; the model settings are for --adapter.", field="model")
        run = Runs(settings.data_dir).get(_run_of(options))
        style = options.prompt_style or run.finetune.prompt_style
        asked = Compare(question, run.id, options.step, sampling, style, also=tuple(options.also))
        return commands.compare(settings.data_dir, asked)
    if getattr(options, "run", ""):
        raise ConfigError("Give a run or --adapter, not both: one of them is the tuned side.", field="adapter")
    if options.also:
        raise ConfigError("An adapter has no further checkpoints; --also is for runs.", field="also")
    request = Compare(question, "", options.step, sampling, options.prompt_style or ARTICLE.name)
    return commands.compare_adapter(settings.data_dir, options.adapter, _model_of(options, settings), request)


def _export(options: argparse.Namespace, settings: Settings) -> Outcome:
    return commands.export(settings.data_dir, Export(_run_of(options), options.step, options.merged, options.gguf))


def _push(options: argparse.Namespace, settings: Settings) -> Outcome:
    wanted = Export(_run_of(options), options.step, options.merged)
    return commands.push(settings.data_dir, wanted, options.repo, not options.public, options.overwrite)


def _study_create(options: argparse.Namespace, settings: Settings) -> Outcome:
    run = Runs(settings.data_dir).get(_run_of(options))
    sampling = SamplingConfig.of(settings_given(options, SamplingConfig, "sampling"))
    given = {"prompt_style": run.finetune.prompt_style, **settings_given(options, StudyConfig, "study")}
    config = StudyConfig.of({**given, "run": run.id, "sampling": sampling})
    sources = options.source or ["file" if options.file else "bundled"]
    rows = study_commands.rows_of(DatasetConfig.of(settings_given(options, DatasetConfig, "dataset"))) if "rows" in sources else []
    picked = tuple(filter(None, map(str.strip, options.questions.split(","))))
    choice = Choice(tuple(options.specialty), tuple(options.kind), tuple(options.difficulty), options.most, picked)
    made = draft(config, questions_of(sources, options.file, rows), choice, run.training_questions())
    return study_commands.create(settings.data_dir, made)


def _study_list(_options: argparse.Namespace, settings: Settings) -> Outcome:
    return study_commands.list_studies(settings.data_dir)


def _study_action(action: str, options: argparse.Namespace, settings: Settings) -> Outcome:
    if action == "prepare":
        return study_commands.prepare(settings.data_dir, options.study)
    return study_commands.set_open(settings.data_dir, options.study, action == "open")


def _study_bundle(options: argparse.Namespace, settings: Settings) -> Outcome:
    return study_commands.bundle(settings.data_dir, options.study, options.file)


def _study_report(options: argparse.Namespace, _settings: Settings) -> Outcome:
    return study_commands.report(options.bundle)
