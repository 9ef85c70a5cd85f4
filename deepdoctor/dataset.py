"""Rows become examples: read from the bundle, a file or the Hub; columns mapped; checked, counted and split."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One teaching case: a question, the reasoning it deserves, and the response."""

    question: str
    reasoning: str
    response: str
