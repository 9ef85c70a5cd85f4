"""What happens on the dataset tab: reading a source, correcting its columns, paging, opening a row, counting. No layout here."""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr

from deepdoctor import nano
from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig
from deepdoctor.dataset import PARTS, Example, guess_columns
from deepdoctor.errors import ConfigError, DatasetError, DeepDoctorError
from deepdoctor.prompts import MARKERS, marker_in, style_named
from deepdoctor.tokens import encode_example
from deepdoctor.ui.components import badge, empty_state, escape, note, number, user_errors
from deepdoctor.ui.context import Context, name_of
from deepdoctor.ui.loaded import Loaded
from deepdoctor.ui.rows_view import checks_table, count_rows, example_texts, lengths_picture, rows_table
from deepdoctor.ui.token_view import render_tokens

SOURCE_FIELDS = ("source", "upload", "path", "name", "config", "split", "revision", "first_rows")
ROWS_A_PAGE = 12
NANO_TOKENIZER = Path(nano.__file__).parent / "model" / "tokenizer.json"
# what ends a text for the R1 distills and nano alike; used only until the engine has told the model's own
USUAL_EOS = MARKERS[-1]
NO_TOKENIZER = ("", "")
LOADING = empty_state("The model is still loading", "Tokens are counted and shown here as soon as its tokenizer is there.")


