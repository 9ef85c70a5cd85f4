"""What a rater's forms hold, read into what the store keeps; and the token that makes each form count once and tells when it was shown."""

import secrets
import time
from typing import Any

from starlette.datastructures import FormData

from deepdoctor.studies.judgments import SLOTS, Row
from deepdoctor.studies.trials import LONGEST_NAME, MOST_YEARS, plain_name

MOST_FIELDS = 100
LARGEST_FIELD = 200_000


def new_submission() -> str:
    """A token for one showing of a form: the time in milliseconds, and what nobody can guess."""
    return f"{int(time.time() * 1000):x}-{secrets.token_hex(8)}"


def seconds_since(submission: str, before: Row | None) -> float:
    """Seconds since the form with that token was shown, or since it gave the verdict `before`; 0 if it tells no time."""
    try:
        began = before["time"] if before and before.get("submission") == submission else int(submission.partition("-")[0], 16) / 1000
        return max(0.0, round(time.time() - began, 3))
    except ValueError:
        return 0.0


def text(form: FormData, name: str) -> str:
    """One field as text; an uploaded file is none."""
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def verdict(form: FormData) -> dict[str, Any]:
    """The verdict as given, whole or not."""
    return {
        "preference": text(form, "preference"),
        "correct": {slot: text(form, f"correct-{slot}") for slot in SLOTS},
        "harm": {slot: text(form, f"harm-{slot}") for slot in SLOTS},
        "chips": {slot: [str(chip) for chip in dict.fromkeys(form.getlist(f"chips-{slot}"))] for slot in SLOTS},
        "comment": text(form, "comment").replace("\r\n", "\n").strip(),
    }


def soundness(form: FormData) -> dict[str, str]:
    """What was said of each answer's reasoning."""
    return {slot: text(form, f"sound-{slot}") for slot in SLOTS}


def joining(form: FormData, user: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """What was given in the join form, and what is wrong with it by field. The name is that of the logged-in `user`, if there is one."""
    given = {"name": user or plain_name(text(form, "name")), "specialty": plain_name(text(form, "specialty"))}
    given["years"] = text(form, "years").strip()
    problems = {}
    for name, asked in (("name", "Give a name or code"), ("specialty", "Give your specialty")):
        if not given[name]:
            problems[name] = f"{asked}."
        elif len(given[name]) > LONGEST_NAME:
            problems[name] = f"The {name} is too long: at most {LONGEST_NAME} characters can be kept."
    if not (given["years"].isdecimal() and len(given["years"]) < 4 and int(given["years"]) <= MOST_YEARS):
        problems["years"] = f"Give whole years, 0 to {MOST_YEARS}."
    return given, problems
