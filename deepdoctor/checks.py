"""What training would do with each example: which are kept, which are left out and why, and how many tokens each part takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepdoctor.dataset import PARTS, Example
from deepdoctor.errors import DatasetError
from deepdoctor.overlap import Overlap, normalize
from deepdoctor.prompts import THINK_CLOSE, PromptStyle, marker_in
from deepdoctor.tokens import Placed, placed

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

ROWS_SHOWN = 20
MEASURED = ("prompt", "reasoning", "response", "total")
KINDS = {
    "empty": ("Question or response empty", "Left out: there is nothing to ask or to answer."),
    "no_reasoning": ("Reasoning empty", "Left out: they would teach the model to answer without thinking."),
    "marker": (
        "Control marker inside a part ({closing} with </think>)",
        "Left out: the model obeys a marker instead of reading it.",
    ),
    "held_out": ("Overlap a held-out question", "Left out, so that the held-out loss stays honest."),
    "duplicate": ("Same question as an earlier row", "Left out: the first of them is kept."),
    "over_length": ("Longer than {longest} tokens", "Left out: a text that is cut off would teach the model never to end."),
    "no_room": (
        "Question alone fills {longest} tokens",
        "Left out, and counted among the longer ones too: cut off, nothing of the answer would be left.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Rows with one and the same trouble: how many, the numbers (from 1) of the first ROWS_SHOWN, and what is done about them."""

    title: str
    count: int
    rows: list[int]
    done: str


@dataclass(frozen=True)
class Report:
    """What the checks found in `rows` examples.

    `findings` has an entry for every one of KINDS, also if none was found; a row may be counted under several. `kept` are the
    indices (from 0) of the rows to train on. `lengths` has, for "prompt", "reasoning", "response" and "total", one number of tokens
    for every row; all are 0 where there is no training text (question empty, or a marker in it). Total includes special tokens.
    """

    rows: int
    findings: dict[str, Finding]
    lengths: dict[str, list[int]]
    kept: list[int]

    @property
    def left_out(self) -> int:
        """How many rows are not trained on; each is counted once."""
        return self.rows - len(self.kept)

    def kept_examples(self, examples: Sequence[Example]) -> list[Example]:
        """The examples to train on. Raises DatasetError saying why, if none is left."""
        if not self.kept:
            reasons = "; ".join(f"{each.title.lower()}: {each.count}" for each in self.findings.values() if each.count)
            raise DatasetError(f"None of the {self.rows} rows is left to train on. {reasons}. Load other rows, or change the longest row.")
        return [examples[index] for index in self.kept]

    def summary(self) -> dict[str, Any]:
        """The report in brief, for JSON: counts by kind and the spread of token lengths over rows that have a training text."""
        counts = {kind: finding.count for kind, finding in self.findings.items()}
        return {"rows": self.rows, "kept": len(self.kept), "left_out": self.left_out, **counts, "tokens": self._spread()}

    def _spread(self) -> dict[str, dict[str, int]]:
        spread = {}
        for part, lengths in self.lengths.items():
            known = sorted(length for length, total in zip(lengths, self.lengths["total"], strict=True) if total)
            if known:
                last = len(known) - 1
                spread[part] = {"median": known[last // 2], "p95": known[round(last * 0.95)], "longest": known[last], "sum": sum(known)}
        return spread


def check(
    examples: Sequence[Example], lengths: Mapping[str, list[int]], eos: str, max_seq_length: int, held_out: Sequence[Example]
) -> Report:
    """Count what would harm training, and decide what is kept.

    `lengths` are those of the examples, as by `token_lengths`. `held_out` are examples that must stay unknown to the model: rows seen or
    near-seen among them are left out. A duplicate is a question equal, after normalization, to that of an earlier row that is kept.
    """
    overlap = Overlap([example.question for example in held_out]) if held_out else None
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    kept: list[int] = []
    questions: set[str] = set()
    closing = 0
    for index, example in enumerate(examples):
        troubles = list(_troubles(example, eos, overlap))
        closing += any(THINK_CLOSE in getattr(example, part) for part in PARTS)
        if lengths["total"][index] > max_seq_length:
            troubles.append("over_length")
            if lengths["total"][index] - lengths["reasoning"][index] - lengths["response"][index] >= max_seq_length:
                troubles.append("no_room")
        if not troubles and (question := normalize(example.question)) in questions:
            troubles.append("duplicate")
        if not troubles:
            questions.add(question)
            kept.append(index)
        for kind in troubles:
            found[kind].append(index + 1)
    findings = {
        kind: Finding(title.format(longest=f"{max_seq_length:,}", closing=f"{closing:,}"), len(found[kind]), found[kind][:ROWS_SHOWN], done)
        for kind, (title, done) in KINDS.items()
    }
    return Report(len(examples), findings, dict(lengths), kept)


def with_text(examples: Sequence[Example]) -> list[int]:
    """Which of them (from 0) have a training text: those with a question, and no control marker in it."""
    return [index for index, each in enumerate(examples) if each.question.strip() and not marker_in(each.question)]


def token_lengths(examples: Sequence[Example], tokenizer: "Tokenizer", eos: str, style: PromptStyle) -> dict[str, list[int]]:
    """Tokens of "prompt", "reasoning", "response", "total" for every example: what `tokens.encode_example` counts, but many at once."""
    usable = with_text(examples)
    found = placed([examples[index] for index in usable], tokenizer, eos, style)
    return by_part({index: _part_lengths(each) for index, each in zip(usable, found, strict=True)}, len(examples))


def by_part(lengths: Mapping[int, Mapping[str, int]], rows: int) -> dict[str, list[int]]:
    """Lengths of rows (from 0), each by part, as one list a part; 0 for a row that is not among them."""
    none = dict.fromkeys(MEASURED, 0)
    return {part: [lengths.get(index, none)[part] for index in range(rows)] for part in MEASURED}


def _troubles(example: Example, eos: str, overlap: Overlap | None) -> Iterator[str]:
    texts = [getattr(example, part) for part in PARTS]
    if not example.question.strip() or not example.response.strip():
        yield "empty"
    if not example.reasoning.strip():
        yield "no_reasoning"
    if any(marker_in(text) or (eos and eos in text) for text in texts):
        yield "marker"
    if overlap and example.question.strip() and overlap.grade(example.question).grade != "unseen":
        yield "held_out"


def _part_lengths(found: Placed) -> dict[str, int]:
    special = found.encoding.special_tokens_mask
    first_of_completion = _first_token_from(found.encoding, found.prompt_end)
    first_of_response = _first_token_from(found.encoding, found.response_start)
    written = len(special) - _trailing(special)
    return {
        "prompt": first_of_completion - sum(special[:first_of_completion]),
        "reasoning": first_of_response - first_of_completion,
        "response": written - first_of_response,
        "total": len(special),
    }


def _first_token_from(encoding: "Encoding", position: int) -> int:
    """The first token that starts at or after a character; one that straddles it belongs to what comes before."""
    token = encoding.char_to_token(position)
    place = None if token is None else encoding.token_to_chars(token)
    if token is not None and place is not None and place[0] == position:
        return token
    return next((index for index, (start, end) in enumerate(encoding.offsets) if start >= position and end > start), len(encoding))


def _trailing(special: list[int]) -> int:
    return next((count for count, flag in enumerate(reversed(special)) if not flag), len(special))