class DatasetEvents:
    """The tab's handlers over the page's long-lived objects. Datasets come and go as dicts, as `DatasetConfig.model_dump` makes them."""

    def __init__(self, context: Context, loaded: Loaded) -> None:
        self.context = context
        self.loaded = loaded

    @property
    def local(self) -> bool:
        """Whether only this machine can open the page, so that its visitor may name files on it."""
        return self.context.access.place == "local"

    @user_errors
    def load(self, profile: gr.OAuthProfile | None, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Read the source described by SOURCE_FIELDS; yields (dataset, draft, message, question, reasoning, response column)."""
        access, visitor = self.context.access, name_of(profile)
        unchanged = (gr.skip(), gr.skip(), gr.skip())
        try:
            config = self._config(dict(zip(SOURCE_FIELDS, given, strict=True)))
            if config.source == "hub" and config.name != DatasetConfig().name:
                # the app reads with its own token: private rows would be shown to whoever knows their name
                access.require(visitor, "load another Hub dataset")
            for line in (telling := _Telling(lambda tell: self.loaded.rows(config, tell))):
                yield gr.skip(), gr.skip(), _status(note(line)), *unchanged
            # only who may train needs a file that stays; what others upload to look at is removed within two days
            if config.path and config.path == given[SOURCE_FIELDS.index("upload")] and access.allows(visitor):
                config = self.loaded.keep_upload(config, telling.result, self.context.settings.data_dir)
            columns = telling.result.columns
            draft, choices = config.model_dump(), column_choices(columns, config)
            yield gr.skip(), draft, _status(note("Reading the columns …")), *choices
            table = self.loaded.table(config)
            yield draft, draft, _status(note(f"{count_rows(len(table.examples))} loaded.", "ok")), *choices
        except DeepDoctorError as error:
            yield gr.skip(), gr.skip(), _refused(error), *unchanged
            raise

    @user_errors
    def use_columns(self, draft: dict[str, Any], question: str, reasoning: str, response: str) -> Iterator[tuple[Any, str]]:
        """Map the columns as chosen; yields (dataset, message)."""
        try:
            config = DatasetConfig.of({**draft, "question_column": question, "reasoning_column": reasoning, "response_column": response})
            table = self.loaded.table(config)
            yield config.model_dump(), _status(note(f"{count_rows(len(table.examples))} loaded with the chosen columns.", "ok"))
        except DeepDoctorError as error:
            yield gr.skip(), _refused(error)
            raise

    def show_source(self, dataset: dict[str, Any]) -> tuple[Any, ...]:
        """Describe the dataset in use: (description, question, reasoning, response column)."""
        config = DatasetConfig.of(dataset)
        try:
            table = self.loaded.table(config)
        except DatasetError as error:
            return note(str(error), "bad"), gr.skip(), gr.skip(), gr.skip()
        used = ", ".join(f"{part.name} from {getattr(table.columns, part.name)}" for part in fields(table.columns))
        source = table.rows.source
        if config.source == "bundled":  # words and no file's name
            source = source[:1].upper() + source[1:]
        described = (
            f'<p class="dd-source"><strong>{escape(source)}</strong> {badge(count_rows(len(table.examples)))}<br>'
            f'<span class="dd-muted">{escape(used)}. Fingerprint {escape(table.rows.fingerprint[:12])}.</span></p>'
        )
        return described, *column_choices(table.rows.columns, config)

    @user_errors
    def first_page(self, dataset: dict[str, Any], query: str) -> tuple[Any, ...]:
        """The first page of rows that contain the query: (page, table, where we are, earlier, later)."""
        return self._page(dataset, query, 0)

    @user_errors
    def earlier(self, dataset: dict[str, Any], query: str, page: int) -> tuple[Any, ...]:
        """The page before."""
        return self._page(dataset, query, page - 1)

    @user_errors
    def later(self, dataset: dict[str, Any], query: str, page: int) -> tuple[Any, ...]:
        """The page after."""
        return self._page(dataset, query, page + 1)

    @staticmethod
    def open_row(event: gr.EventData) -> Any:
        """The index of the row whose button was pressed."""
        index = getattr(event, "row", None)
        return index if isinstance(index, int) and index >= 0 else gr.skip()

    @user_errors
    def show_row(self, dataset: dict[str, Any], opened: int, tokenizer: tuple[str, str], style: str, supervision: str) -> tuple[str, ...]:
        """One row: (title, its texts, its training text token by token)."""
        examples = self.loaded.table(DatasetConfig.of(dataset)).examples
        index = min(opened, len(examples) - 1)
        title = f'<h2 class="dd-title">Row {number(index + 1)} <span class="dd-muted">of {number(len(examples))}</span></h2>'
        return title, example_texts(index, examples[index]), self._tokens(examples[index], tokenizer, style, supervision)

    @user_errors
    def show_checks(
        self, dataset: dict[str, Any], tokenizer: tuple[str, str], style: str, longest: int | None
    ) -> Iterator[tuple[str, str]]:
        """What would be trained on: (counts, picture of lengths)."""
        file, eos = tokenizer
        if not file:
            yield LOADING, LOADING
            return
        if not longest or longest < 1:
            yield note("Give the longest row as a number of tokens.", "bad"), ""
            return
        config = DatasetConfig.of(dataset)
        waiting = _status(note(f"Counting the tokens of {count_rows(len(self.loaded.table(config).examples))} …"))
        yield waiting, waiting
        try:
            checked = self.loaded.checked(config, file, eos, style, int(longest))
        except DatasetError as error:
            yield note(str(error), "warn"), ""
            return
        apart = len(self.loaded.table(config).examples) - len(checked.places)
        yield checks_table(checked.report, apart), lengths_picture(checked.report, int(longest))

    def show_fate(self, dataset: dict[str, Any], opened: int, tokenizer: tuple[str, str], style: str, longest: int | None) -> str:
        """Why the opened row is not trained on; "" if it is, or as long as that is not known."""
        config = DatasetConfig.of(dataset)
        checked = self.loaded.known_checked(config, *tokenizer, style, int(longest or 0))
        if checked is None:
            return ""
        fate = checked.fate(min(opened, len(self.loaded.table(config).examples) - 1))
        return note(f"{fate} What would be trained on otherwise:", "warn") if fate else ""

    def current_tokenizer(self) -> tuple[str, str]:
        """(tokenizer.json, end-of-sequence token) of the loaded model; of nano already while it loads; NO_TOKENIZER while unknown."""
        model = self.context.engine.state.model
        if model and Path(model.tokenizer_file).is_file():
            return model.tokenizer_file, model.eos
        if self.context.engine.model.name == EMBEDDED_MODEL and NANO_TOKENIZER.is_file():
            return str(NANO_TOKENIZER), USUAL_EOS
        return NO_TOKENIZER

    def new_tokenizer(self, known: tuple[str, str]) -> Any:
        """The current tokenizer, or nothing if the page has it already."""
        current = self.current_tokenizer()
        return gr.skip() if tuple(known) == current else current

    def _config(self, given: dict[str, Any]) -> DatasetConfig:
        values: dict[str, Any] = {"source": given["source"], "first_rows": given["first_rows"]}
        if given["source"] == "hub":
            if not (given["name"] or "").strip():
                raise ConfigError("Give the Hub dataset's name, such as owner/name.", field="name")
            values |= {name: (given[name] or "").strip() for name in ("name", "config", "split")}
            values["revision"] = (given["revision"] or "").strip() or None
        elif given["source"] == "file":
            values["path"] = self._path(given["upload"], (given["path"] or "").strip())
        return DatasetConfig.of(values)

    def _path(self, upload: str | None, path: str) -> str | None:
        if upload:
            return upload
        if path and not self.local:
            raise DatasetError("Files of the server cannot be named from elsewhere. Upload the file instead.")
        return str(Path(path).expanduser().resolve()) if path else None

    def _page(self, dataset: dict[str, Any], query: str, page: int) -> tuple[Any, ...]:
        examples = self.loaded.table(DatasetConfig.of(dataset)).examples
        found = matching(examples, query)
        last = max(0, (len(found) - 1) // ROWS_A_PAGE)
        page = min(max(page, 0), last)
        shown = [(index, examples[index]) for index in found[page * ROWS_A_PAGE : (page + 1) * ROWS_A_PAGE]]
        if shown:
            html = rows_table(shown)
            where = f"{number(page * ROWS_A_PAGE + 1)} to {number(page * ROWS_A_PAGE + len(shown))} of {count_rows(len(found))}"
        else:
            html = empty_state("No row contains these words", "Search looks for the words exactly as written, in all three parts.")
            where = "0 rows"
        moves = gr.Button(interactive=page > 0), gr.Button(interactive=page < last)
        return page, html, f'<p class="dd-where" role="status">{where}</p>', *moves

    def _tokens(self, example: Example, tokenizer: tuple[str, str], style: str, supervision: str) -> str:
        file, eos = tokenizer
        if not file:
            return LOADING
        if not example.question:
            return note("This row has no training text, because its question is empty. It is left out.", "warn")
        if marker := marker_in(example.question):
            return note(f"This row has no training text: its question contains {marker}, which the model obeys. It is left out.", "warn")
        made = self.loaded.tokenizer(file)
        return render_tokens(encode_example(example, made, eos, style_named(style), supervision), made)


def matching(examples: list[Example], query: str) -> list[int]:
    """Indices of the examples that contain the query in any part, whatever the case; all of them for an empty query."""
    wanted = query.strip().casefold()
    if not wanted:
        return list(range(len(examples)))
    return [index for index, each in enumerate(examples) if any(wanted in getattr(each, part).casefold() for part in PARTS)]


def column_choices(columns: list[str], config: DatasetConfig) -> tuple[Any, ...]:
    """A dropdown update for each part: the columns there are, the chosen or guessed one selected."""
    guessed = guess_columns(columns)
    chosen = {part: getattr(config, f"{part}_column") or guessed.get(part) for part in PARTS}
    return tuple(gr.Dropdown(choices=columns, value=chosen[part]) for part in PARTS)


class _Telling:
    """Iterate over what `work` says while it works in a thread; afterwards `result` is what it returned. Raises what it raises."""

    def __init__(self, work: Callable[[Callable[[str], None]], Any]) -> None:
        self._work = work
        self.result: Any = None

    def __iter__(self) -> Iterator[str]:
        lines: queue.Queue[str] = queue.Queue()
        with ThreadPoolExecutor(max_workers=1) as pool:
            future = pool.submit(self._work, lines.put)
            while not future.done() or not lines.empty():
                with suppress(queue.Empty):
                    yield lines.get(timeout=0.05)
        self.result = future.result()


def _status(html: str) -> str:
    return f'<div role="status">{html}</div>'


def _refused(error: DeepDoctorError) -> str:
    return _status(note(f"{error} The dataset shown stays as it was.", "bad"))
