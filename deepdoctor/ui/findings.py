"""What stands below a finished comparison: what changed in numbers, how well training knew the question, and the proof. Plain HTML."""

from collections.abc import Sequence
from typing import Any

from deepdoctor.comparison import Comparison, Further, changes, measures, step_name
from deepdoctor.proof import Proof
from deepdoctor.ui.components import badge, escape, note, number

# proofs allow a gap of 0.001 in 32-bit numbers, and of 0.25 or more in 16-bit ones
ROUNDED = 0.1
# how many texts a comparison has, by the number of further checkpoints
MANY = ("two", "three", "four", "five")
MEASURES = {
    "reasoning_tokens": "Reasoning, tokens",
    "response_tokens": "Answer, tokens",
    "response_words": "Answer, words",
    "bullets": "Bullets",
    "headings": "Headings",
    "paragraphs": "Paragraphs",
}
GRADES = {
    "seen": "The run was trained on this very question. Its answer shows memory, not skill.",
    "near-seen": "The run was trained on a question much like this one. Read its answer with that in mind.",
    "unknown": "Not known: the run does not record the rows it was trained on, or its adapter came from the Hub. "
    "Whether this question was among them, nobody can tell.",
    "unseen": "No training question of the run shares many words with this one. The same case in other words would not be noticed.",
}


def findings(comparison: Comparison) -> str:
    """All that is known about a finished comparison, as HTML; every text in it is escaped."""
    left = changes_table(comparison) + seen_card(comparison.seen)
    right = proof_card(comparison.proof, comparison.sampling.seed, comparison.rows_at_once, comparison.further)
    return f'<div class="dd-findings"><div>{left}</div><div>{right}</div></div>'


def changes_table(comparison: Comparison) -> str:
    """The measures of both sides and what became of them, and those of further checkpoints, as a card with a table."""
    rows, further = [], [measures(each.written) for each in comparison.further]
    for name, both in changes(comparison.base, comparison.tuned).items():
        base, tuned = both["base"], both["tuned"]
        texts = (number(base), number(tuned), _difference(base, tuned), *(number(each[name]) for each in further))
        cells = "".join(f'<td class="num">{text}</td>' for text in texts)
        rows.append(f'<tr><th scope="row">{escape(MEASURES[name])}</th>{cells}</tr>')
    names = ["Final" if each.step is None else f"Step {each.step}" for each in comparison.further]
    heads = "".join(f'<th scope="col" class="num">{head}</th>' for head in ("Base", "Tuned", "Change", *names))
    table = f'<table class="dd-table"><thead><tr><th scope="col">Measure</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    words = '<p class="dd-muted">Style in numbers. They say how the answer is written, not whether it is right.</p>'
    words += _unfinished(comparison)
    return f'<section class="dd-card"><h2>What changed</h2>{words}<div class="dd-scroll" tabindex="0">{table}</div></section>'


def _unfinished(comparison: Comparison) -> str:
    sides = {"base": comparison.base, "tuned": comparison.tuned} | {step_name(each.step): each.written for each in comparison.further}
    cut = [name for name, side in sides.items() if side.finish_reason != "stop"]
    if not cut:
        return ""
    which = f"The {cut[0]} text is" if len(cut) == 1 else f"The {', '.join(cut[:-1])} and {cut[-1]} texts are"
    if len(cut) == len(sides):
        which = "Both texts are" if len(cut) == 2 else "All texts are"
    return note(f"{which} unfinished: the numbers compare what was written until then.", "warn")


def _difference(base: int, tuned: int) -> str:
    if base == tuned:
        return "same"
    sign = "+" if tuned > base else "−"
    share = f" ({sign}{abs(tuned - base) / base:.0%})" if base else ""
    return f"{sign}{number(abs(tuned - base))}{share}"


