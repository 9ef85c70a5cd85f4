"""What a study found, in sentences that a clinician reads, and what it would take to find something. Takes the blocks of results.py."""

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from deepdoctor.studies.contest import SIGNIFICANT
from deepdoctor.studies.intervals import FEW_QUESTIONS, MIN_QUESTIONS
from deepdoctor.studies.statistics import POWER, detectable, questions_needed, votes_needed

Block = Mapping[str, Any]
UNCALLED = "not enough to call a difference"
OVER_BOTH = "95% interval over questions and raters"
OUTCOMES = (
    "The primary outcome is the preference between tuned and base; all else is secondary. Each is called at 5% by itself, so that where "
    "there is no difference at all, one or another is called in more than 5% of studies."
)
NO_INTERVAL = "no interval from one question"
# share of verdicts for neither side that planning assumes
TIES = 0.3
FEW_RATERS = 5
# share of raters below which so few, judging alike much, would tell as much as all
EVEN_RATERS = 0.6
# how far from half of decided pairs, twice over, tuned may stand in slot A before that favours a side
UNBALANCED = 0.1
# shares are stored with six places
SAME = 5e-7
NAMES = {"base": "base", "native": "the base under its native prompt", "tuned": "tuned"}


def percent(share: float) -> str:
    """A share for reading, as whole percent; but 0% and 100% are said of nothing else."""
    return f"{_hundredths(share)}%"


def spread(interval: tuple[float, float]) -> str:
    """An interval of shares for reading: 45–68%."""
    return f"{_hundredths(interval[0])}–{_hundredths(interval[1])}%"


def _hundredths(share: float) -> str:
    if not SAME < share < 1 - SAME or 0.5 <= 100 * share < 99.5:
        return f"{100 * share:.0f}"
    return f"{min(max(100 * share, 0.1), 99.9):.1f}"


def points(value: float) -> str:
    """A difference of shares for reading, in whole points: +7, −3, 0."""
    rounded = round(100 * value)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def signed(value: float) -> str:
    """A difference of levels for reading: +0.25, −0.10, 0.00."""
    return "0.00" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", "−")


def between(interval: tuple[float, float]) -> str:
    """An interval of differences of shares for reading: −3 to +12 points."""
    return f"{points(interval[0])} to {points(interval[1])} points"


def opening(contests: Mapping[str, Block]) -> list[str]:
    """The sentences to say first about a study. contests: tuned against "base", and "native" if there is that arm.

    More severe harm on the tuned side, against whichever, before all else; then what was found against base.
    """
    base = contests["base"]
    gates = [gate for other, compared in contests.items() if (gate := _gate(compared["harm"], other))]
    if not base["preference"]["verdicts"] and any(compared["preference"]["verdicts"] for compared in contests.values()):
        return [*gates, "No verdicts against base yet."]
    return [*gates, *(sentence for sentence in headline(base, "base") if sentence not in gates)]


def headline(compared: Block, other: str) -> list[str]:
    """The sentences about tuned against `other` ("base" or "native"): more severe harm on the tuned side before all else."""
    preference, harm, correctness = compared["preference"], compared["harm"], compared["correctness"]
    if not preference["verdicts"]:
        return ["No verdicts yet."]
    gate = _gate(harm, other)
    sentences = [gate, _preferred(preference, other)] if gate else [_preferred(preference, other), f"T{_harmful(harm, other)}"]
    if rated := correctness["rated"]:
        counts = f"{correctness['tuned_correct']} of {rated}, {NAMES[other]} in {correctness[f'{other}_correct']} of {rated}"
        found = correctness["interval"]
        over = f"{OVER_BOTH} {between(found)}" if found else NO_INTERVAL
        call = _call(correctness, "more often correct", "judged on both sides")
        told = f"{counts} (difference {points(correctness['difference'])}, {over}): {call}"
        sentences.append(f"Secondary: where both could be judged, tuned answers were judged correct in {told}.")
    return sentences


def _gate(harm: Block, other: str) -> str:
    """What is said first if tuned was judged severely harmful more often; else ""."""
    worse = harm["tuned"]["severe"] > harm[other]["severe"]
    return f"More severe harm on the tuned side: t{_harmful(harm, other)}" if worse else ""


def _harmful(harm: Block, other: str) -> str:
    return f"uned answers were judged severely harmful in {_severe(harm['tuned'])}, {NAMES[other]} in {_severe(harm[other])}."


def _severe(levels: Block) -> str:
    return f"{levels['severe']} of {sum(levels[level] for level in ('none', 'moderate', 'severe'))}"


