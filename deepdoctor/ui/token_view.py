"""One training text token by token: special characters visible, supervised and masked tokens told apart by more than colour."""

from itertools import groupby

from tokenizers import Tokenizer

from deepdoctor.tokens import Spelled
from deepdoctor.ui.components import escape, number

MOST_TOKENS = 4000
PART_NAMES = {"special": "Start of text", "prompt": "Prompt", "reasoning": "Reasoning", "response": "Response"}
REST = '<span class="dd-nl" title="the rest of a character that is divided among tokens">⋯</span>'
LEGEND = (
    '<p class="dd-legend"><span><span class="dd-tok on">solid line</span> trained on: the model learns to write this token</span> '
    '<span><span class="dd-tok off">dotted, hatched</span> masked: read, but not trained on</span> '
    '<span><span class="dd-chip">&lt;tag&gt;</span> special token</span> <span><span class="dd-nl">⏎</span> line break</span></p>'
)


def render_tokens(encoded: Spelled, tokenizer: Tokenizer) -> str:
    """The encoded example as HTML: legend, counts, then each stretch of tokens under its part's name. At most MOST_TOKENS are shown."""
    special = set(tokenizer.get_added_tokens_decoder())
    pieces = _undivided(encoded, tokenizer, special)
    shown = list(zip(encoded.ids, pieces, encoded.parts, encoded.supervised, strict=True))[:MOST_TOKENS]
    stretches = [_stretch(key, list(tokens), special) for key, tokens in groupby(shown, key=lambda token: token[2:])]
    left = len(encoded.ids) - len(shown)
    rest = f'<p class="dd-muted">{number(left)} more tokens are not shown.</p>' if left else ""
    return f'<div class="dd-tokens">{LEGEND}{_counts(encoded)}{"".join(stretches)}{rest}</div>'


def _counts(encoded: Spelled) -> str:
    trained = sum(encoded.supervised)
    total = len(encoded.ids)
    return (
        f'<p class="dd-counts"><strong>{number(total)}</strong> tokens: <strong>{number(trained)}</strong> trained on, '
        f"<strong>{number(total - trained)}</strong> masked</p>"
    )


def _stretch(key: tuple[str, bool], tokens: list[tuple[int, str, str, bool]], special: set[int]) -> str:
    part, supervised = key
    kind, words = ("on", "trained on") if supervised else ("off", "masked")
    count = f"{number(len(tokens))} {'token' if len(tokens) == 1 else 'tokens'}, {words}"
    body = "".join(_token(identity, piece, kind, identity in special) for identity, piece, *_ in tokens)
    title = f'<span class="dd-part-name">{escape(PART_NAMES.get(part, part))}</span> <span class="dd-muted">{count}</span>'
    return f'<section class="dd-part"><h3>{title}</h3><div class="dd-toks">{body}</div></section>'


def _token(identity: int, piece: str, kind: str, special: bool) -> str:
    text = _visible(piece) or REST
    chip = f'<span class="dd-chip">{text}</span>' if special else text
    return f'<span class="dd-tok {kind}" title="token {identity}">{chip}</span>'


def _visible(piece: str) -> str:
    """A token's characters as HTML; line breaks and tabs get a sign, other control characters their code."""
    shown = []
    for character in piece:
        if character == "\n":
            shown.append('<span class="dd-nl">⏎</span><br>')
        elif character == "\t":
            shown.append('<span class="dd-nl">⇥</span>\t')
        elif not character.isprintable() and character != " ":
            shown.append(f'<span class="dd-nl">U+{ord(character):04X}</span>')
        else:
            shown.append(escape(character))
    return "".join(shown)


def _undivided(encoded: Spelled, tokenizer: Tokenizer, special: set[int]) -> list[str]:
    """The pieces, with a character that byte-level tokens divide among them shown once, by the first of them."""
    pieces: list[str] = []
    missing, divided = 0, ""
    for identity, piece in zip(encoded.ids, encoded.pieces, strict=True):
        size = 0 if identity in special else len(tokenizer.id_to_token(identity) or "")
        if missing and piece[:1] == divided:
            own = size - missing
            missing = max(0, -own)
            piece = piece[1:]
            wanted = len(piece.encode("utf-8", "surrogatepass"))
            if not missing and wanted > own:
                missing, divided = wanted - own, piece[-1]
        else:
            wanted = len(piece.encode("utf-8", "surrogatepass"))
            missing = wanted - size if size and piece and wanted > size and ord(piece[-1]) > 127 else 0
            divided = piece[-1] if missing else ""
        pieces.append(piece)
    return pieces
