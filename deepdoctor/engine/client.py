"""EngineClient: starts, asks, stops and replaces the engine process. Torch-free; safe to call from any thread."""

import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, BinaryIO

from deepdoctor.comparison import Comparison
from deepdoctor.config import ModelConfig
from deepdoctor.engine.lost import Lost
from deepdoctor.engine.protocol import Compare, EngineState, Event, Export, Finetune, Load, Prepare, Request, Stop
from deepdoctor.errors import EngineError
from deepdoctor.runs import Runs
from deepdoctor.studies.study import Studies

ENGINE = (sys.executable, "-m", "deepdoctor.engine.process")
RESTARTS_PER_MINUTE = 3


class EngineClient:
    """The page's end of the engine process. `start` spawns it; if it dies, a new one is started and the runs it left are marked."""

    def __init__(self, data_dir: Path, model: ModelConfig, program: Sequence[str] = ENGINE) -> None:
        self.data_dir = Path(data_dir)
        self.model = model
        self.program = program
        self.runs = Runs(self.data_dir)
        self.studies = Studies(self.data_dir)
        self._preparing: dict[str, int] = {}
        self._loading = ""
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # apart: sending waits where the pipe is full, until the engine reads on
        self._life = threading.Lock()
        self._queues: dict[int, queue.Queue[Event]] = {}
        self._state = EngineState()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._listener: threading.Thread | None = None
        self._closed = False
        self._deaths: list[float] = []
        self._lost = Lost()

    @property
    def state(self) -> EngineState:
        """Where the engine stands now."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Process id of the engine, or None before `start`."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Mark runs that an earlier process left running, spawn the engine process and let it load the model. Returns at once."""
        during = "The app was restarted while"
        self._lost.mark(self.runs, self.studies, f"{during} it was training.", f"{during} the answers were being prepared.")
        self._spawn()

    def _spawn(self) -> None:
        ours, theirs = Pipe()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [*self.program, str(theirs.fileno()), str(self.data_dir)]
        with self._log() as log, theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if name != "USE_TORCH"} | {"PYTHONUNBUFFERED": "1"},
            )
        with self._lock:
            self._connection = ours
            self._state = EngineState()
        self._listener = threading.Thread(target=self._listen, args=(ours, self._process), name="engine-events", daemon=True)
        self._listener.start()
        with suppress(EngineError):  # if it has died already, the listener tells
            self._post(Load(self.model))

    def _log(self) -> BinaryIO:
        try:
            return (self.data_dir / "engine.log").open("ab")
        except OSError:  # on a full disk the engine works without its log
            return Path(os.devnull).open("ab")

    def _listen(self, connection: Connection, process: subprocess.Popen[bytes]) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._deliver(connection.recv())
        code = process.wait()
        if not self._closed and connection is self._connection:
            self._died(code)

    def _deliver(self, event: Event) -> None:
        with self._lock:
            if event.kind == "state":
                self._state = event.value
            waiting = self._queues.get(event.request)
        if waiting:
            waiting.put(event)

    def _died(self, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        why = f"The engine process {how}; see engine.log in the data folder."
        self._lost.mark(self.runs, self.studies, why, why)
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if now - death < 60] + [now]
        again = len(self._deaths) <= RESTARTS_PER_MINUTE
        error = EngineError(f"{why} {'A new one is starting; please try again.' if again else 'It keeps dying; restart the app.'}")
        with self._lock:
            self._state = EngineState("dead", str(error))
            queues, self._queues = self._queues, {}
        for number, waiting in queues.items():
            waiting.put(Event(number, "error", error))
        with self._life:
            if again and not self._closed:
                self._spawn()

    def _submit(self, request: Request) -> int:
        number = next(self._numbers)
        with self._lock:
            self._queues[number] = queue.Queue()
        self._send(number, request)
        return number

    def _post(self, request: Request) -> int:
        """Hand in a request whose events nobody follows: its traces are the engine's state and the folder of its run or study."""
        number = next(self._numbers)
        self._send(number, request)
        return number

    def _send(self, number: int, request: Request) -> None:
        try:
            if self._connection is None:
                raise EngineError("The engine has not been started.")
            with self._sending:
                self._connection.send((number, request))
        except OSError:
            raise EngineError("The engine process is being replaced; please try again in a moment.") from None

    def _events(self, number: int) -> Iterator[Event]:
        """Events of a request until it is done; an error event is raised. Leaving early stops the work itself."""
        waiting = self._queues.get(number)
        if waiting is None:
            raise EngineError("This request is no longer known; please ask again.")
        ended = False
        try:
            while True:
                event = waiting.get()
                ended = event.kind in ("done", "error")
                if event.kind == "error":
                    raise event.value
                yield event
                if ended:
                    return
        finally:
            if not ended:
                with suppress(EngineError):
                    self._send(0, Stop(number))
            with self._lock:
                self._queues.pop(number, None)

    @property
    def loading(self) -> str:
        """The name of the model that `load` waits for, or ""."""
        return self._loading

    def load(self, model: ModelConfig) -> None:
        """Ask for another base model and wait for it; an engine that is started again after a death loads it too.

        Raises ModelError, and the model that was loaded stays; EngineError while a run trains, a study is prepared, or another model comes.
        """
        with self._lock:
            self.require_free_to_load()
            self._loading = model.name
        try:
            for _event in self._events(self._submit(Load(model))):
                pass
            self.model = model
        finally:
            self._loading = ""

    def require_free_to_load(self) -> None:
        """Raise EngineError, saying what is in the way, while another model must not take the place of this one."""
        self._require_no_load()
        if active := self.runs.active():
            raise EngineError(f"Run {active.name} is training with the loaded model. Stop it first, or wait for it to end.")
        if studies := self.studies.preparing():
            busy = f"The answers of {studies[0].name} are being prepared"
            raise EngineError(f"{busy} with the loaded model. Stop that first, or wait for it to end.")

    def _require_no_load(self) -> None:
        if self._loading:
            raise EngineError(f"{self._loading} is being loaded. Wait until the line at the top says Ready, then try again.")

    def compare(self, request: Compare) -> int:
        """Hand in a comparison and return its number, for `follow` and `stop`. Raises EngineError if the engine is not there."""
        return self._submit(request)

    def follow(self, number: int) -> Iterator[Comparison | str]:
        """What happens to a comparison: words while it waits, then snapshots, at most ten a second.

        The last snapshot is finished, saved and carries its proof. Closing the iterator stops the engine's work; `stop` does so too, but
        keeps what was written. Raises the DeepDoctorError that ended it.
        """
        for event in self._events(number):
            if event.kind in ("waiting", "snapshot", "done"):
                yield event.value

    def stop(self, number: int) -> None:
        """Stop a comparison within one token; `follow` then ends with what was written, marked as stopped."""
        self._send(0, Stop(number))

    def finetune(self, run: str, resume: bool = False) -> None:
        """Queue a run for training; follow it through its folder. Raises EngineError while one trains; a new run is then interrupted."""
        asked, waits = self.runs.get(run), not resume
        try:
            with self._lock:  # of two who resume it at once one is refused
                active = self.runs.active()
                if active and (resume or active.id != run):
                    raise EngineError(f"Run {active.name} is training already. Stop it first, or wait for it to end.")
                self._require_no_load()
                if resume:
                    asked.set_status(state="queued", message="Waiting for the engine")
                    waits = True
            self._post(Finetune(run, resume))
        except EngineError as error:
            if waits:  # or it would seem to for ever
                asked.set_status(state="interrupted", message=str(error))
            raise

    def export(self, request: Export) -> Iterator[str | Path]:
        """Progress lines of an export; the last item is the folder it wrote. Raises DeepDoctorError."""
        for event in self._events(self._submit(request)):
            if event.kind in ("progress", "done"):
                yield event.value

    def stop_training(self) -> None:
        """Stop the run that trains or waits, saving a checkpoint within one step."""
        self._send(0, Stop(0))

    def prepare(self, study: str) -> None:
        """Queue a study whose answers are to be written; follow it through its folder.

        Raises EngineError while another one is prepared or a model comes; the study is then interrupted, or it would seem to wait for ever.
        """
        asked = self.studies.get(study)
        try:
            self._require_no_load()
            if busy := [each for each in self.studies.preparing() if each.is_claimed() and each != asked]:
                raise EngineError(f"The answers of {busy[0].name} are being prepared. Stop that first, or wait for it to end.")
            asked.set_status(state="preparing", message="Waiting for the engine")
            self._preparing[study] = self._post(Prepare(study))
        except EngineError as error:
            asked.set_status(state="interrupted", message=str(error))
            raise

    def stop_preparing(self, study: str) -> None:
        """Stop preparing a study, or waiting to; the answers that are written stay. Raises EngineError if another program does it."""
        asked = self.studies.get(study)
        if study in self._preparing:
            self._send(0, Stop(self._preparing[study]))
        elif asked.is_claimed():
            raise EngineError(f"{asked.name} is being prepared by another program, not by this app. Stop it there, with Ctrl-C.")
        elif asked.state == "preparing":  # a program that was killed left it so
            asked.set_status(state="interrupted", message="Stopped; what is written stays.", process=None)

    def close(self) -> None:
        """End the engine process. A run that was training stays resumable."""
        with self._life:
            self._closed = True
        self._lost.close()
        if self._connection:
            # Closing would wake neither end: our listener is inside a read, which keeps the pipe open. Shutting our direction down ends
            # the engine's loop; the listener ends when the engine does.
            with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
                ours.shutdown(socket.SHUT_WR)
        if self._process:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            self._process.kill()
            self._process.wait()
        if self._listener:
            self._listener.join(timeout=5)
        if self._connection:
            self._connection.close()
        self._state = replace(self._state, phase="dead", message="The engine was closed.")

    def __enter__(self) -> "EngineClient":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
