"""The engine process: requests in, events out, one thing at a time, in one thread. `python -m deepdoctor.engine.process FD DATA_DIR`."""

import os
import sys
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deepdoctor.engine.protocol import Compare, EngineState, Event, Export, Finetune, Load, Phase, Request, Stop
from deepdoctor.errors import DeepDoctorError, EngineError, Stopped


class Process:
    """The loop. Between tokens and between optimizer steps it looks into its inbox, so that a stop is obeyed at once."""

    def __init__(self, connection: Connection, data_dir: Path) -> None:
        self.connection = connection
        self.data_dir = data_dir
        self.session: Any = None
        self.inbox: deque[tuple[int, Request]] = deque()
        self.current = 0
        self.training = ""
        self.stop_asked = False
        self.problem = "No model is loaded."

    def run(self) -> None:
        """Serve until the page's end of the pipe is closed."""
        self._state("loading", "Loading PyTorch and Transformers", 0.05)
        from deepdoctor.engine.session import Session

        self.session = Session(self.data_dir)
        while True:
            self._receive(wait=not self.inbox)
            while self.inbox:
                self._serve(*self.inbox.popleft())

    def _receive(self, wait: bool) -> None:
        """Take in what has come. Raises EOFError when the page is gone."""
        while wait or self.connection.poll():
            number, request = self.connection.recv()
            wait = False
            if isinstance(request, Stop):
                self._stop(request.request)
            else:
                self.inbox.append((number, request))
                if self.current and isinstance(request, Compare):
                    self._send(number, "waiting", f"Waiting: the engine is {self._doing()}.")

    def _stop(self, number: int) -> None:
        """Stop what runs, or drop what waits; 0 stands for the run that trains or waits to."""
        if (number and number == self.current) or (number == 0 and self.training):
            self.stop_asked = True
            return
        for waiting in list(self.inbox):
            if waiting[0] == number or (number == 0 and isinstance(waiting[1], Finetune)):
                self.inbox.remove(waiting)
                if isinstance(waiting[1], Finetune):
                    self.session.runs.get(waiting[1].run).set_status(state="stopped", message="Stopped before it began")
                self._send(waiting[0], "error", Stopped("Stopped before anything was written."))

    def _should_stop(self) -> bool:
        try:
            self._receive(wait=False)
        except (EOFError, ConnectionError):
            # not an error of the work: a run that trains stays as it is, to be marked interrupted and resumed
            raise SystemExit from None
        return self.stop_asked

    def _serve(self, number: int, request: Request) -> None:
        self.current, self.stop_asked = number, False
        self.training = request.run if isinstance(request, Finetune) else ""
        try:
            self._state("loading" if isinstance(request, Load) else "busy", self._doing().capitalize())
            self._send(number, "done", self._answer(number, request))
        except DeepDoctorError as error:
            self.problem = str(error) if isinstance(request, Load) else self.problem
            self._send(number, "error", error)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            traceback.print_exc()
            self._send(number, "error", EngineError(f"{type(error).__name__}: {error}. Details are in engine.log in the data folder."))
        self.current, self.training = 0, ""
        if self.session.loaded:
            self._state("ready", "Ready")
        else:
            self._state("failed", f"{self.problem} Start the app with another MODEL.")

    def _answer(self, number: int, request: Request) -> Any:
        if isinstance(request, Load):
            return self.session.load(request.model, lambda message, fraction: self._state("loading", message, fraction)).info
        if isinstance(request, Compare):
            return self._compare(number, request)
        if isinstance(request, Finetune):
            return self.session.finetune(request.run, request.resume, self._should_stop).id
        assert isinstance(request, Export)
        return self.session.export(request, lambda line: self._send(number, "progress", line))

    def _compare(self, number: int, request: Compare) -> Any:
        latest = None
        for latest in self.session.compare(request, self._should_stop):
            if not latest.id:
                self._send(number, "snapshot", latest)
        return latest

    def _doing(self) -> str:
        return f"training {self.session.runs.get(self.training).name}" if self.training else "answering"

    def _state(self, phase: Phase, message: str, fraction: float | None = None) -> None:
        info = self.session.loaded.info if self.session and self.session.loaded else None
        doing = self._doing() if phase == "busy" else ""
        self._send(0, "state", EngineState(phase, message, fraction, info, doing, self.training))

    def _send(self, number: int, kind: Any, value: Any) -> None:
        self.connection.send(Event(number, kind, value))


def main() -> None:
    """Serve the pipe whose file descriptor is the first argument; the data folder is the second."""
    connection = Connection(int(sys.argv[1]))
    try:
        Process(connection, Path(sys.argv[2])).run()
    except (EOFError, BrokenPipeError, ConnectionResetError, SystemExit):
        os._exit(0)  # the page is gone: nothing is left to serve, and threads of libraries must not hold us


if __name__ == "__main__":
    main()
