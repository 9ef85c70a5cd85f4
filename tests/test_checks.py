"""What is left out of training and why, and how long the parts are in tokens."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from deepdoctor.checks import KINDS, check, token_lengths
from deepdoctor.dataset import Example
from deepdoctor.errors import DatasetError
from deepdoctor.prompts import ARTICLE, NATIVE, STYLES, render_question
from deepdoctor.tokens import encode_example

EOS = "<｜end▁of▁sentence｜>"
GOOD = Example("What is gout?", "Crystals of urate settle in a joint.", "An inflammation of joints.")
OTHER = Example(
    "Which nerve passes through the carpal tunnel beside the nine flexor tendons?",
    "It lies under the flexor retinaculum.",
    "The median nerve.",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level BPE in the manner of the R1 distills': own marks for a text's start and end, and for the thought."""
    start = "<｜begin▁of▁sentence｜>"
    tiny = Tokenizer(models.BPE())
    tiny.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tiny.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[start, EOS, "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tiny.train_from_iterator([render_question(GOOD.question), GOOD.reasoning, GOOD.response, OTHER.reasoning], trainer)
    tiny.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, tiny.token_to_id(start))])
    return tiny


def checked(examples: list[Example], tokenizer: Tokenizer, longest: int = 2048, held_out: list[Example] | None = None):
    return check(examples, token_lengths(examples, tokenizer, EOS, ARTICLE), EOS, longest, held_out or [])


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_lengths_are_those_of_the_token_view(tokenizer: Tokenizer, style) -> None:
    examples = [
        GOOD,
        OTHER,
        Example("Ŵhy 🦶🏽 é?", "漢字 🙂", "🫀🫀 ok"),
        Example("a", "", ""),
        Example("a", "  b\n", "\n c "),
        Example("x", "y", "🙂"),
    ]
    lengths = token_lengths(examples, tokenizer, EOS, style)
    for index, example in enumerate(examples):
        encoded = encode_example(example, tokenizer, EOS, style)
        assert {part: lengths[part][index] for part in ("prompt", "reasoning", "response")} == {
            part: encoded.lengths[part] for part in ("prompt", "reasoning", "response")
        }
        assert lengths["total"][index] == len(encoded.ids)


