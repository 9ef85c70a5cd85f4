"""What happens on the runs tab: the list drawn, a run opened, runs laid over each other, renamed, resumed, deleted, exported."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from deepdoctor.checkpoints import best_checkpoint
from deepdoctor.engine.protocol import Export
from deepdoctor.errors import DeepDoctorError, RunError
from deepdoctor.publish import suggested_repo
from deepdoctor.runs import RESUMABLE, Run
from deepdoctor.ui import run_view
from deepdoctor.ui.components import empty_state, escape, note, user_errors
from deepdoctor.ui.context import Context, name_of
from deepdoctor.ui.labels import label_of_choice
from deepdoctor.ui.plots import STYLES, line_plot, series_of, smoothed
from deepdoctor.ui.train_events import resume_run

MOST_LISTED = 200
MOST_COMPARED = STYLES
PAGE_GGUF = "q8_0"  # half of 16 bit, and hardly any worse


class RunsEvents:
    """Handlers of the runs tab. `chosen` is what a viewer has open and ticked: {"open": run id, "compare": [run ids]}."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def refresh(self, chosen: dict[str, Any], seen: tuple[Any, ...]) -> Any:
        """Outputs: list; overlay; opened part, its HTML, settings, log, resume, delete; seen. What this viewer has seen is not sent."""
        runs = self.context.runs.list()[:MOST_LISTED]
        opened = next((run for run in runs if run.id == chosen["open"]), None)
        compared = [run for run in runs if run.id in chosen["compare"]][:MOST_COMPARED]
        now = (
            (chosen["open"], tuple(chosen["compare"]), _prints(runs)),
            ("overlay", _prints(compared)),
            ("opened", _prints([opened] if opened else [])),
        )
        before = seen or (None, None, None)
        if now == before:
            return gr.skip()
        return [
            runs_table(runs, chosen) if now[0] != before[0] else gr.skip(),
            overlay(compared) if now[1] != before[1] else gr.skip(),
            *(_opened_updates(opened) if now[2] != before[2] else [gr.skip()] * 6),
            now,
        ]

    @user_errors
    def pick(self, chosen: dict[str, Any], event: gr.EventData, profile: gr.OAuthProfile | None = None) -> list[Any]:
        """A run was opened, or runs were ticked. Outputs: chosen, name, question, told, download, repository, what is told of a push."""
        given = event._data or {}
        if "compare" in given:
            known = {run.id for run in self.context.runs.list()}
            ticked = [str(run) for run in given["compare"] if str(run) in known]
            if len(ticked) > MOST_COMPARED:
                gr.Info(f"The first {MOST_COMPARED} ticked runs are laid over each other.")
            return [{**chosen, "compare": ticked}, *[gr.skip()] * 6]
        run = self.context.runs.get(str(given.get("open", "")))
        hidden = gr.update(visible=False)
        repo = suggested_repo(run, name_of(profile) or "owner")
        return [{**chosen, "open": run.id}, run.name, hidden, "", hidden, repo, ""]

    def _opened(self, chosen: dict[str, Any]) -> Run:
        return opened_run(self.context, chosen)

    @user_errors
    def rename(self, chosen: dict[str, Any], name: str, profile: gr.OAuthProfile | None = None) -> str:
        """Give the opened run another name. Output: what is told."""
        self.context.access.require(name_of(profile), "rename a run")
        run = self._opened(chosen)
        run.rename(name)
        return note(f"Renamed to {run.name}.", "ok")

    @user_errors
    def resume(self, chosen: dict[str, Any], profile: gr.OAuthProfile | None = None) -> str:
        """Continue the opened run. Output: what is told."""
        self.context.access.require(name_of(profile), "resume a run")
        return resume_run(self.context, self._opened(chosen).id)

    @user_errors
    def ask_to_delete(self, chosen: dict[str, Any], profile: gr.OAuthProfile | None = None) -> list[Any]:
        """Ask before anything is removed. Outputs: question, its words."""
        self.context.access.require(name_of(profile), "delete a run")
        run = self._opened(chosen)
        words = f"Delete {run.name} with its metrics, checkpoints and adapter? This cannot be undone."
        return [gr.update(visible=True), note(words, "bad")]

    def keep(self) -> Any:
        """Put the question away."""
        return gr.update(visible=False)

    @user_errors
    def delete(self, chosen: dict[str, Any], profile: gr.OAuthProfile | None = None) -> list[Any]:
        """Remove the opened run. Outputs: chosen, question."""
        self.context.access.require(name_of(profile), "delete a run")
        run = self._opened(chosen)
        self.context.runs.delete(run.id)
        return [{"open": "", "compare": [each for each in chosen["compare"] if each != run.id]}, gr.update(visible=False)]

    def export(self, chosen: dict[str, Any], merged: bool, gguf: bool, profile: gr.OAuthProfile | None = None) -> Iterator[list[Any]]:
        """Export the opened run, telling how far it is. Outputs: what is told, the download of the adapter."""
        hidden = gr.update(visible=False)
        try:
            self.context.access.require(name_of(profile), "export a run")
            run = self._opened(chosen)
            yield [note("Waiting for the engine"), hidden]
            for item in self.context.engine.export(Export(run.id, merged=merged, gguf=PAGE_GGUF if gguf else "")):
                if isinstance(item, Path):
                    yield [note(f"Written to {item}", "ok"), gr.update(value=str(zipped(run)), visible=True)]
                else:
                    yield [note(item), hidden]
        except DeepDoctorError as error:
            yield [note(str(error), "bad"), hidden]


