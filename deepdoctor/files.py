"""Writing files so that a reader never sees half of one, and a crash loses nothing that was called saved."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file in one go: written aside, synced, then renamed over the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):  # a new file is for this user alone
            shutil.copymode(path, aside)
        os.replace(aside, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one go."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line and sync it. Heals a torn last line left by a crash by starting on a new line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        new = not file.tell()
        if not new and _last_byte(file) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def write_complete(folder: Path, about: dict[str, Any]) -> None:
    """Note in complete.json that a folder, into which others wrote, is whole; only once all of it is on disk."""
    for file in folder.iterdir():
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    write_json(folder / "complete.json", about)


def _sync_folder(folder: Path) -> None:
    """Put on disk which files a folder holds: without that a new file is lost with the power, however well its content was kept."""
    # not every system opens folders, nor every mounted storage syncs them
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_rows(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Rows of a JSON-lines file from byte `start` on, and the byte to continue from. A torn last line waits; a broken one is skipped."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        whole, newline, _torn = file.read().rpartition(b"\n")
    rows = []
    for line in whole.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows, start + len(whole) + len(newline)


def holds_runs(storage: Path) -> bool:
    """Whether a disk is mounted there on which files can be written, appended to and renamed; a bucket may refuse to append."""
    if not os.path.ismount(storage):
        return False
    try:
        with tempfile.TemporaryDirectory(dir=storage, prefix=".deepdoctor-") as folder:
            first, second = Path(folder) / "first", Path(folder) / "second"
            first.write_bytes(b"a")
            with first.open("ab") as file:
                file.write(b"b")
            return first.rename(second).read_bytes() == b"ab"
    except OSError:
        return False
