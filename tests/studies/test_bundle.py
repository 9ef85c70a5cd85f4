"""The bundle: whole, anonymous, computed again to the same numbers, read as a report; and damaged or hostile files are refused in words."""

import csv
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest

from deepdoctor.cli import main
from deepdoctor.errors import StudyError
from deepdoctor.studies.bundle import recompute, write_bundle
from deepdoctor.studies.headline import signed, spread
from deepdoctor.studies.judgments import Judgments, Row
from deepdoctor.studies.study import Study
from tests.studies.prepared import other, prepared, verdict

NAMES = ("Dr <b>Ada</b> Bold", "Second Rater")
LOSSES = {"held_out_loss": {"first": 2.0, "last": 1.5, "step": 40}}
EVIL = "=1+1 <script>alert(1)</script> {{ 7 * 7 }}"


def judge(study: Study, data_dir: Path, names: tuple[str, ...] = NAMES) -> list[Row]:
    """Everybody joins and judges everything at random, but for a first tuned answer judged severe beside each other side; the rows stored.

    The order of trials and the slots differ from study to study, so what a test needs among the verdicts is not left to them. Somebody
    who judges nothing joined first.
    """
    study.join("Idle", "=none()", 0)
    store, rng = Judgments(data_dir), Random(5)
    for name in names:
        rater = study.join(name, "cardiology", 7)
        met = set[str]()
        for trial in rater.trials:
            changes = {
                "preference": rng.choice(("A", "B", "both", "neither")),
                "correct": {slot: rng.choice(("correct", "partly", "wrong", "unsure")) for slot in "AB"},
                "harm": {slot: rng.choice(("none", "none", "moderate", "severe")) for slot in "AB"},
            }
            if trial.other not in met:
                changes["harm"][trial.tuned_slot] = "severe"
                met.add(trial.other)
            row = verdict(study, rater.token, trial.id, comment=EVIL, **changes)
            store.add(row)
            if trial in rater.trials[:3]:
                store.add(other(row, "lock", revealed=True))
                store.add(other(row, "soundness", A="sound", B="flawed"))
        store.add(other(verdict(study, rater.token, rater.trials[-1].id), "guess", guess="A"))
    return store.rows(study.id)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with a native arm, judged by two raters; training knew some of its questions."""
    made = prepared(tmp_path_factory.mktemp("study"), 12, native_arm=True, name="A <i>study</i>")
    questions = json.loads((made.path / "questions.json").read_text())
    for place, grade in enumerate(("seen", "near-seen", "near-seen")):
        questions[place]["seen"] = grade
    (made.path / "questions.json").write_text(json.dumps(questions))
    return made


@pytest.fixture(scope="module")
def rows(study: Study) -> list[Row]:
    """What was said in it."""
    return judge(study, study.path.parents[1])


@pytest.fixture(scope="module")
def bundle(study: Study, rows: list[Row]) -> Path:
    """Its bundle."""
    return write_bundle(study, rows, LOSSES, study.path.parents[1] / "study.zip")


def changed(bundle: Path, to: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """A copy of the bundle with its files changed."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return to


def test_the_numbers_are_computed_again(bundle: Path) -> None:
    again = recompute(bundle)
    assert again.differences == []
    assert again.found["counts"]["verdicts"] == 24
    assert again.found["guesses"]["right"] + again.found["guesses"]["wrong"] == 2
    assert again.found["measures"]["losses"] == LOSSES
    assert set(again.by) >= {"python", "scipy", "statsmodels"}


def test_a_verdict_after_its_reference_was_read_is_marked_wherever_it_counts(tmp_path: Path) -> None:
    study, store = prepared(tmp_path, 2, seeds_per_question=2, repeat_share=0), Judgments(tmp_path)
    rater = study.join("Ada", "cardiology", 7)
    before = rater.trials[0]
    after = next(trial for trial in rater.trials[1:] if trial.question == before.question)
    for trial in (before, after):
        store.add(verdict(study, rater.token, trial.id))
        store.add(other(verdict(study, rater.token, trial.id), "lock", revealed=True))
    with zipfile.ZipFile(write_bundle(study, store.rows(study.id), {}, tmp_path / "study.zip")) as archive:
        page, table = archive.read("report.html").decode(), archive.read("verdicts.csv").decode()
    assert "First verdicts given after the rater had read that question's reference beside another pair: 1 of 2" in page
    assert page.count("R1 (reference read)") == 1
    assert [row["reference_read"] for row in csv.DictReader(table.splitlines())] == ["False", "True"]


