"""The engine process: requests in, events out, in one thread. `python -m deepdoctor.engine.process FD DATA_DIR`.

It does one thing at a time; comparisons count as one thing, since all that are asked for are written together, a token each in turn.
"""

import os
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deepdoctor.engine.protocol import Compare, EngineState, Event, Export, Finetune, Load, Phase, Prepare, Request, Stop
from deepdoctor.errors import DeepDoctorError, Stopped, is_out_of_memory, print_trace, told
from deepdoctor.runs import Runs
from deepdoctor.studies.study import Studies

# what an error says was being done
WORK: dict[type, str] = {Export: "exporting", Prepare: "preparing", Load: "loading", Finetune: "training"}


class Process:
    """The loop. Between tokens and between optimizer steps it looks into its inbox, so that a stop is obeyed at once."""

    def __init__(self, connection: Connection, data_dir: Path) -> None:
        self.connection = connection
        self.data_dir = data_dir
        self.session: Any = None
        self.inbox: deque[tuple[int, Request]] = deque()
        self.pairs: dict[int, Any] = {}
        self.places: dict[int, int] = {}
        self.current: tuple[int, Request] | None = None
        self.stop_asked = False
        self.problem = "No model is loaded."

    def run(self) -> None:
        """Serve until the page's end of the pipe is closed."""
        self._state("loading", "Loading PyTorch and Transformers", 0.05)
        self.session = self.open_session()
        while True:
            self._write_again()
            self._receive(wait=not self.inbox and not self.pairs)
            while self.inbox and (isinstance(self.inbox[0][1], Compare) or not self.pairs):
                self._serve(*self.inbox.popleft())
            if self.pairs:
                self._write()

    def open_session(self) -> Any:
        """What does the work: a Session on the data folder. Imports PyTorch."""
        from deepdoctor.engine.session import Session

        return Session(self.data_dir)

    def _write_again(self) -> None:
        """While the disk refuses to keep how something ended, try again: between all else, and every few seconds that nothing is asked."""
        unwritten = self.session.unwritten
        if not unwritten:
            return
        unwritten.again()
        while unwritten and not self.inbox and not self.pairs and not self.connection.poll(unwritten.every):
            unwritten.again()
        if not unwritten and not self.pairs:
            self._idle()

    def _receive(self, wait: bool) -> None:
        """Take in what has come. Raises EOFError when the page is gone."""
        while wait or self.connection.poll():
            number, request = self.connection.recv()
            wait = False
            if isinstance(request, Stop):
                self._stop(request.request)
            else:
                waits = self.current or not all(isinstance(before, Compare) for _number, before in self.inbox)
                self.inbox.append((number, request))
                if isinstance(request, Compare) and waits:
                    self._send(number, "waiting", f"Waiting: the engine is {self._doing()}.")

    def _stop(self, number: int) -> None:
        """Stop what runs, or drop what waits; 0 stands for the run that trains or waits to."""
        if self.current and (number == self.current[0] or (number == 0 and isinstance(self.current[1], Finetune))):
            self.stop_asked = True
        elif number in self.pairs:
            self.session.pairs.drop(self.pairs[number])
            self._end(number)
        for waiting in list(self.inbox):
            if waiting[0] == number or (number == 0 and isinstance(waiting[1], Finetune)):
                self.inbox.remove(waiting)
                self._give_up(*waiting)

    def _give_up(self, number: int, request: Request) -> None:
        """Drop a request that has not begun, and write so; the run that trains now, asked for twice, is left alone."""
        with suppress(DeepDoctorError):  # of one whose folder is gone there is nothing to write
            if isinstance(request, Finetune) and request.run != self._training:
                self.session.unwritten.write(self.session.runs.get(request.run), "stopped", "Stopped before it began")
            if isinstance(request, Prepare):
                self.session.unwritten.write(self.session.studies.get(request.study), "interrupted", "Stopped before it began")
        self._send(number, "error", Stopped("Stopped before anything was written."))

    def _should_stop(self) -> bool:
        try:
            self._receive(wait=False)
        except (EOFError, ConnectionError):
            # not an error of the work: a run that trains stays as it is, to be marked interrupted and resumed
            raise SystemExit from None
        return self.stop_asked

    def _serve(self, number: int, request: Request) -> None:
        if isinstance(request, Compare):
            self._guarded(number, lambda: self._begin(number, request))
            return
        self.current, self.stop_asked = (number, request), False
        self._state("loading" if isinstance(request, Load) else "busy", self._doing().capitalize())
        self._guarded(number, lambda: self._send(number, "done", self._answer(number, request)))
        self.current = None
        self._idle()

    def _guarded(self, number: int, work: Callable[[], None]) -> bool:
        """Do it; tell the request's errors to whoever asked. Whether it went well."""
        try:
            work()
        except DeepDoctorError as error:
            if self.current and isinstance(self.current[1], Load):
                self.problem = str(error)
            self._send(number, "error", error)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            print_trace()
            self._send(number, "error", told(error, WORK.get(type(self.current and self.current[1]), "answering")))
            if is_broken(error):
                raise SystemExit(f"The accelerator is in a state that only a new process mends: {error}") from error
            self._release_after(error)
        else:
            return True
        return False

    def _release_after(self, error: Exception) -> None:
        """Give memory back that had run out; while others write, what they need stays."""
        if is_out_of_memory(error) and self.session.loaded and not self.pairs:
            error.__traceback__ = None  # it holds what did not fit
            self.session.pairs.release()

    def _begin(self, number: int, request: Compare) -> None:
        self.pairs[number] = self.session.begin(request)
        self._state("busy", "Answering")

    def _write(self) -> None:
        """One token for every comparison, and the news of it."""
        numbers = list(self.pairs)
        if not self._guarded_step(numbers):
            return
        for number in numbers:
            pair = self.pairs[number]
            if not self._guarded(number, pair.prove):
                self.session.pairs.drop(pair)
                self._forget(number)
            elif pair.finished:
                self._end(number)
            elif pair.due():
                self._send(number, "snapshot", pair.snapshot())
            else:
                self._tell_place(number, self.session.pairs.place(pair))

    def _tell_place(self, number: int, place: int) -> None:
        """Tell a comparison that found no room where it stands in line, whenever that changes."""
        if place >= 0 and self.places.get(number) != place:
            self.places[number] = place
            before = f"{place} {'waits' if place == 1 else 'wait'} before this one" if place else "this one is next"
            self._send(number, "waiting", f"Waiting: as many comparisons as fit are being written; {before}.")

    def _guarded_step(self, numbers: list[int]) -> bool:
        try:
            self.session.step()
        except Exception as error:
            print_trace()
            for number in numbers:
                self._send(number, "error", told(error))
                self.session.pairs.drop(self.pairs[number])
                self._forget(number)
            if is_broken(error):
                raise SystemExit(f"The accelerator is in a state that only a new process mends: {error}") from error
            error.__traceback__ = None  # it holds what did not fit
            self.session.pairs.release()
            return False
        return True

    def _end(self, number: int) -> None:
        """A comparison has come to its end: prove, save and tell it."""
        pair = self.pairs[number]

        def finish() -> None:
            pair.prove()
            self._send(number, "done", self.session.finish(pair))

        self._guarded(number, finish)
        self._forget(number)

    def _forget(self, number: int) -> None:
        del self.pairs[number]
        self.places.pop(number, None)
        if not self.pairs:
            self._idle()

    def _idle(self) -> None:
        if self.session.loaded:
            self._state("ready", "Ready")
        else:
            way = "Choose another model under Model at the top of the page, or start the app with another MODEL, for example MODEL=nano."
            self._state("failed", f"{self.problem} {way}")

    def _answer(self, number: int, request: Request) -> Any:
        if isinstance(request, Load):
            return self.session.load(request.model, lambda message, fraction: self._state("loading", message, fraction)).info
        if isinstance(request, Finetune):
            return self.session.finetune(request.run, request.resume, self._should_stop).id
        if isinstance(request, Prepare):
            return self.session.prepare(request.study, self._should_stop).id
        assert isinstance(request, Export)
        return self.session.export(request, lambda line: self._send(number, "progress", line))

    def _doing(self) -> str:
        request = self.current and self.current[1]
        if isinstance(request, Finetune):
            return f"training {_name(self.session.runs, request.run)}"
        if isinstance(request, Prepare):
            return f"preparing {_name(self.session.studies, request.study)}"
        if isinstance(request, Export):
            return "exporting"
        return "loading a model" if isinstance(request, Load) else "answering"

    @property
    def _training(self) -> str:
        """Id of the run that trains now, or ""."""
        request = self.current and self.current[1]
        return request.run if isinstance(request, Finetune) else ""

    def _state(self, phase: Phase, message: str, fraction: float | None = None) -> None:
        info = self.session.loaded.info if self.session and self.session.loaded else None
        request = self.current and self.current[1]
        study = request.study if isinstance(request, Prepare) else ""
        trouble = self.session.unwritten.told if self.session else ""
        doing = self._doing() if phase == "busy" else ""
        self._send(0, "state", EngineState(phase, message, fraction, info, doing, self._training, study, trouble))

    def _send(self, number: int, kind: Any, value: Any) -> None:
        self.connection.send(Event(number, kind, value))


def _name(known: Runs | Studies, wanted: str) -> str:
    """What a run or study is called; its id where its folder is gone or damaged."""
    try:
        return known.get(wanted).name
    except DeepDoctorError:
        return wanted


def is_broken(error: Exception) -> bool:
    """Whether CUDA itself has failed, after which no call of this process works any more (out of memory is not that)."""
    return "AcceleratorError" in type(error).__name__ or ("CUDA error" in str(error) and type(error).__name__ != "OutOfMemoryError")


def main() -> None:
    """Serve the pipe whose file descriptor is the first argument; the data folder is the second."""
    connection = Connection(int(sys.argv[1]))
    try:
        Process(connection, Path(sys.argv[2])).run()
    except SystemExit as end:
        with suppress(OSError):
            print(end.code or "", file=sys.stderr, flush=True)
        os._exit(1 if end.code else 0)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the page is gone: nothing is left to serve, and threads of libraries must not hold us


if __name__ == "__main__":
    main()
