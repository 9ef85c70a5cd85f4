"""One run as HTML: where it stands, its curves, its probe answers, its settings. Pure functions of what the run's folder says."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_origin

from deepdoctor.config import DatasetConfig, FinetuneConfig, ModelConfig
from deepdoctor.estimates import on_gpu
from deepdoctor.plan import Plan, in_bytes, roughly
from deepdoctor.runs import Run
from deepdoctor.ui.components import badge, empty_state, escape, note, render_answer, stats
from deepdoctor.ui.labels import LABELS, label_of_choice
from deepdoctor.ui.plots import label_of, line_plot, series_of, smoothed

STATE_KINDS = {"finished": "ok", "running": "unseen", "queued": "", "stopped": "seen", "interrupted": "seen", "failed": "bad"}
LOSSES = (
    '<p class="dd-muted dd-plot-note">Training loss is over the supervised text, held-out loss over reasoning and answer only: '
    "where the prompt is trained on too, the two lines are not on one scale.</p>"
)
# what names the rows of each source
DATASET_SETTINGS = {
    "bundled": {"source", "first_rows"},
    "file": {"source", "path", "first_rows", "question_column", "reasoning_column", "response_column"},
    "hub": set(DatasetConfig.model_fields) - {"path"},
}
Rows = Sequence[Mapping[str, Any]]


def duration(seconds: float | None) -> str:
    """Seconds in words that fit a status line: "8 s", "2 min 05 s", "3 h 10 min"."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """A count in short: 950, 12.3 k, 41.9 M, 8.03 B."""
    for limit, name in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / (1e3 if name == 'k' else limit):.3g} {name}"
    return f"{count:,.0f}"


def state_badge(state: str) -> str:
    """The run's state as a badge."""
    return badge(state, STATE_KINDS.get(state, ""))


def last(rows: Rows, key: str) -> float | None:
    """The newest value of a metric, or None."""
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def _shown(value: float | None) -> str:
    return "–" if value is None else label_of(value) if value < 0.001 else f"{value:.3f}"


def no_run() -> str:
    """What the live view shows before the first run."""
    return empty_state("No run yet", "Choose a recipe and press Start training. Loss curves and the model's first answers appear here.")


def progress(run: Run, rows: Rows) -> str:
    """Name, state, progress bar with elapsed and remaining time, and the newest numbers."""
    status = run.status
    step, steps = int(status.get("step") or 0), int(status.get("steps") or 0)
    share = min(1.0, step / steps) if steps else 0.0
    times = [f"Step {step:,} of {steps:,}" if steps else "Not begun", f"{duration(status.get('seconds'))} elapsed"]
    if status["state"] == "running" and status.get("eta_seconds") is not None:
        times.append(f"{duration(status['eta_seconds'])} remaining")
    bar = f'<progress class="dd-bar" max="1" value="{share:.4f}" aria-label="Training progress">{share:.0%}</progress>'
    heading = f'<div class="dd-run-head"><h3>{escape(run.name)}</h3>{state_badge(status["state"])}</div>'
    line = f'<p class="dd-run-times">{" · ".join(times)}</p>'
    return f"{heading}{bar}{line}{_message(status)}{_numbers(rows)}{_outcome(status)}{_memory(status)}{_wandb(status)}"


def _outcome(status: Mapping[str, Any]) -> str:
    """How long the run was planned to take, and if it went through in one go, how long it took."""
    plan = status.get("plan") or {}
    if not plan:
        return ""
    took = f", took {duration(plan['took_seconds'])}" if plan.get("took_seconds") else ""
    return f'<p class="dd-muted dd-run-planned">Planned {duration(plan["seconds"])}{took}</p>'


def _memory(status: Mapping[str, Any]) -> str:
    """The most memory that was in use, beside what was planned: of the GPU by this run, or of the whole engine process since it began."""
    peak, planned = status.get("peak_bytes"), status.get("planned_bytes")
    if not peak or not planned:
        return ""
    gpu = on_gpu(str(status.get("device", "CPU")))
    if ((status.get("plan") or {}).get("how") or {}).get("devices", 1) > 1:
        of = f"Peak memory of the first {'GPU' if gpu else 'process'}"
    else:
        of = "Peak memory" if gpu else "Peak memory of the whole engine process"
    return f'<p class="dd-muted dd-run-memory">{of} {peak / 2**30:.1f} GiB (planned {planned / 2**30:.1f})</p>'


def _message(status: Mapping[str, Any]) -> str:
    text = str(status.get("message") or "")
    kind = {"failed": "bad", "interrupted": "warn"}.get(status["state"], "")
    return note(text, kind) if kind else f'<p class="dd-muted dd-run-message">{escape(text)}</p>'