def test_everything_is_in_it_but_names_and_secrets(study: Study, rows: list[Row], bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {name for name in files if name.startswith("raters/")} == {"raters/R1.json", "raters/R2.json", "raters/R3.json"}
    assert {"study.json", "report.html", "verdicts.csv", "dpo.jsonl", "kto.jsonl", "llm_comparator.json", "README.txt"} <= set(files)
    everything = "\n".join(files.values())
    for secret in (
        study.details["secret"],
        *(rater.token for rater in study.raters()),
        "Ada",
        "Second Rater",
        "Idle",
        rows[0]["submission"],
    ):
        assert secret not in everything
    assert json.loads(files["raters/R1.json"])["specialty"] == "cardiology", "R1 in the files is R1 in the results"
    assert json.loads(files["answers.jsonl"].splitlines()[0])["comparison"]["sampling"]
    came = files["raters.csv"].splitlines()
    assert came[0] == "rater,specialty,years,assigned,judged,locked,skipped,unfinished"
    assert (came[1], came[3]) == ("R1,cardiology,7,13,13,3,0,0", "R3,'=none(),0,13,0,0,0,13")
    said = [json.loads(line) for line in files["verdicts.jsonl"].splitlines()]
    assert sum({row["tuned_sound"], row["other_sound"]} == {"sound", "flawed"} for row in said) == 6
    assert sum(row["locked"] for row in said) == 6
    assert files["verdicts.csv"].splitlines()[0].endswith(",tuned_sound,other_sound,locked,reference_read")
    counts = json.loads(files["preferences.json"])
    assert counts["dpo"] == len(files["dpo.jsonl"].splitlines())
    for line in files["README.txt"].splitlines()[:9]:
        assert any(name.startswith(line.split()[0]) for name in files), line


def test_that_a_study_was_open_and_reopened_stands_in_every_export(study: Study, rows: list[Row], bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        page = archive.read("report.html").decode()
    assert "The study was still open when this was computed, with 24 of 36 planned verdicts" in page
    before = study.status
    study.close()
    study.open()
    try:
        again = recompute(write_bundle(study, rows, LOSSES, tmp_path / "again.zip"))
    finally:
        study.set_status(**before, closed=[])
    assert again.differences == []
    assert [len(again.found["course"][name]) for name in ("opened", "closed")] == [2, 1]
    assert any(each.startswith("The study was opened again after it had been closed") for each in again.found["cautions"])
    older = recompute(changed(bundle, tmp_path / "b.zip", remove("status.json"))).found["course"]
    assert (older["state"], older["opened"]) == ("closed", []), "bundles of before say nothing of it"


def test_a_study_without_verdicts_has_a_bundle_too(tmp_path: Path) -> None:
    empty = prepared(tmp_path, 2)
    again = recompute(write_bundle(empty, [], {}, tmp_path / "empty.zip"))
    assert (again.differences, again.found["headline"]) == ([], ["No verdicts yet."])


@pytest.mark.parametrize(
    ("questions", "why"), [(2, "no interval from fewer than 6 questions"), (6, "no interval where all questions say alike")]
)
def test_the_report_says_why_harm_has_no_interval(tmp_path: Path, questions: int, why: str) -> None:
    study, store = prepared(tmp_path, questions), Judgments(tmp_path)
    rater = study.join("Ada", "cardiology", 7)
    for trial in rater.trials:
        store.add(verdict(study, rater.token, trial.id))
    with zipfile.ZipFile(write_bundle(study, store.rows(study.id), {}, tmp_path / "study.zip")) as archive:
        assert f"tuned minus base) 0.00 ({why}), p (signed rank)* –" in archive.read("report.html").decode()


class Page(HTMLParser):
    """A page's elements, attributes and text, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("tr", "caption"):
            self.cells.append([])
        if tag in ("th", "td", "caption"):
            self.cells[-1].append("")
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells and self.cells[-1]:
            self.cells[-1][-1] += data.strip()

    def row(self, caption: str, name: str) -> list[str]:
        """The cells of the row that begins with `name`, of the table with that caption."""
        below = self.cells[self.cells.index([caption]) :]
        return next(cells for cells in below if cells and cells[0] == name)


def test_the_report_begins_with_the_headline_and_runs_nothing(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        page, found = Page(archive.read("report.html").decode()), json.loads(archive.read("results.json"))
    assert not {"script", "b", "i", "iframe", "link", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/svg+xml;base64,") for name, value in page.attributes if name in ("src", "href"))
    assert page.tags.count("img") == 3
    assert all(value for name, value in page.attributes if name == "alt")
    assert EVIL in page.text
    assert "Soundness of the reasoning, asked after the lock of whoever wished to see it" in page.text
    assert "mean difference of levels (0 to 2, tuned minus base) " in page.text
    interval = " to ".join(signed(end) for end in found["harm"]["interval"])
    assert f"(95% over questions and raters {interval}), p (signed rank)*" in page.text
    assert page.text.count("* This p treats verdicts as independent") == 2, "once for each other side"
    assert "How far raters came: 3 joined, 2 judged" in page.text
    assert page.text.count("(again") == found["counts"]["repeats"] == 2
    assert "reasoning flawed" in page.text
    assert found["counts"]["reference_read"] == 0, "a rater meets a question once"
    with zipfile.ZipFile(bundle) as archive:
        said = [json.loads(line) for line in archive.read("verdicts.jsonl").decode().splitlines()]
    against_base = Counter(row["seen"] for row in said if row["other"] == "base" and not row["repeat_of"])
    assert {name: values["verdicts"] for name, values in found["by"]["seen"].items()} == against_base
    for group, label in (("specialty", "By specialty"), ("seen", "By how well training knew the question")):
        for name, values in found["by"][group].items():
            row = page.row(label, name)
            assert row[:2] == [name, str(values["verdicts"])]
            assert row[7] == (spread(values["two_way"]) if values["two_way"] else "–")
    assert page.text.count("The primary outcome is the preference between tuned and base; all else is secondary.") == 1
    places = [
        page.text.index(sentence) for sentence in [*found["headline"], *found["cautions"], "Tuned against base", "Question by question"]
    ]
    assert places[: len(found["headline"])] == sorted(places)[: len(found["headline"])]
    assert "held out loss: 2.000 before training, 1.500 at step 40" in page.text
    assert "None" not in page.text


def test_a_changed_verdict_is_noticed(bundle: Path, tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        said = files["judgments.jsonl"].replace(b'"severe"', b'"none"')
        assert said != files["judgments.jsonl"]
        files["judgments.jsonl"] = said

    differences = recompute(changed(bundle, tmp_path / "b.zip", change)).differences
    assert any(line.startswith("harm.tuned.severe: ") for line in differences)
    assert any(line.startswith("headline") for line in differences)
    assert recompute(changed(bundle, tmp_path / "b.zip", put("answers.jsonl", b""))).found["headline"] == ["No verdicts yet."]


def remove(name: str) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.pop(name)


def put(name: str, content: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.update({name: content})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("results.json"), "results.json is missing"),
        (remove("study.json"), "study.json is missing"),
        (put("results.json", b"[1]"), "not a whole study bundle"),
        (put("results.json", b"{"), "not a whole study bundle"),
        (put("study.json", b'{"config": {"run": "r", "evil": 1}}'), "no setting called 'evil'"),
        (put("study.json", b"\xff\xfe"), "not a whole study bundle"),
        (put("questions.json", b"{}"), "not a whole study bundle"),
        (put("questions.json", b"[" * 100_000), "not a whole study bundle"),
        (put("answers.jsonl", b'{"question": "question-0", "seed": 3407, "comparison": {}, "native": null}\n'), "not a whole study bundle"),
        (put("raters/R1.json", b'{"trials": 3}'), "not a whole study bundle"),
        (put("judgments.jsonl", b'{"rater": "R1"}\n'), "not a whole study bundle"),
        (put("status.json", b'{"state": "open", "opened": "noon"}'), "not a whole study bundle"),
    ],
)
def test_damaged_bundles_are_refused_in_words(
    change: Callable[[dict[str, bytes]], object], message: str, bundle: Path, tmp_path: Path
) -> None:
    damaged = changed(bundle, tmp_path / "b.zip", change)
    with pytest.raises(StudyError, match=message):
        recompute(damaged)


def test_what_is_no_zip_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="There is no file"):
        recompute(tmp_path / "none.zip")
    whole = bundle.read_bytes()
    for number, content in enumerate((b"", b"no zip", whole[: len(whole) // 2], whole[:2000] + bytes(200) + whole[2200:])):
        file = tmp_path / f"{number}.zip"
        file.write_bytes(content)
        with pytest.raises(StudyError, match=f"{number}.zip (cannot be read|is not)"):
            recompute(file)
    with pytest.raises(StudyError, match="cannot be read"):
        recompute(tmp_path)


def test_a_hostile_zip_writes_nowhere_and_fills_no_disk(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(files: dict[str, bytes]) -> None:
        files.update(
            {"../outside.json": b"{}", "/tmp/deepdoctor-outside.json": b"{}", "raters/../../R1.json": b"{}", "raters/x.json": b"{"}
        )

    assert recompute(changed(bundle, tmp_path / "b.zip", change)).differences == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.zip"]
    assert not Path("/tmp/deepdoctor-outside.json").exists()
    monkeypatch.setattr("deepdoctor.studies.bundle.MOST_BYTES", 10_000)
    with pytest.raises(StudyError, match="too large"):
        recompute(bundle)


def test_the_command_line_reports(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(bundle), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["equal"], value["differences"], value["results"]["schema"]) == (True, [], 2)
    assert main(["study", "report", str(bundle)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(value["results"]["headline"][0])
    assert told.rstrip().endswith("The stored numbers equal those computed again from the bundle's verdicts.")
    other_numbers = changed(bundle, tmp_path / "b.zip", put("results.json", b'{"schema": 1}'))
    assert main(["study", "report", str(other_numbers)]) == 1
    told = capsys.readouterr().out
    assert "are not those computed" in told
    assert "  schema: 1, computed 2" in told
    assert main(["study", "report", str(other_numbers), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["equal"] is False
    assert main(["study", "report", str(tmp_path / "none.zip")]) == 2
    assert "There is no file" in capsys.readouterr().err
