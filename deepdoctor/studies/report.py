"""A study's results as one HTML page: self-contained, for screen and paper, without scripts, and everything in it escaped."""

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepdoctor.overlap import METHOD
from deepdoctor.studies.exports import Answers, shown
from deepdoctor.studies.figures import drawings
from deepdoctor.studies.headline import OUTCOMES, between, percent, points, signed, spread
from deepdoctor.studies.intervals import MIN_QUESTIONS
from deepdoctor.studies.study import Study

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE, PARTS = "report.html", "parts.html"
# measures by arm: label, name, how it is written
MEASURES = (
    ("answers", "answers", "{:,}"),
    ("thought ended, of these", "closed", "{:,}"),
    ("reasoning tokens (median)", "reasoning_tokens", "{:,.0f}"),
    ("words of the answer (median)", "response_words", "{:,.0f}"),
    ("bullets (mean)", "bullets", "{:.1f}"),
    ("repeated 4-word sequences (share)", "repetition", "{:.1%}"),
    ("key points named (share)", "key_points", "{:.0%}"),
    ("chrF against the reference (0 to 100)", "chrf", "{:.1f}"),
)


def report(results: Mapping[str, Any], study: Study, answers: Answers) -> str:
    """The page. results: from results.py; answers: the study's, by question id and seed."""
    made = time.strftime("%d %B %Y", time.localtime(study.details["created"]))
    return _environment().get_template(TEMPLATE).render(name=study.name, made=made, **_values(results, study, answers))


def report_parts(results: Mapping[str, Any], study: Study, answers: Answers) -> dict[str, str]:
    """The parts of the report by themselves, for a page that has a frame of its own: findings, tables, measured, protocol, pairs."""
    values = _values(results, study, answers)
    parts: Any = _environment().get_template(PARTS).module
    return {
        "findings": parts.findings(results, values["pictures"]),
        "tables": parts.tables(results),
        "measured": parts.measured(results, values["measures"], values["arms"]),
        "protocol": parts.protocol(values["details"], values["settings"], METHOD),
        "pairs": parts.pairs(results, values["settings"], values["questions"], answers, shown),
    }


def _environment() -> "Environment":
    # the page's server brings Jinja2 along; loaded here because only who looks at results needs it
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "percent": _percent,
        "spread": _spread,
        "points": points,
        "between": _between,
        "signed": signed,
        "signed_spread": _signed_spread,
        "p": _p,
        "number": _number,
        "words": _words,
    }
    made.globals |= {"fewest": MIN_QUESTIONS, "outcomes": OUTCOMES}
    return made


def _values(results: Mapping[str, Any], study: Study, answers: Answers) -> dict[str, Any]:
    return {
        "results": results,
        "details": study.details,
        "settings": study.config.model_dump(),
        "pictures": [{"title": each.title, "alt": each.alt, "source": _data(each.svg)} for each in drawings(results)],
        "questions": {question.id: question for question in study.questions()},
        "answers": answers,
        "guard": METHOD,
        "shown": shown,
        "measures": MEASURES,
        "arms": [arm for arm in ("base", "tuned", "native") if arm in results["measures"]],
    }


def _data(svg: str) -> str:
    """An SVG as the source of an image: there its ids meet no others, and nothing in it can run."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _percent(share: float | None) -> str:
    return "–" if share is None else percent(share)


def _spread(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else spread(interval)


def _between(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else between(interval)


def _signed_spread(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "–" if value is None else form.format(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