def _numbers(rows: Rows) -> str:
    pairs = [("loss", "Training loss"), ("held_out_loss", "Held-out loss")]
    pairs += [("held_out_reasoning_loss", "Held-out, reasoning"), ("held_out_response_loss", "Held-out, response")]
    return stats([(_shown(last(rows, key)), label) for key, label in pairs if last(rows, key) is not None])


def _wandb(status: Mapping[str, Any]) -> str:
    said = str(status.get("wandb_message") or "")
    words = note(said, "warn") if said else ""
    address = str(status.get("wandb_url") or "")
    if not address.startswith("https://"):
        return words
    link = f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">Open in Weights &amp; Biases</a>'
    return f'{words}<p class="dd-wandb">{link}</p>'


def curves(rows: Rows, smoothing: str = "none", steps: int = 0) -> str:
    """Training and held-out loss in one plot; learning rate, speed and memory in small ones."""
    loss = [
        *smoothed(series_of(rows, "loss", "Training"), smoothing),
        *smoothed(series_of(rows, "held_out_loss", "Held out", 1), smoothing),
    ]
    end = float(steps)
    small = [
        line_plot([series_of(rows, key, name)], name, unit=unit, small=True, last_x=end)
        for key, name, unit in (
            ("learning_rate", "Learning rate", ""),
            ("tokens_per_second", "Speed", "tokens/s"),
            ("memory_gib", "Memory", "GiB"),
        )
    ]
    return f'{line_plot(loss, "Loss", last_x=end)}{LOSSES}<div class="dd-small-plots">{"".join(small)}</div>'


def probe_steps(answers: Rows) -> list[int]:
    """The steps at which probe questions were answered, ascending."""
    return sorted({int(answer["step"]) for answer in answers})


def no_probes() -> str:
    """What stands in place of probe answers when the run's recipe makes none."""
    return empty_state("This run asks no probe question", "Its recipe has Probe every set to 0.")


def probes(answers: Rows, at: int) -> str:
    """The answers at the first probed step beside those at the last probed step up to `at`, question by question."""
    steps = probe_steps(answers)
    if not steps:
        return empty_state("No answers yet", "The probe question is asked before the first step, and again as the model learns.")
    chosen = max((step for step in steps if step <= at), default=steps[0])
    found = {(int(answer["step"]), str(answer.get("question"))): answer for answer in answers}
    parts = []
    for question in dict.fromkeys(str(answer.get("question")) for answer in answers):
        sides = _side(found.get((steps[0], question)), steps[0], "base", "before training" if steps[0] == 0 else "first")
        if chosen != steps[0]:
            sides += _side(found.get((chosen, question)), chosen, "tuned", "")
        asked = f'<p class="dd-probe-question">{escape(question)}</p>'
        parts.append(f'<div class="dd-probe">{asked}<div class="dd-probe-sides">{sides}</div></div>')
    return "".join(parts)


def _side(answer: Mapping[str, Any] | None, step: int, kind: str, remark: str) -> str:
    aside = f" <span>({remark})</span>" if remark else ""
    heading = f"<h4>Step {step:,}{aside}</h4>"
    if answer is None:
        return f'<section class="dd-probe-side {kind}">{heading}<p class="dd-muted">Not asked at this step.</p></section>'
    reasoning = (
        f'<p class="dd-probe-part">Reasoning</p><div class="dd-prose dd-probe-reasoning">{escape(answer.get("reasoning", ""))}</div>'
    )
    if answer.get("closed", True):
        written = render_answer(str(answer.get("response", "")))
        response = f'<p class="dd-probe-part">Response</p><div class="dd-prose dd-probe-response">{written}</div>'
        if answer.get("finish_reason") == "length":
            response += note("Cut off here by the length limit of probes.", "warn")
    else:
        response = note("Cut off while still thinking: there is no answer.", "warn")
    return f'<section class="dd-probe-side {kind}">{heading}{reasoning}{response}</section>'


def log_tail(run: Run) -> str:
    """The last lines of the log, as written."""
    return f'<pre class="dd-log" tabindex="0" role="region" aria-label="Log">{escape(run.log_tail()) or "Nothing logged yet."}</pre>'


def trained_on(source: str) -> str:
    """Which rows a run will train on, by the name that the Dataset tab gives them."""
    return f'<p class="dd-source">Trains on <strong>{escape(source)}</strong></p>'


