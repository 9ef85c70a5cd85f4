"""What all viewers of a run share: its metrics, read on from where the last viewer left off, and the curves drawn of them, once for all."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from deepdoctor.runs import Run, grown
from deepdoctor.ui import run_view
from deepdoctor.ui.loaded import Recent

RUNS_KEPT, DRAWINGS_KEPT = 4, 12


@dataclass
class _Curve:
    """The curve of a run up to byte `place` of its metrics; `rows` is replaced as it grows, never changed."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    place: int = 0


class Watched:
    """Curves of the runs that were looked at last. Safe to use from several threads: who comes while one reads or draws waits for that."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._curves = Recent(RUNS_KEPT)
        self._drawn = Recent(DRAWINGS_KEPT)

    def rows(self, run: Run) -> list[dict[str, Any]]:
        """What `run.curve()` gives, of which only the rows that are new to all viewers are read."""
        with self._lock:
            return self._read(run).rows

    def curves(self, run: Run, smoothing: str, steps: int) -> str:
        """The run's curves as HTML, drawn anew only if no viewer has seen them with that smoothing."""
        with self._lock:
            curve = self._read(run)
            key = (run.id, curve.place, smoothing, steps)
            return str(self._drawn.get(key, lambda: run_view.curves(curve.rows, smoothing, steps)))

    def _read(self, run: Run) -> _Curve:
        curve: _Curve = self._curves.get(run.id, _Curve)
        new, place = run.metrics(curve.place)
        if place > curve.place:
            curve.rows, curve.place = grown(curve.rows, new), place
        return curve