def opened_run(context: Context, chosen: dict[str, Any]) -> Run:
    """The run that a viewer has open. Raises RunError if there is none."""
    if not chosen["open"]:
        raise RunError("Open a run first.")
    return context.runs.get(chosen["open"])


def runs_table(runs: list[Run], chosen: dict[str, Any]) -> str:
    """The list of runs, newest first; names open, ticks compare."""
    if not runs:
        return empty_state("No run yet", "Runs appear here once you start one on the Train tab. They stay after the app is closed.")
    heads = ("Overlay", "Name", "State", "Model", "Preset", "Steps", "Training loss", "Held-out loss", "Started")
    numbers = ("Steps", "Training loss", "Held-out loss")
    head = "".join(f'<th scope="col"{" class=num" if name in numbers else ""}>{name}</th>' for name in heads)
    body = "".join(_row(run, chosen) for run in runs)
    told = '<p class="dd-muted">A name opens its run. Tick two or more to lay their curves over each other.</p>'
    return f'{told}<div class="dd-scroll"><table class="dd-table dd-runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(run: Run, chosen: dict[str, Any]) -> str:
    details, status, rows = run.details, run.status, run.curve()
    ticked = " checked" if run.id in chosen["compare"] else ""
    current = ' aria-current="true"' if run.id == chosen["open"] else ""
    box = f'<input type="checkbox" data-run="{escape(run.id)}" aria-label="Overlay {escape(run.name)}"{ticked}>'
    cells = [
        ("Model", "", str(details.get("model", {}).get("name", "–"))),
        ("Preset", "", label_of_choice("preset", str(details.get("finetune", {}).get("preset", "–")))),
        ("Steps", "num", f"{status.get('step') or 0:,} of {status.get('steps') or 0:,}"),
        ("Training loss", "num", _loss(run_view.last(rows, "loss"))),
        ("Held-out loss", "num", _loss(run_view.last(rows, "held_out_loss"))),
        ("Started", "", run_view.when(details.get("created"))),
    ]
    plain = "".join(f'<td data-label="{label}" class="{kind}">{escape(text)}</td>' for label, kind, text in cells)
    opener = f'<button type="button" data-run="{escape(run.id)}">{escape(run.name)}</button>'
    return f"<tr{current}><td>{box}</td><td>{opener}</td><td>{run_view.state_badge(status['state'])}</td>{plain}</tr>"


def _prints(runs: list[Run]) -> tuple[Any, ...]:
    return tuple((run.id, run.fingerprint()) for run in runs)


def _opened_updates(run: Run | None) -> list[Any]:
    if run is None:
        return [gr.update(visible=False), "", "", "", gr.skip(), gr.skip()]
    return [
        gr.update(visible=True),
        details(run),
        run_view.settings_table([run]),
        run_view.log_tail(run),
        gr.update(visible=run.state in RESUMABLE),
        gr.update(visible=run.state not in ("queued", "running")),
    ]


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def overlay(runs: list[Run]) -> str:
    """The loss curves of several runs in one plot each, and where their settings differ. "" for fewer than two."""
    if len(runs) < 2:
        return ""
    plots = ""
    for key, title in (("loss", "Training loss"), ("held_out_loss", "Held-out loss")):
        lines = [series_of(run.curve(), key, run.name, style) for style, run in enumerate(runs)]
        plots += line_plot([part for line in lines for part in smoothed(line, "none")], title)
    return f'<div class="dd-card"><div class="dd-overlaid">{plots}</div>{run_view.settings_table(runs)}</div>'


def details(run: Run) -> str:
    """The opened run: where it stands, and its curves."""
    rows = run.curve()
    above = run_view.progress(run, rows) + _checkpoints(run, rows) + run_view.planned(run)
    return above + run_view.curves(rows, "none", int(run.status.get("steps") or 0))


def _checkpoints(run: Run, rows: list[dict[str, Any]]) -> str:
    """Which checkpoints are on disk, and which of them is the best by the curve `rows`; "" if there are none."""
    steps, best = run.checkpoints(), best_checkpoint(run, rows)
    if not steps:
        return ""
    told = f"; best held-out loss, {best['held_out_loss']:.3f}: <strong>step {best['step']:,}</strong>" if best else ""
    return f'<p class="dd-muted dd-run-checkpoints">Checkpoints on disk: {", ".join(f"{step:,}" for step in steps)}{told}</p>'


def zipped(run: Run) -> Path:
    """The run's adapter as a zip file in a fresh temporary folder, from where the page may serve it. Raises RunError if there is none."""
    source = run.adapter_dir()
    target = Path(tempfile.mkdtemp(prefix="deepdoctor-")) / f"adapter-{run.id}"
    return Path(shutil.make_archive(str(target), "zip", source))
