"""Studies as HTML: the list, one study's standing, what a new one would ask, and the parts of its results. Pure functions."""

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from deepdoctor.studies.answers import Answer
from deepdoctor.studies.draft import Draft
from deepdoctor.studies.mirror import Copy
from deepdoctor.studies.progress import Progress, damage_of
from deepdoctor.studies.questions import BankQuestion
from deepdoctor.studies.report import report_parts
from deepdoctor.studies.study import State, Study
from deepdoctor.ui.components import badge, empty_state, escape, note, stats
from deepdoctor.ui.run_view import duration, when

STATE_KINDS: dict[State, str] = {"preparing": "unseen", "interrupted": "seen", "failed": "bad", "open": "ok", "closed": ""}
PARTS = ("findings", "tables", "measured", "pairs", "protocol")
# what Gradio's HTML component might take for a template
INERT = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})
LOCAL_ONLY = "Only this machine can open the link now. To let others in, start the app with HOST=0.0.0.0 and LOGIN=name:password."
LONGEST_PICK = 100
OWN_LINKS = "Who lost their own link gets it from here and goes on where they were. Send it to nobody else: it judges in their name."
Listed = tuple[Study, Sequence[Progress]]
EXPORTED = (
    '<p class="dd-muted">Report, verdicts as CSV and JSONL, how far raters came, rows for TRL, LLM Comparator, and one bundle of all.</p>'
)


def studies_table(found: Sequence[Listed], opened: str) -> str:
    """The list of studies, newest first; names open."""
    if not found:
        return empty_state(
            "No study yet", "Make one below: its answers are written beforehand, then clinicians judge them blinded, each by a link."
        )
    heads = ("Name", "State", "Answers", "Raters", "Verdicts", "Made", "For raters")
    numbers = ("Answers", "Raters", "Verdicts")
    head = "".join(f'<th scope="col"{" class=num" if name in numbers else ""}>{name}</th>' for name in heads)
    body = "".join(_row(study, raters, opened) for study, raters in found)
    return f'<div class="dd-scroll"><table class="dd-table dd-runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(study: Study, raters: Sequence[Progress], opened: str) -> str:
    status = study.status
    cells = [
        ("Answers", "num", f"{status['done']:,} of {status['total']:,}"),
        ("Raters", "num", f"{len(raters):,} of {study.config.raters_expected:,}"),
        ("Verdicts", "num", f"{sum(each.judged for each in raters):,}"),
        ("Made", "", when(study.details["created"])),
    ]
    plain = "".join(f'<td data-label="{label}" class="{kind}">{escape(text)}</td>' for label, kind, text in cells)
    opener = f'<button type="button" data-study="{escape(study.id)}">{escape(study.name)}</button>'
    link = _link(study, "Open") if status["state"] == "open" else "–"
    current = ' aria-current="true"' if study.id == opened else ""
    return f'<tr{current}><td>{opener}</td><td>{state_badge(study)}</td>{plain}<td data-label="For raters">{link}</td></tr>'


def fingerprint(study: Study, raters: Sequence[Progress]) -> tuple[Any, ...]:
    """Changes whenever what is shown of a study does."""
    return study.status["updated"], [(each.judged, each.skipped) for each in raters], study.damaged_raters


def state_badge(study: Study) -> str:
    """The study's state as a badge."""
    return badge(study.state, STATE_KINDS[study.state])


def _link(study: Study, text: str, token: str = "") -> str:
    # relative, so that it holds behind a proxy too
    path = escape(f"{study.id}/{token}" if token else study.id)
    return f'<a href="judge/{path}" target="_blank" rel="noopener">{escape(text)}</a>'


def standing(study: Study, raters: Sequence[Progress], local: bool) -> str:
    """The opened study: where it stands, its link and its raters. local: whether only this machine can open the page."""
    status = study.status
    heading = f'<div class="dd-run-head"><h3>{escape(study.name)}</h3>{state_badge(study)}</div>'
    if status["state"] in ("open", "closed"):
        return heading + _judging(study, raters, local)
    share = status["done"] / status["total"] if status["total"] else 0.0
    times = [f"{status['done']:,} of {status['total']:,} questions answered by all sides"]
    if status["state"] == "preparing" and status["eta_seconds"] is not None:
        times.append(f"{duration(status['eta_seconds'])} remaining")
    bar = f'<progress class="dd-bar" max="1" value="{share:.4f}" aria-label="Answers written">{share:.0%}</progress>'
    kind = {"failed": "bad", "interrupted": "warn"}.get(status["state"], "")
    return f'{heading}{bar}<p class="dd-run-times">{" · ".join(times)}</p>{note(status["message"], kind)}'