def plan_stats(plan: Plan, left_out: int, free: float) -> str:
    """What a run will take, before it is started; `left_out` rows are not trained on, whatever the
    reason; `free` bytes are left on the disk."""
    gib = plan.memory_bytes / 2**30
    memory = f"{gib:.1f} GiB" if gib >= 0.1 else f"{plan.memory_bytes / 2**20:.0f} MiB"
    cells = [
        (f"{plan.rows:,}", "Rows"),
        (f"{plan.steps:,}", f"Steps ({plan.epochs:.3g} epochs)"),
        (size(plan.tokens), "Tokens"),
        (size(plan.trainable_parameters), "Trainable parameters"),
        (f"about {memory}", f"Peak memory, of {plan.device_bytes / 2**30:.0f} GiB"),
        (f"about {in_bytes(plan.disk_bytes)}", f"Disk for checkpoints, of {in_bytes(free)} free"),
        (f"about {roughly(plan.seconds)}", "Time"),
    ]
    remarks = []
    if left_out:
        remarks.append(note(f"{left_out:,} {'row is' if left_out == 1 else 'rows are'} left out; the Dataset tab says why."))
    if not plan.fits:
        remarks.append(note("This is more memory than the device has. Lower the batch size or the longest row.", "warn"))
    if plan.disk_bytes > free:
        remarks.append(note("The disk has no room for this run's checkpoints. Free some space, or lower Checkpoints kept.", "warn"))
    told = '<p class="dd-muted">How it is computed, and why. It can be set otherwise in the recipe, most of it under More settings.</p>'
    return stats(cells) + "".join(remarks) + told + _choices([asdict(choice) for choice in plan.choices])


def _choices(choices: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        f"<div><dt>{escape(each['name'])}</dt><dd><strong>{escape(each['value'])}</strong> <span>{escape(each['why'])}</span></dd></div>"
        for each in choices
    )
    return f'<dl class="dd-choices">{"".join(rows)}</dl>'


def planned(run: Run) -> str:
    """What was planned for the run and how it was computed, in a fold; "" for runs from before plans were kept."""
    plan = run.status.get("plan")
    if not plan:
        return ""
    summary = f"Planned: about {roughly(plan['seconds'])}, {plan['memory_bytes'] / 2**30:.1f} GiB; how it was computed, and why"
    return f'<details class="dd-fold"><summary>{summary}</summary>{_choices(plan["choices"])}</details>'


def when(seconds: float | None) -> str:
    """A moment as day and time of this machine."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(seconds)) if seconds else "–"


def settings_of_run(run: Run) -> dict[str, str]:
    """Every setting of a run by its title, in words; titles that repeat carry the part they belong to."""
    found: dict[str, str] = {}
    details = run.details
    for part, cls in (("model", ModelConfig), ("dataset", DatasetConfig), ("finetune", FinetuneConfig)):
        used = DATASET_SETTINGS.get(str(details.get(part, {}).get("source")), set(cls.model_fields)) if part == "dataset" else None
        for name, value in details.get(part, {}).items():
            if used is not None and name not in used:
                continue
            title = cls.model_fields[name].title if name in cls.model_fields else None
            label = title or name
            found[f"{label} ({part})" if label in found else label] = _words(name, value)
    return found


def _words(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) or "–"
    if value is None or value == "":
        return "–"
    field = FinetuneConfig.model_fields.get(name) or DatasetConfig.model_fields.get(name)
    chosen = name in LABELS or (field is not None and get_origin(field.annotation) is Literal)
    return label_of_choice(name, str(value)) if chosen else str(value)


def settings_table(runs: Sequence[Run]) -> str:
    """The settings of one run; of several, those that differ, highlighted, and the others in a fold."""
    columns = [settings_of_run(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    differing = [name for name in names if len({column.get(name) for column in columns}) > 1]
    same = [name for name in names if name not in differing]
    if len(runs) == 1:
        return _table(runs, columns, same, False)
    fold = f'<details class="dd-fold"><summary>{len(same)} settings are the same</summary>{_table(runs, columns, same, False)}</details>'
    return (_table(runs, columns, differing, True) if differing else "<p>These runs have the same settings.</p>") + fold


def _table(runs: Sequence[Run], columns: Sequence[Mapping[str, str]], names: Sequence[str], marked: bool) -> str:
    heads = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_cell(column.get(name, "–"), columns[0].get(name, "–"), marked and len(runs) > 2) for column in columns)
        + "</tr>"
        for name in names
    )
    return (
        f'<div class="dd-scroll" tabindex="0" role="region" aria-label="Settings"><table class="dd-table dd-settings">'
        f'<thead><tr><th scope="col">Setting</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(value: str, first: str, marked: bool) -> str:
    """Of three or more runs, what departs from the first is marked: of two, everything would be."""
    kind = ' class="other"' if marked and value != first else ""
    return f"<td{kind}>{escape(value)}</td>"
