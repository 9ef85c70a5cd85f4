"""Examples as tokens: which ids the model reads, and which of them it is trained to write. Torch-free, so that the page can show it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepdoctor.prompts import PromptStyle, render_completion, render_question

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from deepdoctor.dataset import Example

# texts that are encoded in one call of the tokenizer, which works on them on all cores
BATCH = 512
# the label of a token that is not trained on, as PyTorch's loss and the trainer know it
IGNORED = -100
SUPERVISION = {"whole_text": "Whole text, as in the article", "response_only": "Response only: reasoning and answer"}


@dataclass(frozen=True)
class Encoded:
    """One example as tokens. All lists have one entry a token.

    `supervised` tells whether it is trained on, `part` is "special", "prompt", "reasoning" or "response".
    """

    ids: list[int]
    supervised: list[bool]
    parts: list[str]

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens per part."""
        return {part: self.parts.count(part) for part in ("special", "prompt", "reasoning", "response")}


@dataclass(frozen=True)
class Spelled(Encoded):
    """The same to be shown: `pieces` are the characters each token covers, or the token's own name where it covers none."""

    pieces: list[str]


def encode_prompt(tokenizer: "Tokenizer", question: str, style: PromptStyle) -> list[int]:
    """Token ids of the rendered question, with the tokenizer's own beginning-of-sequence token."""
    return tokenizer.encode(render_question(question, style)).ids


@dataclass(frozen=True)
class Placed:
    """A training text as its tokenizer read it, and the characters at which its completion and its response begin."""

    text: str
    encoding: "Encoding"
    prompt_end: int
    response_start: int


def placed(examples: Sequence["Example"], tokenizer: "Tokenizer", eos: str, style: PromptStyle) -> Iterator[Placed]:
    """The training texts of Examples, read many at once on all cores, neither cut nor padded.

    Raises ConfigError if a question is empty or contains a control marker.
    """
    tokenizer = untruncated(tokenizer)
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        prompts = [render_question(example.question, style) for example in some]
        completions = [render_completion(example.reasoning, example.response, eos, style) for example in some]
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        for example, prompt, text, encoding in zip(some, prompts, texts, tokenizer.encode_batch(texts), strict=True):
            yield Placed(text, encoding, len(prompt), len(text) - len(eos) - len(example.response.strip()))


def encode_example(example: "Example", tokenizer: "Tokenizer", eos: str, style: PromptStyle, supervision: str = "whole_text") -> Spelled:
    """Tokens of the training text of an Example, with what each of them covers. Raises as `placed`."""
    (found,) = placed([example], tokenizer, eos, style)
    spans = zip(found.encoding.offsets, found.encoding.tokens, strict=True)
    return Spelled(**vars(_encoded(found, supervision)), pieces=[found.text[start:end] or token for (start, end), token in spans])


def encode_examples(
    examples: Sequence["Example"], tokenizer: "Tokenizer", eos: str, style: PromptStyle, supervision: str = "whole_text"
) -> list[Encoded]:
    """The same for many at once, without what each token covers."""
    return [_encoded(found, supervision) for found in placed(examples, tokenizer, eos, style)]


def untruncated(tokenizer: "Tokenizer") -> "Tokenizer":
    """The tokenizer, or where it cuts or pads a copy that does not: lengths must be true, and the tokenizer belongs to the caller."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _encoded(found: Placed, supervision: str) -> Encoded:
    prompt_end, response_start, whole = found.prompt_end, found.response_start, supervision == "whole_text"
    parts = [
        "special" if start == end else "prompt" if start < prompt_end else "reasoning" if start < response_start else "response"
        for start, end in found.encoding.offsets
    ]
    return Encoded(list(found.encoding.ids), [whole or part in ("reasoning", "response") for part in parts], parts)
