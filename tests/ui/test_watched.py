"""What viewers share: the curve is that of the run however it grows, nothing is read twice, and one drawing serves all."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deepdoctor.config import PRESETS, DatasetConfig, ModelConfig
from deepdoctor.runs import Run, Runs
from deepdoctor.ui import run_view
from deepdoctor.ui.watched import RUNS_KEPT, Watched


class Counted(Run):
    """A run that remembers how many bytes of metrics each reading took."""

    def metrics(self, since: int = 0) -> tuple[list[dict[str, Any]], int]:
        """As it is, and counted."""
        rows, place = super().metrics(since)
        vars(self).setdefault("readings", []).append(place - since)
        return rows, place

    @property
    def read(self) -> list[int]:
        """Bytes of each reading so far."""
        return list(vars(self)["readings"])


@pytest.fixture
def run(tmp_path: Path) -> Counted:
    return Counted(Runs(tmp_path).create(ModelConfig(), DatasetConfig(), PRESETS["full_epoch"]).path)


def log(run: Run, *steps: int) -> None:
    for step in steps:
        run.append_metric({"step": step, "loss": 2.0 - step / 5000})


def test_the_curve_is_that_of_the_run_however_it_grows(run: Counted) -> None:
    watched = Watched()
    assert watched.rows(run) == []
    log(run, 1, 2, 3)
    assert watched.rows(run) == run.curve()
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    assert watched.rows(run) == run.curve()
    run.append_metric({"resumed_from": 2})
    log(run, 3)
    assert [row["step"] for row in watched.rows(run)] == [1, 2, 3]
    assert watched.rows(run) == run.curve()


def test_what_a_viewer_holds_does_not_change_under_them(run: Counted) -> None:
    watched = Watched()
    log(run, 1)
    held = watched.rows(run)
    log(run, 2)
    assert len(watched.rows(run)) == 2
    assert len(held) == 1


def test_only_what_is_new_is_read_whoever_looks(run: Counted) -> None:
    watched = Watched()
    rows = [{"step": step, "loss": 1.0} for step in range(2500)]
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    size = (run.path / "metrics.jsonl").stat().st_size
    with ThreadPoolExecutor(10) as pool:
        drawn = list(pool.map(lambda _: watched.curves(run, "none", 2500), range(10)))
    assert sorted(run.read) == [0] * 9 + [size]
    assert len({id(each) for each in drawn}) == 1, "one drawing for all"
    log(run, 2500)
    assert watched.curves(run, "none", 2500) != drawn[0]
    assert watched.curves(run, "none", 2500) == run_view.curves(run.curve(), "none", 2500)
    assert run.read[10] == (run.path / "metrics.jsonl").stat().st_size - size


def test_each_smoothing_and_each_run_has_its_own_drawing(run: Counted, tmp_path: Path) -> None:
    watched = Watched()
    log(run, *range(20))
    others = [Counted(Runs(tmp_path / str(number)).create(ModelConfig(), DatasetConfig(), PRESETS["quick"]).path) for number in range(9)]
    for other in others:
        log(other, 1)
    plain, strong = watched.curves(run, "none", 20), watched.curves(run, "strong", 20)
    assert plain != strong
    assert watched.curves(run, "none", 40) != plain
    assert all(watched.curves(other, "none", 20) == run_view.curves(other.curve(), "none", 20) for other in others)
    assert len(others) > RUNS_KEPT
    assert watched.curves(run, "strong", 20) == strong, "forgotten meanwhile, and read again"
