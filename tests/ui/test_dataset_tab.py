"""The dataset tab: reading, correcting, paging, one row as the model reads it, what checks find, and what is kept of uploads."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import gradio as gr
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from deepdoctor.checks import check, token_lengths
from deepdoctor.config import DatasetConfig, FinetuneConfig
from deepdoctor.dataset import Example, keep_apart
from deepdoctor.errors import DatasetError
from deepdoctor.prompts import ARTICLE, MARKERS
from deepdoctor.tokens import encode_example
from deepdoctor.ui.dataset_events import ROWS_A_PAGE, DatasetEvents, matching
from deepdoctor.ui.loaded import Loaded, Recent, keep_upload
from deepdoctor.ui.rows_view import lengths_picture, rows_table
from deepdoctor.ui.token_view import MOST_TOKENS, render_tokens
from tests.ui.fakes import READY, fake_context

EOS, BOS = MARKERS[-1], MARKERS[-2]
SKIP = gr.skip()
ROWS = [
    {"Question": f"Question {n} about the {'heart' if n % 2 else 'lung'}?", "Complex_CoT": f"Think {n}.", "Response": f"Answer {n}."}
    for n in range(30)
]
# of the rows that training does not keep apart, some lack their reasoning
_TRAINING, _ = keep_apart([Example(str(n), "", "") for n in range(36)], "file", FinetuneConfig().held_out_rows, FinetuneConfig().seed)
LEFT_OUT = [int(each.question) for each in _TRAINING[:3]]
MIXED = [
    {"Question": f"Why {n * 7919}?", "Complex_CoT": "" if n in LEFT_OUT else f"Think {n}.", "Response": f"Answer {n}."} for n in range(36)
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level tokenizer with hardly any merges, so that characters beyond ASCII are divided among tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["the lung and the heart"], trainer)
    made.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return str(path)


@pytest.fixture
def events(tmp_path: Path) -> DatasetEvents:
    return DatasetEvents(fake_context(tmp_path / "data"), Loaded())


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def given(source: str = "bundled", **values: Any) -> list[Any]:
    usual = {"source": source, "upload": None, "path": "", "name": "", "config": "", "split": "", "revision": "", "first_rows": 500}
    return list({**usual, **values}.values())


def file_config(path: Path) -> dict[str, Any]:
    return DatasetConfig(source="file", path=str(path)).model_dump()


def test_a_file_is_read_and_becomes_the_dataset(events: DatasetEvents, tmp_path: Path) -> None:
    *_, last = events.load(None, *given("file", path=str(write(tmp_path / "rows.json", ROWS))))
    dataset, draft, message, *columns = last
    assert DatasetConfig.of(dataset).source == "file"
    assert draft == dataset
    assert "30 rows loaded" in message
    assert [each.value for each in columns] == ["Question", "Complex_CoT", "Response"]


def test_an_upload_is_kept_under_its_contents_and_named_as_the_user_named_it(events: DatasetEvents, tmp_path: Path) -> None:
    *_, last = events.load(None, *given("file", upload=str(write(tmp_path / "my rows (1).json", ROWS))))
    kept = Path(last[0]["path"])
    assert kept.parent == (tmp_path / "data" / "uploads").resolve()
    assert re.fullmatch(r"[0-9a-f]{12}-my-rows-1\.json", kept.name)
    described, *_ = events.show_source(last[0])
    assert "<strong>my rows (1).json</strong>" in unescape(described)


def test_the_bundled_cases_begin_a_sentence_and_all_of_them_are_not_called_the_first(events: DatasetEvents) -> None:
    assert "<strong>The bundled teaching cases</strong>" in events.show_source(DatasetConfig().model_dump())[0]


@pytest.mark.parametrize("number", [0, -5, 10.5])
def test_a_number_of_rows_that_cannot_be_names_its_field(events: DatasetEvents, number: float) -> None:
    assert "First rows: " in _states_of(events, given(first_rows=number))[-1][2]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "empty"), ('[{"Question": "x", "Comp', "row 1"), ('[{"Question": 1, "Complex_CoT": "b", "Response": "c"}]', "column")],
)
def test_a_bad_upload_is_explained_and_nothing_of_it_stays(events: DatasetEvents, tmp_path: Path, text: str, said: str) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text, encoding="utf-8")
    states = _states_of(events, given("file", upload=str(bad)))
    assert all(dataset == SKIP for dataset, *_ in states)
    assert said in states[-1][2]


def _states_of(events: DatasetEvents, values: list[Any]) -> list[tuple[Any, ...]]:
    """What loading yields before it ends with an error."""
    states: list[tuple[Any, ...]] = []

    def collect() -> None:
        for state in events.load(None, *values):
            states.append(state)

    with pytest.raises(gr.Error):
        collect()
    return states


def test_columns_that_cannot_be_guessed_can_be_chosen(events: DatasetEvents, tmp_path: Path) -> None:
    odd = write(tmp_path / "odd.json", [{"a": "Why?", "b": "Because.", "c": "So."}])
    states = _states_of(events, given("file", path=str(odd)))
    draft, choices = states[-2][1], states[-2][3:]
    assert states[-1][0] == SKIP
    assert [each.choices for each in choices] == [[("a", "a"), ("b", "b"), ("c", "c")]] * 3
    [(dataset, message)] = events.use_columns(draft, "a", "b", "c")
    assert "1 row loaded" in message
    assert events.loaded.table(DatasetConfig.of(dataset)).examples == [Example("Why?", "Because.", "So.")]
    chosen = events.use_columns(draft, "a", "a", "c")
    dataset, message = next(chosen)
    assert dataset == SKIP
    assert "more than one part" in message
    with pytest.raises(gr.Error, match="more than one part"):
        next(chosen)


def test_server_files_can_be_named_only_from_the_same_machine(tmp_path: Path) -> None:
    context = fake_context(tmp_path)
    outside = replace(context, settings=context.settings.changed(host="0.0.0.0"))
    path = str(write(tmp_path / "rows.json", ROWS))
    assert "cannot be named" in _states_of(DatasetEvents(outside, Loaded()), given("file", path=path))[-1][2]
    assert DatasetEvents(context, Loaded()).local


def test_a_hub_dataset_needs_a_name(events: DatasetEvents) -> None:
    assert "owner/name" in _states_of(events, given("hub"))[-1][2]


def test_pages_turn_and_stop_at_both_ends(events: DatasetEvents, tmp_path: Path) -> None:
    dataset = file_config(write(tmp_path / "rows.json", ROWS))
    page, html, where, earlier, later = events.first_page(dataset, "")
    assert (page, earlier.interactive, later.interactive) == (0, False, True)
    assert html.count("data-row") == ROWS_A_PAGE
    assert f"1 to {ROWS_A_PAGE} of 30 rows" in where
    page, html, where, earlier, later = events.later(dataset, "", 1)
    assert (page, earlier.interactive, later.interactive) == (2, True, False)
    assert html.count("data-row") == 30 - 2 * ROWS_A_PAGE
    assert events.later(dataset, "", 2)[0] == 2
    assert events.earlier(dataset, "", 0)[0] == 0


def test_search_looks_into_every_part_whatever_the_case(events: DatasetEvents, tmp_path: Path) -> None:
    dataset = file_config(write(tmp_path / "rows.json", ROWS))
    assert "of 15 rows" in events.first_page(dataset, "HEART")[2]
    assert "1 to 1 of 1 row<" in events.first_page(dataset, "answer 29")[2]
    assert "No row contains" in events.first_page(dataset, "kidney")[1]
    assert matching([Example("a", "bé", "c")], "BÉ") == [0]


def test_a_pressed_button_opens_its_row_and_nonsense_opens_none(events: DatasetEvents) -> None:
    assert events.open_row(SimpleNamespace(row=4)) == 4  # type: ignore[arg-type]
    for row in (-1, "4", None, {}):
        assert events.open_row(SimpleNamespace(row=row)) == SKIP  # type: ignore[arg-type]


def test_a_row_shows_its_texts_and_its_exact_training_text(events: DatasetEvents, tmp_path: Path, tokenizer_file: str) -> None:
    dataset = file_config(write(tmp_path / "rows.json", ROWS))
    title, texts, tokens = events.show_row(dataset, 3, (tokenizer_file, EOS), "article", "response_only")
    assert "Row 4" in title
    assert "Think 3." in texts
    assert "masked" in tokens
    assert 'class="dd-chip">&lt;think&gt;' in tokens
    assert "still loading" in events.show_row(dataset, 3, ("", ""), "article", "whole_text")[2]
    assert "Row 30" in events.show_row(dataset, 99, ("", ""), "article", "whole_text")[0]


@pytest.mark.parametrize(("question", "said"), [("", "empty"), ("Why </think>?", "</think>")])
def test_a_row_without_a_training_text_says_why(
    events: DatasetEvents, tmp_path: Path, tokenizer_file: str, question: str, said: str
) -> None:
    dataset = file_config(write(tmp_path / "rows.json", [{"Question": question, "Complex_CoT": "b", "Response": "c"}]))
    tokens = events.show_row(dataset, 0, (tokenizer_file, EOS), "article", "whole_text")[2]
    assert said in unescape(tokens)
    assert "left out" in tokens


def shown_text(html: str) -> str:
    """The characters of the tokens alone, without the signs that were added."""
    body = "".join(re.findall(r'<div class="dd-toks">(.*?)</div>', html, flags=re.S))
    return unescape(re.sub(r"<[^>]+>", "", re.sub(r'<span class="dd-nl"[^>]*>[^<]*</span>', "", body.replace("<br>", "\n"))))


def test_tokens_show_every_character_once_and_mark_what_is_trained_on(tokenizer_file: str) -> None:
    made = Tokenizer.from_file(tokenizer_file)
    example = Example("Is 37 °C a fever? ${x} <b>", "Non, c'est normal: é😀 °°\tok", "Normal – 正常.")
    encoded = encode_example(example, made, EOS, ARTICLE, "response_only")
    html = render_tokens(encoded, made)
    text = shown_text(html)
    assert text.startswith(BOS + "Below is an instruction")
    assert text.endswith("\nNormal – 正常." + EOS)
    assert "é😀 °°\tok\n</think>\n" in text
    assert "Is 37 °C a fever? ${x} <b>" in text
    assert html.count('class="dd-tok on"') == sum(encoded.supervised) + 1
    assert html.count('class="dd-tok off"') == len(encoded.ids) - sum(encoded.supervised) + 1
    assert "$" not in html


def test_a_very_long_row_is_cut_with_a_word_about_it(tokenizer_file: str) -> None:
    made = Tokenizer.from_file(tokenizer_file)
    encoded = encode_example(Example("Why?", "x y " * MOST_TOKENS, "z"), made, EOS, ARTICLE)
    html = render_tokens(encoded, made)
    assert "more tokens are not shown" in html
    assert html.count('title="token ') == MOST_TOKENS


def test_checks_wait_for_the_tokenizer_then_count(events: DatasetEvents, tmp_path: Path, tokenizer_file: str) -> None:
    dataset = file_config(write(tmp_path / "rows.json", MIXED))
    [(waiting, _)] = events.show_checks(dataset, ("", ""), "article", 2048)
    assert "still loading" in waiting
    *_, (counts, picture) = events.show_checks(dataset, (tokenizer_file, EOS), "article", 2048)
    for label, count in (("rows", 36), ("to train on", 9), ("left out", 3), ("kept apart", 24)):
        assert f"<dt>{label}</dt><dd>{count}</dd>" in counts
    assert f"Rows {', '.join(str(row + 1) for row in LEFT_OUT)}." in counts
    assert picture.count("<svg") == 4
    [(said, _)] = events.show_checks(dataset, (tokenizer_file, EOS), "article", None)
    assert "number of tokens" in said


def test_what_becomes_of_the_opened_row_is_said_once_it_is_known(events: DatasetEvents, tmp_path: Path, tokenizer_file: str) -> None:
    dataset, counted = file_config(write(tmp_path / "rows.json", MIXED)), ((tokenizer_file, EOS), "article", 2048)
    assert events.show_fate(dataset, 0, *counted) == ""
    list(events.show_checks(dataset, *counted))
    fates = [events.show_fate(dataset, index, *counted) for index in range(len(MIXED))]
    assert [index for index, fate in enumerate(fates) if "leaves this row out: reasoning empty" in fate] == LEFT_OUT
    assert sum("keeps this row apart" in fate for fate in fates) == 24
    assert fates.count("") == 9


def test_too_few_rows_to_keep_any_apart_is_said_in_place(events: DatasetEvents, tmp_path: Path, tokenizer_file: str) -> None:
    dataset = file_config(write(tmp_path / "rows.json", ROWS[:7]))
    *_, (counts, _) = events.show_checks(dataset, (tokenizer_file, EOS), "article", 2048)
    assert "leave none to train on" in counts


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_the_picture_of_lengths_is_whole_named_and_adds_up(tokenizer_file: str, rows: int) -> None:
    examples = [Example(f"Question {n}?", "Think. " * n, "Answer.") for n in range(1, rows + 1)]
    report = check(examples, token_lengths(examples, Tokenizer.from_file(tokenizer_file), EOS, ARTICLE), EOS, 700, [])
    root = ElementTree.fromstring(lengths_picture(report, 700))
    drawings = root.findall(".//svg")
    assert len(drawings) == 4
    for drawing in drawings:
        named = (drawing.get("aria-labelledby") or "").split()
        assert [drawing.find(tag).get("id") for tag in ("title", "desc")] == named  # type: ignore[union-attr]
        bars = [each.text or "" for each in drawing.findall("rect/title")]
        assert sum(int(re.search(r"(\d+) rows?$", bar).group(1)) for bar in bars) == rows  # type: ignore[union-attr]


def test_questions_in_the_table_stay_text() -> None:
    html = rows_table([(0, Example("<script>alert(1)</script> ${1} {{x}}", "", ""))])
    assert "<script" not in html
    assert not set("${}") & set(html)
    assert html.count("<button") == 1


def test_the_tokenizer_is_the_loaded_model_s_and_is_passed_on_once(tmp_path: Path, tokenizer_file: str) -> None:
    assert READY.model is not None
    context = fake_context(tmp_path, replace(READY, model=replace(READY.model, tokenizer_file=tokenizer_file, eos="<end>")))
    events = DatasetEvents(context, Loaded())
    assert events.new_tokenizer(("", "")) == (tokenizer_file, "<end>")
    assert events.new_tokenizer((tokenizer_file, "<end>")) == SKIP


def test_recent_forgets_the_least_recently_used_and_keeps_no_failure() -> None:
    recent, made = Recent(2), []

    def make(value: int) -> Any:
        return lambda: made.append(value) or value

    for value in (1, 2, 1, 3, 1, 2):
        assert recent.get(value, make(value)) == value
    assert made == [1, 2, 3, 2]
    with pytest.raises(DatasetError):
        recent.get(9, _fail)
    assert recent.get(9, make(9)) == 9


def _fail() -> None:
    raise DatasetError("No.")


def test_a_file_that_changed_is_read_again(events: DatasetEvents, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", ROWS)
    config = DatasetConfig.of(file_config(path))
    assert len(events.loaded.table(config).examples) == 30
    write(path, ROWS[:3])
    assert len(events.loaded.table(config).examples) == 3


def test_names_of_uploads_cannot_leave_the_folder(tmp_path: Path) -> None:
    for name in ("..json", "-rf.csv", "a b<c>.jsonl", "ü.parquet"):
        kept = keep_upload(write(tmp_path / name, ROWS), tmp_path)
        assert kept.parent == (tmp_path / "uploads").resolve()
        assert re.fullmatch(r"[0-9a-f]{12}-[A-Za-z0-9._-]+", kept.name)
        assert json.loads(kept.read_text(encoding="utf-8")) == ROWS
    with pytest.raises(DatasetError, match="could not be kept"):
        keep_upload(tmp_path / "missing.json", tmp_path)
