"""What a study's verdicts become for other tools: a table, rows for preference training with TRL, and LLM Comparator's JSON."""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.prompts import render_question, style_named
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.judged import Judged

Key = tuple[str, int]
Answers = Mapping[Key, Answer]
# what a spreadsheet takes for a formula, full-width signs included
FORMULA = tuple("=+-@\t\r＝＋－＠")
# LLM Comparator's scale: positive where A, the base, is better
SCORES = {"other": 1.5, "tuned": -1.5, "both": 0.0, "neither": 0.0}
RATER_FIELDS = ("rater", "specialty", "years", "assigned", "judged", "locked", "skipped", "unfinished")
LABELS = {"other": "base preferred", "tuned": "tuned preferred", "both": "both acceptable", "neither": "both bad"}


def codes(judged: Iterable[Judged], joined: Iterable[str] = ()) -> dict[str, str]:
    """R1, R2 … for the raters: a rater's own token is a key to their page.

    In the order of their first verdict in `judged`, then whoever else is in `joined`.
    """
    return {rater: f"R{number}" for number, rater in enumerate(dict.fromkeys((*(each.rater for each in judged), *joined)), start=1)}


def verdict_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """One row a verdict, repeated presentations included, raters by code."""
    names = codes(judged)
    return [{**asdict(each), "rater": names[each.rater]} for each in judged]


def verdicts_jsonl(judged: Sequence[Judged]) -> str:
    """The verdicts as JSON lines."""
    return jsonl(verdict_rows(judged))


def verdicts_csv(judged: Sequence[Judged]) -> str:
    """The verdicts as CSV. Text that a spreadsheet would take for a formula begins with an apostrophe."""
    return _csv(list(Judged.__dataclass_fields__), verdict_rows(judged))


def raters_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """How far each rater came as CSV, neutralized likewise. rows: counts.by_rater of the results."""
    return _csv(RATER_FIELDS, rows)


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    written = io.StringIO()
    # ends lines with CR LF, so that a lone CR in a comment is quoted too and begins no row
    table = csv.DictWriter(written, fieldnames=names)
    table.writeheader()
    for row in rows:
        table.writerow({name: _cell(value) for name, value in row.items()})
    return written.getvalue()


def _cell(value: Any) -> Any:
    text = " ".join(value) if isinstance(value, tuple) else value
    return f"'{text}" if isinstance(text, str) and text.lstrip(" ").startswith(FORMULA) else text


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


@dataclass(frozen=True)
class Preferences:
    """Rows for TRL as plain strings: dpo (prompt, chosen, rejected), kto (prompt, completion, label); and what was left out, by reason."""

    dpo: list[dict[str, Any]]
    kto: list[dict[str, Any]]
    left_out: dict[str, int]


def preferences(judged: Sequence[Judged], answers: Answers) -> Preferences:
    """Preference rows of tuned against base by the majority of a pair's raters; a pair shown again counts once.

    A winner that any rater judged wrong or severely harmful, be it in a repetition or beside the native answer, is left out as "unsafe",
    one without a finished answer as "unfinished", a pair without a majority as "undecided"; likewise for KTO, whose good answers are those
    preferred or acceptable. The strings are what the model was given and wrote; TRL adds the end-of-sequence token. Once trained on, the
    questions are no longer unseen.
    """
    dpo, kto = [], []
    unsafe = _unsafe(judged)
    left_out = Counter({f"{kind}_{reason}": 0 for kind in ("dpo", "kto") for reason in ("unsafe", "unfinished", "undecided")})
    for key, verdicts in _by_pair(judged).items():
        comparison = answers[key].comparison
        sides = {"base": comparison.base, "tuned": comparison.tuned}
        prompt = render_question(comparison.question, style_named(comparison.prompt_style))
        better = _majority(each.preference for each in verdicts if each.preference in ("tuned", "other"))
        winner = {"tuned": "tuned", "other": "base"}.get(better or "")
        if why := _unfit(sides[winner], (*key, winner) in unsafe) if winner else "undecided":
            left_out[f"dpo_{why}"] += 1
        elif winner:
            loser = "base" if winner == "tuned" else "tuned"
            dpo.append({"prompt": prompt, "chosen": sides[winner].text, "rejected": sides[loser].text})
        for side, transcript in sides.items():
            label = _majority(each.preference in ("both", _field(side)) for each in verdicts)
            if why := _unfit(transcript, (*key, side) in unsafe) if label else "undecided" if label is None else "":
                left_out[f"kto_{why}"] += 1
            else:
                kto.append({"prompt": prompt, "completion": transcript.text, "label": label})
    return Preferences(dpo, kto, dict(left_out))


