"""Examples as tokens: which ids the model reads, and which of them it is trained to write. Torch-free, so that the page can show it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from deepdoctor.prompts import PromptStyle, render_completion, render_question

if TYPE_CHECKING:
    from deepdoctor.dataset import Example

SUPERVISION = {"whole_text": "Whole text, as in the article", "response_only": "Response only: reasoning and answer"}


@dataclass(frozen=True)
class Encoded:
    """One example as tokens. All lists have one entry a token.

    `pieces` are the characters each token covers, `supervised` tells whether it is trained on, `part` is
    "special", "prompt", "reasoning" or "response".
    """

    ids: list[int]
    pieces: list[str]
    supervised: list[bool]
    parts: list[str]

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens per part."""
        return {part: self.parts.count(part) for part in ("special", "prompt", "reasoning", "response")}


def encode_prompt(tokenizer: Tokenizer, question: str, style: PromptStyle) -> list[int]:
    """Token ids of the rendered question, with the tokenizer's own beginning-of-sequence token."""
    return tokenizer.encode(render_question(question, style)).ids


def encode_example(example: "Example", tokenizer: Tokenizer, eos: str, style: PromptStyle, supervision: str = "whole_text") -> Encoded:
    """Tokens of the training text of an Example.

    Raises ConfigError if the question is empty or contains a control marker.
    """
    prompt = render_question(example.question, style)
    completion = render_completion(example.reasoning, example.response, eos, style)
    text = prompt + completion
    encoding = tokenizer.encode(text)
    response_start = len(text) - len(eos) - len(example.response.strip())
    parts = [_part(start, end, len(prompt), response_start) for start, end in encoding.offsets]
    supervised = [supervision == "whole_text" or (part in ("reasoning", "response")) for part in parts]
    pieces = [text[start:end] or token for (start, end), token in zip(encoding.offsets, encoding.tokens, strict=True)]
    return Encoded(list(encoding.ids), pieces, supervised, parts)


def _part(start: int, end: int, prompt_end: int, response_start: int) -> str:
    if start == end:
        return "special"
    if start < prompt_end:
        return "prompt"
    return "reasoning" if start < response_start else "response"