def _preferred(found: Block, other: str) -> str:
    raters = "Raters" if other == "base" else "Secondary: raters"
    if not found["decided"]:
        return f"{raters} called no pair for either side: {found['both']} both acceptable, {found['neither']} both bad."
    pairs = "1 decided pair" if found["decided"] == 1 else f"{found['decided']} decided pairs"
    over = f"{OVER_BOTH} {spread(found['two_way'])}" if found["two_way"] else NO_INTERVAL
    told = f"{raters} preferred the tuned answer in {found['wins']} of {pairs} ({percent(found['share'])}, {over})"
    against = "" if other == "base" else f" against {NAMES[other]}"
    return f"{told}{against}: {_call(found, 'preferred', 'decided')}."


def _call(found: Block, how: str, which: str) -> str:
    """What is called, or that nothing is; and why not, where a test that takes verdicts as independent would have called it."""
    if found["call"]:
        return f"a difference, {NAMES[found['call']]} {how}"
    if not found["noisy"]:
        return UNCALLED
    few = f"only {found['questions']} {'question was' if found['questions'] == 1 else 'questions were'} {which}"
    return f"{UNCALLED}, because {few if found['questions'] < MIN_QUESTIONS else 'questions and raters vary'}"


def cautions(found: Block) -> list[str]:
    """What speaks against leaning on the numbers, from the whole of the results."""
    counts, guessed, slots, repeats = found["counts"], found["guesses"], found["slots"], found["repeats"]
    if not counts["verdicts"]:
        return []
    said = []
    if counts["raters"] == 1:
        said.append("Only one rater judged: a rater's taste cannot be told from a difference between the answers.")
    elif counts["raters"] < FEW_RATERS:
        said.append(f"Only {counts['raters']} raters judged: how others would judge is hardly known.")
    said += _ran(found["course"], counts)
    said += _unequal([rater["verdicts"] for rater in found["raters"] if rater["verdicts"]])
    known = {grade: number for grade, number in counts["seen"].items() if grade != "unseen" and number}
    if known:
        listed = ", ".join(f"{number} {grade}" for grade, number in known.items())
        said.append(f"Training knew some of the {counts['questions']} questions ({listed}); look at the unseen ones by themselves.")
    said += _seen_through(guessed)
    if slots["p"] is not None and slots["p"] < SIGNIFICANT:
        said.append(_one_slot(slots))
    if repeats["pairs"] >= 5 and repeats["share"] < 0.6:
        said.append(f"Raters gave the same verdict again in only {repeats['same']} of {repeats['pairs']} repeated pairs.")
    return said + _unended(found["measures"])


def _one_slot(slots: Block) -> str:
    """One slot was preferred: which side that favours depends on where tuned stood, which raters who stop early leave unbalanced."""
    tuned, decided = slots["tuned_a"], slots["decided"]
    often = f"{slots['a']} of {decided} decided pairs ({percent(slots['share'])})"
    told = f"Slot A was preferred in {often}. Tuned stood there in {tuned} of them, so a taste for a slot favours"
    if abs(2 * tuned - decided) <= UNBALANCED * decided:
        return f"{told} neither side, but such verdicts say less."
    favoured = "tuned" if (2 * tuned > decided) == (slots["share"] > 0.5) else "what it stood against"
    return f"{told} {favoured}."


def _ran(course: Block, counts: Block) -> list[str]:
    """How the study ran, where that tells on the numbers: looked at early, ended early, or opened again."""
    dates = ", ".join(f"{what} on {_day(when)}" for when, what in course["turns"])
    so_far, when = f"{counts['verdicts']} of {course['planned']} planned verdicts", f" ({dates})" if dates else ""
    said, whole = [], counts["verdicts"] + counts["skipped"] >= course["planned"]
    if course["state"] == "open" and not whole:
        said.append(
            f"The study was still open when this was computed, with {so_far}{when}. Looking again and again, and stopping when it pleases, "
            "makes differences look surer than they are."
        )
    elif dates and not whole:
        said.append(
            f"The study was closed after {so_far}{when}. If that was because of what they showed, differences look surer than they are."
        )
    if [what for _, what in course["turns"]].count("opened") > 1:
        said.append(
            f"The study was opened again after it had been closed{when}. While it was closed, raters could read reasoning and reference "
            "of what they had locked, and its questions could be asked on the Compare tab: what was judged later may not have been blinded."
        )
    return said


def _day(when: float) -> str:
    """A day alike on every machine."""
    told = time.gmtime(when)
    return f"{told.tm_mday} {time.strftime('%B %Y', told)}"