def seen_card(seen: dict[str, Any]) -> str:
    """The badge seen, near-seen, unseen or unknown with its meaning and the nearest training question; "" where it was not looked up."""
    grade = str(seen.get("grade", ""))
    if grade not in GRADES:
        return ""
    nearest = ""
    if seen.get("nearest"):
        where = f"Nearest training question (row {escape(seen.get('row'))}, similarity {float(seen.get('similarity', 0)):.0%})"
        nearest = f'<p class="dd-muted">{where}:</p><blockquote>{escape(seen["nearest"])}</blockquote>'
    heading = f"<h2>Was it in the training rows? {badge(grade.capitalize(), grade)}</h2>"
    return f'<section class="dd-card">{heading}<p>{escape(GRADES[grade])}</p>{nearest}</section>'


def proof_card(proof: Proof | None, seed: int, rows_at_once: int = 2, further: Sequence[Further] = ()) -> str:
    """What shows that base was base and tuned was tuned, each in one plain sentence. `rows_at_once` texts were written in one pass."""
    if proof is None:
        return f'<section class="dd-card dd-proof"><h2>Proof</h2>{note("This comparison carries no proof.", "bad")}</section>'
    allowed = f"{proof.tolerance:.1g}"
    unchanged = proof.base_hash == proof.base_hash_at_load
    same = "the same now as when they were loaded" if unchanged else "no longer what was loaded"
    apart = proof.effect > 0 and proof.base_nearer > 0 and proof.tuned_nearer > 0
    lines = [
        ("Base is base", f"{proof.base_difference:.1e}", f"Largest logit gap to the plain model without adapter; {allowed} is allowed."),
        ("Tuned is tuned", f"{proof.tuned_difference:.1e}", f"Largest logit gap to the model with the adapter on; {allowed} is allowed."),
        (
            "They differ",
            f"{proof.effect:.2g}",
            f"Largest logit gap between the two sides; the adapter {'works' if apart else 'changes nothing'}.",
        ),
        ("Base weights", _hash(proof.base_hash), f"Fingerprint of the base weights: {same}."),
        ("Adapter", _hash(proof.adapter_hash), "Fingerprint of the adapter that made the tuned side."),
        *(_further_line(each, allowed) for each in further),
        ("Prompt", _hash(proof.prompt_hash), f"Fingerprint of the exact prompt; {'all' if further else 'both'} sides read the same one."),
        ("Seed", escape(seed), _again(proof, rows_at_once, MANY[len(further)])),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd><span>{value}</span>{escape(words)}</dd></div>" for name, value, words in lines)
    problems = proof.problems() + [problem for each in further for problem in _further_problems(each)]
    state = badge("Does not hold", "bad") if problems else badge("Holds", "ok")
    wrong = "".join(note(problem.capitalize() + ".", "bad") for problem in problems)
    return f'<section class="dd-card dd-proof"><h2>Proof {state}</h2>{wrong}<dl>{rows}</dl></section>'


def _further_line(further: Further, allowed: str) -> tuple[str, str, str]:
    name = step_name(further.step).capitalize()
    if further.proof is None:
        return name, "none", "This text carries no proof."
    words = f"Largest logit gap to the model with that adapter on; {allowed} is allowed. To the base it is {further.proof.effect:.2g}."
    return name, f"{further.proof.tuned_difference:.1e} · {_hash(further.proof.adapter_hash)}", words


def _further_problems(further: Further) -> list[str]:
    name = step_name(further.step, "the ")
    return [f"{name}: {problem}" for problem in (further.proof.problems() if further.proof else ["this text carries no proof"])]


def _again(proof: Proof, rows_at_once: int, many: str) -> str:
    if proof.tolerance < ROUNDED or rows_at_once == 1:
        return f"The same seed, settings and weights give the same {many} texts again on this machine."
    return (
        f"Up to {rows_at_once} texts were written in one pass. In 16-bit numbers sums are rounded: the same seed, settings and weights "
        f"give the same {many} texts again beside as many others; written beside more or fewer, they can differ."
    )


def _hash(value: str) -> str:
    return f'<code title="{escape(value)}">{escape(value[:12])}</code>'
