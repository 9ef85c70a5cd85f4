"""The real engine process, but for a session that fails where `<data_dir>/fail` says how; the file goes with it.

step    memory runs out while tokens are drawn            cuda    CUDA itself breaks there
export  memory runs out while exporting

Whether a cache was held at each step is noted in `<data_dir>/steps`.
"""

import deepdoctor.engine.accelerator  # noqa: F401

from pathlib import Path
from typing import Any

import torch

from deepdoctor.engine import process
from deepdoctor.engine.compare import Pair
from deepdoctor.engine.export import Say
from deepdoctor.engine.protocol import Export
from deepdoctor.engine.session import Session


class FailingSession(Session):
    """A session that fails when it is told to."""

    def _fails(self, *kinds: str) -> str:
        file = self.data_dir / "fail"
        kind = file.read_text() if file.exists() else ""
        if kind in kinds:
            file.unlink()
            return kind
        return ""

    def step(self) -> list[Pair]:
        """One more token, or the failure asked for."""
        with (self.data_dir / "steps").open("a") as file:
            file.write("held\n" if self.pairs.decoder else "none\n")
        kind = self._fails("step", "cuda")
        if kind == "step":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if kind == "cuda":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().step()

    def export(self, request: Export, say: Say = print) -> Path:
        """The export, or no memory for it."""
        if self._fails("export"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().export(request, say)


class FailingProcess(process.Process):
    """The engine process with that session."""

    def open_session(self) -> Any:
        """A FailingSession."""
        return FailingSession(self.data_dir)


if __name__ == "__main__":
    process.Process = FailingProcess  # type: ignore[misc]
    process.main()