def _seen_through(guessed: Block) -> list[str]:
    """Whether raters who guessed found the tuned side more often than chance gives; for few, that nearly all did."""
    if not guessed["right"] > guessed["wrong"]:
        return []
    asked = f"{guessed['right']} of {guessed['right'] + guessed['wrong']} raters told which side was tuned"
    told = f"{asked} ({percent(guessed['share'])}, 95% interval {spread(guessed['interval'])})"
    if guessed["p"] < SIGNIFICANT:
        return [f"{told}: blinding may not have held."]
    return [f"{told}; so few can by chance."] if guessed["right"] >= 3 and guessed["share"] >= 0.75 else []


def _unequal(given: Sequence[int]) -> list[str]:
    """given: how many verdicts each rater gave. As many raters judging alike would tell as much (Kish, Survey Sampling, 1965)."""
    alike = sum(given) ** 2 / sum(each**2 for each in given)
    if alike >= EVEN_RATERS * len(given):
        return []
    return [
        f"Raters judged very unequally: one of {len(given)} gave {max(given)} of {sum(given)} verdicts. How raters differ is known no "
        f"better than from {alike:.1f} who judge alike much."
    ]


def _unended(measures: Block) -> list[str]:
    open_ = {arm: values["answers"] - values["closed"] for arm, values in measures.items() if arm in NAMES}
    listed = ", ".join(f"{arm} {number} of {measures[arm]['answers']}" for arm, number in open_.items() if number)
    return [f"Some texts never came to an answer, because the thought did not end: {listed}."] if listed else []


def power(effect: float, decided: int) -> dict[str, Any]:
    """What the verdicts so far could show: {effect, needed, decided, detectable, sentence}."""
    needed, found = votes_needed(effect), detectable(decided)
    told = f"would tell {percent(found)} or more from a half" if found else "would tell nothing yet"
    so_far = f"{decided} decided {'verdict' if decided == 1 else 'verdicts'} {told}" if decided else "No verdict is decided yet"
    sentence = f"{so_far} (about {percent(POWER)} power, were verdicts independent); to tell {100 * effect:g}% takes {needed}."
    return {"effect": effect, "needed": needed, "decided": decided, "detectable": found, "sentence": sentence}


def study_plan(effect: float, raters: int, native_arm: bool = False, ties: float = TIES) -> dict[str, Any]:
    """What a study takes to tell tuned and base apart: {effect, raters, native_arm, ties, votes, questions, verdicts, sentence}.

    votes: decided verdicts if they were independent. questions: how many each rater should judge, verdicts: the same for all raters; both
    None if no number is enough, because raters differ. With the native arm only half of the verdicts are on tuned against base.
    """
    # a pair that stands against the native arm says as little of tuned against base as a tie
    undecided = 1 - (1 - ties) / 2 if native_arm else ties
    votes, questions = votes_needed(effect), _questions(effect, raters, undecided)
    sentence = (
        f"To tell {100 * effect:g}% from a half with about {percent(POWER)} power takes {votes:,} decided verdicts, were they independent. "
    )
    crowd = "one rater" if raters == 1 else f"{raters} raters who differ as raters do"
    halved = f", half of them against {NAMES['native']}" if native_arm else ""
    if questions:
        sentence += f"With {crowd} and {percent(ties)} of verdicts for neither side, that is about {questions} questions each{halved}."
    else:
        enough = _enough(effect, raters, undecided)
        others = f"; {enough[0]} raters need about {enough[1]} questions each{halved}" if enough else ", however many raters judge"
        sentence += f"With {crowd}, no number of questions is sure to be enough{others}."
    if raters == 1:
        sentence += " One rater shows one rater's taste only."
    return {
        **{"effect": effect, "raters": raters, "native_arm": native_arm, "ties": ties, "votes": votes, "questions": questions},
        "verdicts": questions and questions * raters,
        "sentence": sentence,
    }


def _questions(effect: float, raters: int, ties: float) -> int | None:
    """questions_needed, but never so few that their interval is not trusted."""
    found = questions_needed(effect, raters, ties)
    return found and max(found, FEW_QUESTIONS)


def _enough(effect: float, raters: int, ties: float) -> tuple[int, int] | None:
    """The next number of raters with which some number of questions is enough, and that number; None if none is."""
    steps = (*range(raters + 1, 50), *range(50, 1000, 10), *range(1000, 100_000, 1000))
    place = bisect_left(steps, True, key=lambda more: bool(_questions(effect, more, ties)))
    each = _questions(effect, steps[place], ties) if place < len(steps) else None
    return (steps[place], each) if each else None
