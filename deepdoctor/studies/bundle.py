"""A study bundle: one zip with all that a study's numbers are made from, from which anybody can compute them again.

The raters' names, the secret part of their links and the secret of the assignment stay out; raters are called R1, R2 … as in the results.
"""

import json
import platform
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepdoctor.errors import DeepDoctorError, StudyError
from deepdoctor.files import read_rows, write_json
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.exports import codes, comparator, jsonl, preferences, raters_csv, verdicts_csv, verdicts_jsonl
from deepdoctor.studies.judged import Judged, course, standings, unblind
from deepdoctor.studies.judgments import Row
from deepdoctor.studies.report import report
from deepdoctor.studies.results import results
from deepdoctor.studies.study import Study

PACKAGES = ("deepdoctor", "evalica", "numpy", "sacrebleu", "scipy", "statsmodels")
NEEDED = ("study.json", "questions.json", "answers.jsonl", "judgments.jsonl", "losses.json", "results.json", "versions.json")
STATUS = "status.json"
EXPORTS = ("report.html", "verdicts.csv", "verdicts.jsonl", "raters.csv", "dpo.jsonl", "kto.jsonl", "llm_comparator.json")
MOST_BYTES = 1 << 30
MOST_RATERS = 10_000
# results are rounded to six places; the last may differ between machines
CLOSE = 2e-6
CONTENTS = """\
study.json          the protocol: settings, model, run
questions.json      questions, references, key points, and how well training knew them
answers.jsonl       both answers to each question, how they were made, and the proof that base was base
raters/             each rater's trials, with what stood in slot A and in slot B; names are left out
judgments.jsonl     what raters said, as they said it
verdicts.csv        the same unblinded, one row a verdict (and verdicts.jsonl)
raters.csv          how far each rater came
dpo.jsonl           preference rows for TRL's DPOTrainer (and kto.jsonl); preferences.json counts them and what was left out
llm_comparator.json the judged pairs for LLM Comparator
status.json         whether it was open, and when it was opened and closed
losses.json         held-out losses of the checkpoint, by step
results.json        every number; report.html the same to read
versions.json       what computed them
damaged.json        raters of this study and lines of the whole store that could not be read and are left out

python -m deepdoctor study report BUNDLE computes the numbers again and compares them with results.json.
"""


def study_results(study: Study, rows: Iterable[Row], losses: Mapping[str, Any]) -> tuple[dict[str, Any], list[Judged]]:
    """(results, unblinded verdicts) of a study as it stands. rows: its judgments; losses: of its run, from measures.losses."""
    said = list(rows)
    judged = unblind(study, said)
    questions = json.loads((study.path / "questions.json").read_text(encoding="utf-8"))
    found = results(judged, standings(study, said), questions, list(study.answers().values()), losses, course(study))
    return found, judged


def write_bundle(study: Study, rows: Iterable[Row], losses: Mapping[str, Any], path: Path, damaged_lines: int = 0) -> Path:
    """Write the bundle of a study as it stands to `path` (a .zip), replacing what is there. Raises StudyError if the study is damaged.

    damaged_lines: of the store, that could not be read. They are counted in the bundle, as are raters whose files could not be read.
    """
    said = list(rows)
    found, judged = study_results(study, said, losses)
    raters = {rater.token: rater for rater in study.raters()}
    names = codes(judged, raters)
    answers = {key: Answer.from_row(row) for key, row in study.answers().items()}
    protocol = {name: value for name, value in study.details.items() if name != "secret"}
    rows_for_training = preferences(judged, answers)
    counts = {"dpo": len(rows_for_training.dpo), "kto": len(rows_for_training.kto), "left_out": rows_for_training.left_out}
    files = {
        "README.txt": CONTENTS,
        "study.json": _json(protocol),
        "questions.json": (study.path / "questions.json").read_text(encoding="utf-8"),
        "answers.jsonl": jsonl(study.answers().values()),
        "judgments.jsonl": jsonl(_anonymous(row, names) for row in said if row["rater"] in raters),
        STATUS: _json({name: found["course"][name] for name in ("state", "opened", "closed")}),
        "losses.json": _json(losses),
        "results.json": _json(found),
        "versions.json": _json(versions()),
        "damaged.json": _json({"raters": study.damaged_raters, "lines": damaged_lines}),
        "report.html": report(found, study, answers),
        "verdicts.csv": verdicts_csv(judged),
        "verdicts.jsonl": verdicts_jsonl(judged),
        "raters.csv": raters_csv(found["counts"]["by_rater"]),
        "dpo.jsonl": jsonl(rows_for_training.dpo),
        "kto.jsonl": jsonl(rows_for_training.kto),
        "preferences.json": _json(counts),
        "llm_comparator.json": _json(comparator(judged, answers, (f"base {protocol['model']}", f"tuned {study.config.run}"), study.id)),
    }
    for token, rater in raters.items():
        code = names[token]
        files[f"raters/{code}.json"] = _json(replace(rater, token=code, name=code).to_dict())
    return _zipped(files, path)


