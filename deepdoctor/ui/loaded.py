"""What the dataset tab has read lately, so that paging and searching read nothing twice; and where uploaded files are kept."""

import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from deepdoctor.checks import Report, check, token_lengths
from deepdoctor.config import DatasetConfig, FinetuneConfig
from deepdoctor.dataset import Columns, Example, Rows, keep_apart, load_rows, map_columns, to_examples
from deepdoctor.errors import DatasetError
from deepdoctor.prompts import style_named

KEPT = 4


@dataclass(frozen=True)
class Table:
    """Rows with their columns mapped, ready to be shown."""

    rows: Rows
    columns: Columns
    examples: list[Example]


class Checked:
    """What training would do with a table: `report` is about the rows that are not kept apart, `places` are their indices in the table.

    Which rows are kept apart for the held-out loss is drawn as the presets have it; another number on the Train tab draws others.
    """

    def __init__(self, report: Report, places: list[int]) -> None:
        self.places = places
        self.kept = {places[index] for index in report.kept}
        findings = {kind: replace(each, rows=[places[row - 1] + 1 for row in each.rows]) for kind, each in report.findings.items()}
        self.report = replace(report, findings=findings)

    def fate(self, index: int) -> str:
        """Why the row with that index in the table is not trained on, in words; "" if it is."""
        if index in self.kept:
            return ""
        if index not in self.places:
            return "Training keeps this row apart, for the held-out loss: it is never trained on."
        titles = [each.title for each in self.report.findings.values() if index + 1 in each.rows]
        return f"Training leaves this row out: {titles[0][0].lower() + titles[0][1:] if titles else 'see what was found before training'}."


class Recent:
    """A few values by key, the least recently used forgotten first. Safe to use from several threads."""

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of that key, made now if it is not here. What `make` raises is raised, and nothing is kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value

    def known(self, key: Hashable) -> Any:
        """The value of that key, or None."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value that is there already."""
        self.get(key, lambda: value)


class Loaded:
    """Tables, tokenizers and reports that were made lately; shared by all visitors, since none of it belongs to one of them."""

    def __init__(self) -> None:
        self._rows = Recent()
        self._tables = Recent()
        self._tokenizers = Recent()
        self._reports = Recent(8)

    def rows(self, config: DatasetConfig, on_progress: Callable[[str], None] | None = None) -> Rows:
        """Rows as `load_rows` reads them. Raises DatasetError."""
        return self._rows.get(_rows_key(config), lambda: load_rows(config, on_progress))

    def keep_upload(self, config: DatasetConfig, rows: Rows, data_dir: Path) -> DatasetConfig:
        """Move what was read from an upload to the file that stays: the config with its path, for which `rows` need no second reading.

        Raises DatasetError if the file cannot be kept.
        """
        kept = config.changed(path=str(keep_upload(Path(config.path or ""), data_dir)))
        self._rows.put(_rows_key(kept), rows)
        return kept

    def table(self, config: DatasetConfig, on_progress: Callable[[str], None] | None = None) -> Table:
        """Rows mapped to examples. Raises DatasetError."""

        def make() -> Table:
            rows = self.rows(config, on_progress)
            columns = map_columns(rows.columns, config)
            return Table(rows, columns, to_examples(rows.rows, columns))

        return self._tables.get((config.to_json(), _stamp(config)), make)

    def tokenizer(self, file: str) -> Tokenizer:
        """The tokenizer of that tokenizer.json."""
        return self._tokenizers.get(file, lambda: Tokenizer.from_file(file))

    def checked(self, config: DatasetConfig, tokenizer_file: str, eos: str, style: str, longest: int) -> Checked:
        """What training would do with the table. Raises DatasetError or ConfigError."""

        def make() -> Checked:
            examples, usual = self.table(config).examples, FinetuneConfig()
            training, apart = keep_apart(examples, config.source, usual.held_out_rows, usual.seed)
            lengths = token_lengths(training, self.tokenizer(tokenizer_file), eos, style_named(style))
            report = check(training, lengths, eos, longest, apart)
            drawn = set(map(id, apart))
            return Checked(report, [index for index, example in enumerate(examples) if id(example) not in drawn])

        return self._reports.get((config.to_json(), _stamp(config), tokenizer_file, eos, style, longest), make)

    def known_checked(self, config: DatasetConfig, tokenizer_file: str, eos: str, style: str, longest: int) -> Checked | None:
        """`checked`, if it was made lately."""
        return self._reports.known((config.to_json(), _stamp(config), tokenizer_file, eos, style, longest))


def _rows_key(config: DatasetConfig) -> Hashable:
    unmapped = config.changed(question_column=None, reasoning_column=None, response_column=None)
    return unmapped.to_json(), _stamp(config)


def _stamp(config: DatasetConfig) -> tuple[int, int]:
    """Changes when the config's file does."""
    if config.source != "file" or not config.path:
        return 0, 0
    try:
        found = os.stat(Path(config.path).expanduser())
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def keep_upload(uploaded: Path, data_dir: Path) -> Path:
    """Copy an uploaded file to `<data_dir>/uploads/`, named by its contents, so that a later resume of a run finds it.

    Raises DatasetError if it cannot be kept.
    """
    folder = data_dir / "uploads"
    try:
        with uploaded.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        kept = folder / f"{digest[:12]}-{_safe(uploaded.name)}"
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=folder, prefix=".upload-")
            os.close(handle)
            try:
                shutil.copyfile(uploaded, aside)
                os.replace(aside, kept)
            finally:
                Path(aside).unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(
            f"The uploaded file could not be kept in {folder}: {error.strerror or error}. Free some space, or try again."
        ) from None
    return kept.resolve()


def _safe(name: str) -> str:
    """A file name of plain characters with its suffix kept."""
    stem, suffix = os.path.splitext(name)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80]
    return f"{plain or 'rows'}{re.sub(r'[^A-Za-z0-9.]', '', suffix)[:12]}"