def _judging(study: Study, raters: Sequence[Progress], local: bool) -> str:
    judged, trials = sum(each.judged for each in raters), sum(len(each.rater.trials) for each in raters)
    cells = [(len(study.questions()), "Questions"), (f"{len(raters)} of {study.config.raters_expected}", "Raters joined")]
    cells += [(f"{judged:,} of {trials:,}", "Verdicts of those who joined")]
    link = ""
    if study.state == "open":
        copy = '<button type="button" class="dd-copy" data-copy>Copy</button>'
        link = f'<p class="dd-judge-link">Link for raters: {_link(study, f"judge/{study.id}")} {copy}</p>'
        link += f'<p class="dd-muted">{LOCAL_ONLY}</p>' if local else ""
    lost = damage_of(study)
    return stats(cells) + link + (note(lost, "warn") if lost else "") + _raters(study, raters)


def _raters(study: Study, raters: Sequence[Progress]) -> str:
    if not raters:
        return (
            '<p class="dd-muted">Nobody has joined yet. Send the link; raters judge when they have time, also while the engine trains.</p>'
        )
    heads = "".join(f'<th scope="col"{" class=num" if place > 1 else ""}>{name}</th>' for place, name in enumerate(("Rater", "Specialty")))
    heads += "".join(f'<th scope="col" class="num">{name}</th>' for name in ("Years", "Judged", "Skipped"))
    is_open = study.state == "open"
    heads += '<th scope="col">Own link</th>' if is_open else ""
    rows = "".join(
        f'<tr><td>{escape(each.rater.name)}</td><td>{escape(each.rater.specialty)}</td><td class="num">{each.rater.years}</td>'
        f'<td class="num">{each.judged} of {len(each.rater.trials)}</td><td class="num">{each.skipped}</td>'
        + (f"<td>{_link(study, 'Resume', each.rater.token)}</td></tr>" if is_open else "</tr>")
        for each in raters
    )
    table = f'<table class="dd-table"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    told = f'<p class="dd-muted">{OWN_LINKS}</p>' if is_open else ""
    return f'<div class="dd-scroll" tabindex="0" role="region" aria-label="Raters">{table}</div>{told}'


def short(question: BankQuestion) -> str:
    """Id and beginning of a question, to pick it by."""
    return shorten(f"{question.id}: {question.question}", LONGEST_PICK, placeholder=" …")


def plan(made: Draft, planned: Mapping[str, Any]) -> str:
    """What the study would take and could tell. planned: from headline.study_plan."""
    grades, config = made.grades, made.config
    cells = [
        (len(made.questions), "Questions"),
        (made.pairs, "Pairs for each rater"),
        (made.pairs + made.repeated, f"Verdicts a rater, {made.repeated} repeated"),
        (f"about {duration(60 * made.minutes)}", "Time of a rater"),
        ((made.pairs + made.repeated) * config.raters_expected, f"Verdicts of {config.raters_expected:,} raters"),
    ]
    known = " ".join(badge(f"{number:,} {grade}", grade) for grade, number in grades.items())
    guard = f'<p class="dd-guard">Of {len(made.wanted):,} chosen questions, against the rows of the run: {known}</p>'
    remarks = []
    left_out = grades["seen"] + grades["near-seen"]
    if left_out and config.unseen_only:
        remarks.append(note(f"{left_out:,} that training knows {'is' if left_out == 1 else 'are'} left out."))
    elif any(made.seen[each.id].grade != "unseen" for each in made.questions):
        remarks.append(note("Training knows some of these questions; the results will say so.", "warn"))
    if not made.questions:
        remarks.append(note("No question is left. Choose other sources or filters.", "bad"))
    return f"{stats(cells)}{guard}{''.join(remarks)}<p class='dd-plan'>{escape(planned['sentence'])}</p>"


def result_parts(results: Mapping[str, Any], study: Study) -> dict[str, str]:
    """The results by PARTS, as the report has them, safe for Gradio's HTML."""
    answers = {key: Answer.from_row(row) for key, row in study.answers().items()}
    parts = report_parts(results, study, answers)
    return {name: f'<div class="dd-results {name}">{html.translate(INERT)}</div>' for name, html in parts.items()}


def asked_to_delete(study: Study, copy: Copy | None) -> str:
    """The question before a study is deleted. copy: on the Hub, if one is kept."""
    words = (
        f"Delete {study.name} with its answers and raters? Its verdicts stay among the judgments, but nobody can tell any more what they "
        "are about. This cannot be undone."
    )
    if copy:
        words += (
            f" It goes from the dataset {copy.repo} too, but that dataset's earlier commits still hold it until its owner removes them."
        )
    return words


def counted(counts: Mapping[str, Any]) -> str:
    """How many preference rows an export has, and what was left out of them. counts: preferences.json of a bundle."""
    left = [(*name.split("_"), number) for name, number in counts["left_out"].items() if number]
    listed = ", ".join(f"{number} {reason} ({kind.upper()})" for kind, reason, number in left) or "nothing"
    return f"Preference rows: {counts['dpo']} for DPO, {counts['kto']} for KTO; left out: {listed}."
