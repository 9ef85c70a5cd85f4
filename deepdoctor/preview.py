"""A dataset seen from the command line: what its rows are, what training would do with them, and one row token by token. Torch-free."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from deepdoctor.checks import Report, check, token_lengths
from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig, FinetuneConfig, ModelConfig
from deepdoctor.dataset import Example, keep_apart, load_rows, map_columns, to_examples
from deepdoctor.errors import ConfigError, DatasetError, ModelError
from deepdoctor.prompts import style_named
from deepdoctor.tokens import encode_example

READING = ("prompt_style", "supervision", "max_seq_length")
MASKED = ("⟦", "⟧")


def preview(
    config: DatasetConfig,
    model: ModelConfig,
    recipe: FinetuneConfig,
    row: int | None,
    listed: int | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[str]]:
    """(JSON-ready value, lines for people) about the rows of `config`, read with the tokenizer of `model`.

    With `row` (from 1) about that row alone. Raises DatasetError for rows that cannot be read, ModelError without a tokenizer.
    """
    rows = load_rows(config, say)
    columns = map_columns(rows.columns, config)
    examples = to_examples(rows.rows, columns)
    tokenizer, eos = tokenizer_of(model)
    if row is not None:
        if not 1 <= row <= len(examples):
            raise ConfigError(f"There are {len(examples):,} rows; {row} is not one of them.", field="row")
        return one_row(examples[row - 1], row, tokenizer, eos, recipe)
    training, apart, too_few = _kept_apart(examples, config, recipe)
    lengths = token_lengths(training, tokenizer, eos, style_named(recipe.prompt_style))
    report = check(training, lengths, eos, recipe.max_seq_length, apart)
    drawn = set(map(id, apart))
    numbers = [number for number, example in enumerate(examples, start=1) if id(example) not in drawn]
    value = {
        "source": rows.source,
        "fingerprint": rows.fingerprint,
        "columns": rows.columns,
        "mapped": asdict(columns),
        **report.summary(),
        "rows": len(examples),
        "held_out_rows": len(examples) - len(training),
        "too_few": too_few,
        "findings": {
            kind: {**asdict(finding), "rows": [numbers[row - 1] for row in finding.rows]} for kind, finding in report.findings.items()
        },
        "questions": [example.question for example in examples[: listed or 0]],
    }
    kept = f"{len(report.kept):,} to train on" + (f", {value['held_out_rows']:,} kept apart" if value["held_out_rows"] else "")
    lines = [f"{rows.source}: {len(examples):,} rows, {kept}", *filter(None, [too_few]), "columns: " + _mapped(asdict(columns))]
    lines += [*_findings(report), *_lengths(report)]
    return value, [*lines, *(f"{number}. {question}" for number, question in enumerate(value["questions"], start=1))]


def _kept_apart(examples: list[Example], config: DatasetConfig, recipe: FinetuneConfig) -> tuple[list[Example], list[Example], str]:
    """(training, kept apart, why training would refuse them): rows too few to keep any apart are looked at all the same."""
    try:
        return *keep_apart(examples, config.source, recipe.held_out_rows, recipe.seed), ""
    except DatasetError as error:
        return examples, [], str(error)


def one_row(example: Example, number: int, tokenizer: Tokenizer, eos: str, recipe: FinetuneConfig) -> tuple[dict[str, Any], list[str]]:
    """One row: its parts, the exact training text and every token. For people, what is not trained on stands in ⟦ ⟧."""
    encoded = encode_example(example, tokenizer, eos, style_named(recipe.prompt_style), recipe.supervision)
    fields = zip(encoded.ids, encoded.pieces, encoded.supervised, encoded.parts, strict=True)
    tokens: list[dict[str, Any]] = [
        {"id": token, "text": piece, "supervised": trained, "part": part} for token, piece, trained, part in fields
    ]
    # added tokens, such as the beginning of the sequence, are no part of the text
    text = "".join(token["text"] for token in tokens if token["part"] != "special")
    value = {"row": number, **asdict(example), "text": text, "lengths": encoded.lengths, "tokens": tokens}
    shown, open_ = "", False
    for token in tokens:
        if token["supervised"] == open_:
            shown, open_ = shown + MASKED[open_], not open_
        shown += token["text"]
    lengths = ", ".join(f"{part} {length}" for part, length in encoded.lengths.items())
    trained = sum(encoded.supervised)
    head = f"row {number}: {len(tokens)} tokens ({lengths}), {trained} trained on"
    return value, [f"{head}; the others stand in {' '.join(MASKED)}" if trained < len(tokens) else head, "", shown + MASKED[1] * open_]


def tokenizer_of(model: ModelConfig) -> tuple[Tokenizer, str]:
    """The model's tokenizer and its end-of-sequence token, without loading the model. Raises ModelError if they are not there."""
    try:
        tokenizer = Tokenizer.from_file(str(_file(model, "tokenizer.json")))
        settings = json.loads(_file(model, "tokenizer_config.json").read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare exceptions, the Hub client its own
        raise ModelError(f"The tokenizer of {model.name} could not be read: {str(error).strip().splitlines()[0]}") from error
    eos = settings.get("eos_token") or ""
    return tokenizer, eos["content"] if isinstance(eos, dict) else eos


def _file(model: ModelConfig, name: str) -> Path:
    folder = Path(__file__).parent / "nano" / "model" if model.name == EMBEDDED_MODEL else Path(model.name)
    if folder.is_dir():
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model.name, name, revision=model.revision))


def _mapped(columns: dict[str, str]) -> str:
    return ", ".join(f"{part} from {column}" for part, column in columns.items())


def _findings(report: Report) -> list[str]:
    return [f"  {finding.count:>6,}  {finding.title.lower()}. {finding.done}" for finding in report.findings.values() if finding.count]


def _lengths(report: Report) -> list[str]:
    spread = report.summary()["tokens"]
    table = [f"  {part:<10}{each['median']:>8,}{each['p95']:>8,}{each['longest']:>9,}" for part, each in spread.items()]
    return [f"  {'tokens':<10}{'median':>8}{'95 %':>8}{'longest':>9}", *table]