def test_lengths_of_more_rows_than_one_batch_keep_their_order(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepdoctor.tokens.BATCH", 2)
    lengths = token_lengths([GOOD, Example("", "a", "b"), OTHER, GOOD], tokenizer, EOS, NATIVE)
    assert lengths["total"][0] == lengths["total"][3] != lengths["total"][2]
    assert [part[1] for part in lengths.values()] == [0, 0, 0, 0]


def test_a_tokenizer_that_truncates_and_pads_is_not_believed_and_not_changed(tokenizer: Tokenizer) -> None:
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(8)
    cutting.enable_padding(length=4000)
    assert token_lengths([GOOD], cutting, EOS, ARTICLE) == token_lengths([GOOD], tokenizer, EOS, ARTICLE)
    assert cutting.truncation is not None
    assert cutting.padding is not None


def test_good_rows_are_kept(tokenizer: Tokenizer) -> None:
    report = checked([GOOD, OTHER], tokenizer)
    assert report.kept == [0, 1]
    assert set(report.findings) == set(KINDS)
    assert all(finding.count == 0 and finding.rows == [] for finding in report.findings.values())
    assert report.kept_examples([GOOD, OTHER]) == [GOOD, OTHER]


@pytest.mark.parametrize(
    ("example", "kind"),
    [
        (Example(" ", "c", "r"), "empty"),
        (Example("q", "c", ""), "empty"),
        (Example("q", "\n", "r"), "no_reasoning"),
        (Example("q </think>", "c", "r"), "marker"),
        (Example("q", "c </think> d", "r"), "marker"),
        (Example("q", "c", "r <｜User｜>"), "marker"),
        (Example("q", "c", f"r {EOS} s"), "marker"),
        (Example("What is GOUT ?", "another thought", "another answer"), "duplicate"),
        (Example("q", "long " * 3000, "r"), "over_length"),
        (Example(OTHER.question.lower(), "c", "r"), "held_out"),
        (Example(OTHER.question + " Please answer briefly.", "c", "r"), "held_out"),
    ],
)
def test_each_kind_of_trouble_leaves_its_row_out(tokenizer: Tokenizer, example: Example, kind: str) -> None:
    report = checked([GOOD, example], tokenizer, held_out=[OTHER, Example("Why is the sky blue?", "c", "r")])
    assert report.kept == [0]
    assert {name: finding.rows for name, finding in report.findings.items() if finding.count} == {kind: [2]}
    assert report.findings[kind].done.startswith("Left out")


def test_the_first_kept_row_of_a_question_stays(tokenizer: Tokenizer) -> None:
    unfinished = Example(GOOD.question, GOOD.reasoning, "")
    report = checked([unfinished, GOOD, GOOD, GOOD], tokenizer)
    assert report.kept == [1]
    assert report.findings["duplicate"].rows == [3, 4]
    assert report.findings["empty"].rows == [1]


def test_a_row_of_exactly_the_longest_length_is_kept(tokenizer: Tokenizer) -> None:
    total = token_lengths([GOOD], tokenizer, EOS, ARTICLE)["total"][0]
    assert checked([GOOD], tokenizer, total).kept == [0]
    assert checked([GOOD], tokenizer, total - 1).findings["over_length"].count == 1


def test_no_room_counts_rows_whose_question_fills_everything(tokenizer: Tokenizer) -> None:
    encoded = encode_example(GOOD, tokenizer, EOS, ARTICLE, "response_only")
    masked = encoded.supervised.index(True)
    assert checked([GOOD], tokenizer, masked).findings["no_room"].rows == [1]
    assert not any(encoded.supervised[:masked])
    report = checked([GOOD], tokenizer, masked + 1)
    assert (report.findings["no_room"].count, report.findings["over_length"].count) == (0, 1)
    assert f"{masked + 1} tokens" in report.findings["over_length"].title


def test_many_rows_are_counted_and_the_first_numbered(tokenizer: Tokenizer) -> None:
    finding = checked([GOOD] + [Example("", "c", "r")] * 30, tokenizer).findings["empty"]
    assert finding.count == 30
    assert finding.rows == list(range(2, 22))


def test_a_row_with_two_troubles_is_left_out_once(tokenizer: Tokenizer) -> None:
    report = checked([GOOD, Example("q", "", "</think>")], tokenizer)
    assert (report.findings["no_reasoning"].count, report.findings["marker"].count) == (1, 1)
    assert report.left_out == 1


def test_rows_that_close_the_thought_themselves_are_counted_among_the_markers(tokenizer: Tokenizer) -> None:
    report = checked([GOOD, Example("q", "c </think> d", "r"), Example("q2", "c", "r <｜User｜>")], tokenizer)
    assert report.findings["marker"].count == 2
    assert report.findings["marker"].title == "Control marker inside a part (1 with </think>)"


def test_none_left_says_why(tokenizer: Tokenizer) -> None:
    examples = [Example("", "c", "r"), Example("", "c", "r"), Example("q", "", "r")]
    with pytest.raises(DatasetError, match=r"None of the 3 rows.*question or response empty: 2; reasoning empty: 1"):
        checked(examples, tokenizer).kept_examples(examples)


def test_the_summary_is_small_and_json(tokenizer: Tokenizer) -> None:
    summary = json.loads(json.dumps(checked([GOOD, OTHER, Example("", "c", "r")], tokenizer).summary()))
    assert (summary["rows"], summary["kept"], summary["left_out"], summary["empty"]) == (3, 2, 1, 1)
    totals = token_lengths([GOOD, OTHER], tokenizer, EOS, ARTICLE)["total"]
    assert summary["tokens"]["total"] == {"median": min(totals), "p95": max(totals), "longest": max(totals), "sum": sum(totals)}
    assert checked([Example("", "c", "r")], tokenizer).summary()["tokens"] == {}
