"""The judging pages as responses: templates filled with what a rater may see, and headers that keep them private."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from deepdoctor.studies.judgments import LONGEST_COMMENT, SLOTS, Ballot
from deepdoctor.studies.study import Study
from deepdoctor.studies.trials import Rater, Trial
from deepdoctor.ui.components import BANNER
from deepdoctor.ui.judge import forms, words
from deepdoctor.ui.judge.texts import Material, pair
from deepdoctor.ui.theme import PALETTE

HERE = Path(__file__).parent
FONTS = HERE.parent / "fonts"
POLICY = "; ".join(
    (
        *("default-src 'none'", "style-src 'self'", "script-src 'self'", "font-src 'self'", "img-src data:", "form-action 'self'"),
        # the Hub shows Spaces in a frame
        *("base-uri 'none'", "frame-ancestors 'self' https://huggingface.co"),
    )
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}
NOTHING = {
    "preference": "",
    **{name: dict.fromkeys(SLOTS, "") for name in ("correct", "harm")},
    "chips": dict.fromkeys(SLOTS, ()),
    "comment": "",
}
# where a message about a field leads: to its first choice
TARGETS = {
    "preference": "preference-A",
    "guess": "guess-A",
    **{f"correct-{slot}": f"correct-{slot}-correct" for slot in SLOTS},
    **{f"harm-{slot}": f"harm-{slot}-none" for slot in SLOTS},
    **{f"sound-{slot}": f"sound-{slot}-sound" for slot in SLOTS},
}


@dataclass(frozen=True)
class Visit:
    """A rater's request: who asks, in which study, and what they have said so far."""

    request: Request
    study: Study
    rater: Rater
    said: Ballot

    @property
    def home(self) -> str:
        """The rater's own address on this server."""
        return f"{root(self.request)}/{self.study.id}/{self.rater.token}"

    @property
    def next(self) -> Trial | None:
        """The first trial that is neither locked nor skipped."""
        done = self.said.locked.keys() | self.said.skipped.keys()
        return next((trial for trial in self.rater.trials if trial.id not in done), None)

    @property
    def last(self) -> Trial | None:
        """The trial judged last."""
        found = max(self.said.verdicts.values(), key=lambda row: row["time"], default=None)
        return next((trial for trial in self.rater.trials if found and trial.id == found["trial"]), None)


def root(request: Request) -> str:
    """Where the judging pages are mounted."""
    return str(request.scope["root_path"])


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """One page, its text escaped unless it is Markup."""
    filled = (
        _templates()
        .get_template(template)
        .render({"root": root(request), "stamp": stamp(), "banner": BANNER, "words": words, "longest": LONGEST_COMMENT, **values})
    )
    return HTMLResponse(filled, status, HEADERS)


def message(request: Request, status: int, title: str, told: str, link: tuple[str, str] | None = None) -> Response:
    """A page that says one thing, with a way on."""
    return page(request, "message.html", status, title=title, told=told, link=link)


def trial_form(visit: Visit, trial: Trial, material: Material, given: dict[str, Any], problems: dict[str, str]) -> Response:
    """The pair and the form, filled with what was `given` ("submission" among it, if the form was shown before)."""
    known = visit.said.verdicts.get(trial.id, NOTHING)
    skipped = visit.request.query_params.get("skipped", "")
    return page(
        visit.request,
        "trial.html",
        422 if problems else 200,
        **_about(visit, trial),
        question=material.questions[trial.question].question,
        pair=pair(material, trial),
        given={**known, **given},
        submission=given.get("submission") or forms.new_submission(),
        problems=problems,
        targets=TARGETS,
        skipped=f"{visit.home}/{skipped}" if skipped in visit.said.skipped else "",
    )


def saved(visit: Visit, trial: Trial, material: Material, problems: dict[str, str]) -> Response:
    """The verdict as saved, to lock or to change. Its time goes with the lock: another one may stand by then."""
    return page(
        visit.request,
        "saved.html",
        409 if problems else 200,
        **_about(visit, trial),
        question=material.questions[trial.question].question,
        given=visit.said.verdicts[trial.id],
        submission=forms.new_submission(),
        problems=problems,
    )


def unread(visit: Visit, trial: Trial, material: Material) -> Response:
    """After the lock, as long as the rater has not asked for reasoning and reference."""
    question, both = material.questions[trial.question].question, pair(material, trial)
    return page(visit.request, "unread.html", **_about(visit, trial), question=question, pair=both, submission=forms.new_submission())


def locked(visit: Visit, trial: Trial, material: Material, given: dict[str, Any], problems: dict[str, str]) -> Response:
    """After the lock: reasoning, reference, and what the rater thinks of the reasoning."""
    return page(
        visit.request,
        "locked.html",
        422 if problems else 200,
        **_about(visit, trial),
        question=material.questions[trial.question],
        pair=pair(material, trial, reasoning=True),
        given=given or visit.said.soundness.get(trial.id, dict.fromkeys(SLOTS, "")),
        submission=forms.new_submission(),
        problems={f"sound-{slot}": told for slot, told in problems.items()},
        targets=TARGETS,
    )


def end(visit: Visit, material: Material, problems: dict[str, str]) -> Response:
    """Every pair is judged or skipped: the question which answer was tuned, on the pair judged last, then thanks."""
    asked = visit.last if visit.said.guess is None else None
    shown = {"question": material.questions[asked.question].question, "pair": pair(material, asked), "trial": asked.id} if asked else {}
    return page(
        visit.request,
        "end.html",
        422 if problems else 200,
        **_whole(visit),
        **shown,
        asked=bool(asked),
        judged=len(visit.said.verdicts),
        skipped=[f"{visit.home}/{trial}" for trial in visit.said.skipped],
        submission=forms.new_submission(),
        problems=problems,
    )


def _whole(visit: Visit) -> dict[str, Any]:
    done = len(visit.said.locked.keys() | visit.said.skipped.keys())
    study_url = f"{root(visit.request)}/{visit.study.id}"
    return {"home": visit.home, "study_url": study_url, "rater_name": visit.rater.name, "total": len(visit.rater.trials), "done": done}


def _about(visit: Visit, trial: Trial) -> dict[str, Any]:
    return {**_whole(visit), "number": visit.rater.trials.index(trial) + 1, "action": f"{visit.home}/{trial.id}"}


@cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


@cache
def style_sheet() -> str:
    """Fonts, the palette for light and dark as the reader's system asks, and the sheet itself."""
    faces = (
        f'@font-face{{font-family:"DeepDoctor Sans";font-weight:{weight};font-display:swap;'
        f'src:url("fonts/ibm-plex-sans-latin-{weight}-normal.woff2") format("woff2")}}'
        for weight in (400, 700)
    )
    colours = {mode: "".join(f"--dd-{name}:{colour};" for name, colour in PALETTE[mode].items()) for mode in ("light", "dark")}
    palette = f":root{{color-scheme:light dark;{colours['light']}}}@media (prefers-color-scheme:dark){{:root{{{colours['dark']}}}}}"
    return "\n".join([*faces, palette, (HERE / "judge.css").read_text(encoding="utf-8")])


@cache
def script() -> str:
    """The few lines that make number keys work and remember where this browser left off."""
    return (HERE / "judge.js").read_text(encoding="utf-8")


@cache
def stamp() -> str:
    """Changes with sheet and script, so that browsers may keep them."""
    return hashlib.sha256((style_sheet() + script()).encode()).hexdigest()[:12]
