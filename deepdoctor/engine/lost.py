"""Runs and studies that say they are worked on while no process does: found, and marked as to be resumed. Torch-free."""

import threading

from deepdoctor.engine.unwritten import TRY_EVERY, Unwritten
from deepdoctor.errors import RunError
from deepdoctor.processes import Named, is_alive
from deepdoctor.runs import Runs
from deepdoctor.studies.study import Studies

RESUME = "Resume continues from the last checkpoint."


class Lost:
    """Marks them when the app starts and when its engine has died, and later those that another process still trained then.

    It never raises; what a full disk refuses is written once there is room.
    """

    def __init__(self) -> None:
        self._unwritten = Unwritten()
        self._over = threading.Event()

    def mark(self, runs: Runs, studies: Studies, why_run: str, why_study: str) -> None:
        """Mark what nobody works on now, and go on looking, beside the caller, at runs that processes of an earlier engine still train."""
        for run in runs.lost():
            self._unwritten.write(run, "interrupted", f"{why_run} {RESUME}")
        for study in studies.lost():
            self._unwritten.write(study, "interrupted", f"{why_study} Prepare the answers again to go on.")
        orphans = {run.id: run.status["process"] for run in runs.list() if run.state == "running" and run.is_claimed()}
        if self._unwritten or orphans:
            threading.Thread(target=self._later, args=(runs, orphans), name="engine-lost", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _later(self, runs: Runs, orphans: dict[str, Named]) -> None:
        while (self._unwritten or orphans) and not self._over.wait(TRY_EVERY):
            self._unwritten.again()
            for run_id, process in list(orphans.items()):
                if not self._still_trains(runs, run_id, process):
                    del orphans[run_id]

    def _still_trains(self, runs: Runs, run_id: str, process: Named) -> bool:
        """Whether that process still trains the run; one that ended without saying so leaves it interrupted."""
        alive = is_alive(process)  # asked first: what it wrote before it ended counts
        try:
            run = runs.get(run_id)
            status = run.status
        except RunError:
            return False
        if status.get("state") != "running" or status.get("process") != process:
            return False
        if not alive:
            self._unwritten.write(run, "interrupted", f"The process that trained it has ended. {RESUME}")
        return alive
