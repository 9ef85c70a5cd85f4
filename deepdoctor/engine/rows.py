"""A run's rows as token ids and labels: read, checked, split, encoded once, and written down in the run."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepdoctor.checks import by_part, check, with_text
from deepdoctor.dataset import Example, keep_apart, load_rows, map_columns, to_examples
from deepdoctor.engine.model import LoadedModel
from deepdoctor.errors import DatasetError
from deepdoctor.prompts import marker_in, style_named
from deepdoctor.runs import Run
from deepdoctor.tokens import IGNORED, Encoded, encode_examples


@dataclass(frozen=True)
class TrainingRows:
    """The rows of one run: encoded training rows in order, encoded held-out rows, and the held-out questions for probes."""

    train: list[Encoded]
    held_out: list[Encoded]
    held_out_questions: list[str]

    def columns(self, blank: Sequence[int] = ()) -> dict[str, list[list[int]]]:
        """Training rows as the trainer takes them: {"input_ids", "labels"}, where masked labels are -100. `blank`: ids of one more row,
        masked whole."""
        more = [list(blank)] if blank else []
        labels = [labels_of(row) for row in self.train] + [[IGNORED] * len(row) for row in more]
        return {"input_ids": [row.ids for row in self.train] + more, "labels": labels}


def labels_of(row: Encoded) -> list[int]:
    """Labels of one row: its ids where it is trained on, else -100."""
    return [token if trained else IGNORED for token, trained in zip(row.ids, row.supervised, strict=True)]


def prepare_rows(loaded: LoadedModel, run: Run) -> TrainingRows:
    """Read, check and encode a run's rows, and write report and questions into the run's folder.

    The bundled cases are held against their own held-out cases, other rows against rows split off before training.
    Raises DatasetError if nothing is left to train on, or if the run has trained on other rows so far.
    """
    config, style = run.finetune, style_named(run.finetune.prompt_style)
    rows = load_rows(run.dataset)
    if run.checkpoints() and run.rows_fingerprint() not in (None, rows.fingerprint):
        raise DatasetError(
            f"The rows of {rows.source} are no longer those that run {run.name} has trained on so far, and it would go on with a mixture. "
            "Put them back as they were, or start a new run."
        )
    examples = to_examples(rows.rows, map_columns(rows.columns, run.dataset))
    examples, kept_apart = keep_apart(examples, run.dataset.source, config.held_out_rows, config.seed)
    held_out = kept_apart[: config.held_out_rows]
    longest = loaded.info.longest_row(config.max_seq_length)

    def encoded(chosen: list[Example], supervision: str) -> list[Encoded]:
        return encode_examples(chosen, loaded.tokenizer.backend_tokenizer, loaded.info.eos, style, supervision)

    texts = with_text(examples)
    train = dict(zip(texts, encoded([examples[index] for index in texts], config.supervision), strict=True))
    lengths = by_part({index: {**row.lengths, "total": len(row.ids)} for index, row in train.items()}, len(examples))
    report = check(examples, lengths, loaded.info.eos, longest, kept_apart)
    kept = report.kept_examples(examples)
    run.keep("questions.json", [example.question for example in kept])
    run.keep("rows.json", {"source": rows.source, "fingerprint": rows.fingerprint, **report.summary()})
    return TrainingRows(
        train=[train[index] for index in report.kept],
        held_out=_fitting(encoded([example for example in held_out if _is_whole(example)], "response_only"), longest),
        held_out_questions=[example.question for example in held_out],
    )


def _is_whole(example: Example) -> bool:
    return bool(example.question and example.response) and not marker_in(example.question)


def _fitting(rows: list[Encoded], longest: int) -> list[Encoded]:
    return [row for row in rows if len(row.ids) <= longest]