def _by_pair(judged: Iterable[Judged]) -> dict[Key, list[Judged]]:
    """First verdicts on tuned against base, by question and seed."""
    pairs: dict[Key, list[Judged]] = defaultdict(list)
    for each in judged:
        if each.other == "base" and not each.repeat_of:
            pairs[each.question, each.seed].append(each)
    return pairs


def _majority(said: Iterable[Any]) -> Any:
    """What was said most often; None if two were, or nothing."""
    most = Counter(said).most_common(2)
    return most[0][0] if most and (len(most) == 1 or most[0][1] > most[1][1]) else None


def _unsafe(judged: Iterable[Judged]) -> set[tuple[str, int, str]]:
    """Question, seed and arm of every answer that anybody ever judged wrong or severely harmful, whatever it stood against."""
    found = set()
    for each in judged:
        for side, arm in (("tuned", "tuned"), ("other", each.other)):
            if getattr(each, f"{side}_correct") == "wrong" or getattr(each, f"{side}_harm") == "severe":
                found.add((each.question, each.seed, arm))
    return found


def _unfit(transcript: Transcript, unsafe: bool) -> str:
    """Why an answer must not be taught: "unsafe", "unfinished", or ""."""
    if unsafe:
        return "unsafe"
    return "" if transcript.closed and transcript.finish_reason == "stop" else "unfinished"


def _field(side: str) -> str:
    """How Judged calls a side."""
    return "tuned" if side == "tuned" else "other"


def comparator(judged: Sequence[Judged], answers: Answers, names: tuple[str, str], source: str) -> dict[str, Any]:
    """The judged pairs in the format of LLM Comparator (PAIR-code/llm-comparator, README, "JSON Data Format").

    names: of base and tuned, its models A and B. A rating is flipped where the rater saw tuned in slot A. Remarks are its rationales.
    """
    fields = {"specialty": "category", "kind": "category", "seen": "category", "question_id": "string"}
    fields |= {f"{name}_per_side": "per_model_number" for name in ("words", "bullets", "judged_correct", "judged_severely_harmful")}
    raters = codes(judged)
    return {
        "metadata": {"source_path": source, "custom_fields_schema": [{"name": name, "type": kind} for name, kind in fields.items()]},
        "models": [{"name": name} for name in names],
        "examples": [_example(answers[key].comparison, verdicts, raters) for key, verdicts in _by_pair(judged).items()],
    }


def _example(comparison: Comparison, verdicts: Sequence[Judged], raters: Mapping[str, str]) -> dict[str, Any]:
    first = verdicts[0]
    return {
        "input_text": comparison.question,
        "tags": [first.specialty] if first.specialty else [],
        "output_text_a": shown(comparison.base),
        "output_text_b": shown(comparison.tuned),
        "score": fmean(SCORES[each.preference] for each in verdicts),
        "individual_rater_scores": [
            {
                "score": SCORES[each.preference],
                "rating_label": f"{raters[each.rater]}: {LABELS[each.preference]}",
                "is_flipped": each.tuned_slot == "A",
                "rationale": each.comment,
                "custom_fields": {},
            }
            for each in verdicts
        ],
        "custom_fields": {
            **{"specialty": first.specialty, "kind": first.kind, "seen": first.seen, "question_id": first.question},
            "words_per_side": [first.other_words, first.tuned_words],
            "bullets_per_side": [first.other_bullets, first.tuned_bullets],
            "judged_correct_per_side": [
                sum(getattr(each, f"{side}_correct") == "correct" for each in verdicts) for side in ("other", "tuned")
            ],
            "judged_severely_harmful_per_side": [
                sum(getattr(each, f"{side}_harm") == "severe" for each in verdicts) for side in ("other", "tuned")
            ],
        },
    }


def shown(transcript: Transcript) -> str:
    """An answer for reading; a thought that never ended is none."""
    return transcript.response if transcript.closed else "(no answer: the thought did not end)"