def _anonymous(row: Row, names: Mapping[str, str]) -> Row:
    """A judgment without what leads to the rater's page."""
    return {name: value for name, value in row.items() if name != "submission"} | {"rater": names[row["rater"]]}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """What computes the numbers here: Python and the packages, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _zipped(files: Mapping[str, str], path: Path) -> Path:
    """Write a zip aside, then put it in place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
        try:
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, text in files.items():
                    archive.writestr(name, text)
            Path(aside.name).replace(path)
        except BaseException:
            Path(aside.name).unlink(missing_ok=True)
            raise
    return path


@dataclass(frozen=True)
class Recomputed:
    """A bundle's stored results, the same computed again, and where they differ ("preference.wins: 41, computed 40").

    by: the versions of what computed the stored ones.
    """

    stored: dict[str, Any]
    found: dict[str, Any]
    differences: list[str]
    by: dict[str, Any]


def unpacked(bundle: Path, folder: Path) -> tuple[list[str], dict[str, int]]:
    """Every export of a bundle as a file of its own in `folder`: (their paths, how many preference rows there are and were dropped)."""
    with zipfile.ZipFile(bundle) as archive:
        return [archive.extract(name, folder) for name in EXPORTS], json.loads(archive.read("preferences.json"))


def recompute(path: Path) -> Recomputed:
    """Compute a bundle's results again from what raters said. Raises StudyError if it is no whole bundle."""
    with _opened(Path(path)) as folder:
        try:
            losses, stored, by = (_object(folder / name) for name in ("losses.json", "results.json", "versions.json"))
            study = Study(folder)
            if study.damaged_raters:
                raise StudyError("the file of a rater cannot be read.")
            found, _ = study_results(study, read_rows(folder / "judgments.jsonl")[0], losses)
        except DeepDoctorError as error:
            raise StudyError(f"{Path(path).name} is not a whole study bundle: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise StudyError(f"{Path(path).name} is not a whole study bundle: {type(error).__name__}: {str(error)[:200]}.") from None
    return Recomputed(stored, found, list(_differences(stored, json.loads(_json(found)))), by)


def _object(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError(f"{file.name} holds something else")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[Path]:
    """The bundle's files in a folder that is removed afterwards. Only files that belong there are taken, under their own names."""
    with tempfile.TemporaryDirectory(prefix="deepdoctor-study-") as made:
        folder = Path(made)
        (folder / "raters").mkdir()
        # bundles of before hold none
        write_json(folder / STATUS, {"state": "closed"})
        try:
            with zipfile.ZipFile(path) as archive:
                for info in _members(archive, path.name):
                    (folder / info.filename).write_bytes(archive.read(info))
        except FileNotFoundError:
            raise StudyError(f"There is no file {path}.") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
            raise StudyError(f"{path.name} cannot be read as a study bundle: {error}. Download or copy it again.") from None
        yield folder


def _members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The files of a bundle that its numbers are made from. Raises StudyError if some are missing, or there is far too much."""
    inside = {info.filename: info for info in archive.infolist()}
    if missing := [each for each in NEEDED if each not in inside]:
        raise StudyError(f"{name} is not a study bundle: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
    raters = [each for each in inside if each.startswith("raters/R") and each[8:-5].isdecimal() and each.endswith(".json")]
    members = [inside[each] for each in (*NEEDED, *raters, STATUS) if each in inside]
    if len(raters) > MOST_RATERS or sum(info.file_size for info in members) > MOST_BYTES:
        raise StudyError(f"{name} is too large to be a study bundle.")
    return members


def _differences(stored: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ; numbers may differ in the last place."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for name in dict.fromkeys((*stored, *found)):
            yield from _differences(stored.get(name), found.get(name), f"{where}.{name}" if where else name)
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for place, (one, other) in enumerate(zip(stored, found, strict=True)):
            yield from _differences(one, other, f"{where}[{place}]")
    elif isinstance(stored, float) and isinstance(found, float):
        if not abs(stored - found) <= CLOSE:
            yield f"{where}: {stored}, computed {found}"
    elif stored != found:
        yield f"{where}: {str(stored)[:60]}, computed {str(found)[:60]}"
