"""A small engine process without a model, for tests of the client. What it does is told by the question it is asked:

hello   a waiting word, a snapshot, a finished comparison        refuse   a ConfigError
wait    one snapshot, then nothing until it is stopped           exit N / kill   the process ends
"""

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.engine.protocol import Compare, EngineState, Event, Export, Finetune, Load, Stop
from deepdoctor.errors import ConfigError, ModelError


def answer(request: Compare, text: str, finish: Any = "") -> Comparison:
    """A comparison in which both sides wrote `text`."""
    side = Transcript(text, finish_reason=finish)
    return Comparison(request.question, side, side, request.sampling, request.prompt_style, "fake", request.run)


def compare(connection: Connection, number: int, request: Compare) -> None:
    """Do what the question says."""
    words = request.question.split()
    if words[0] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if words[0] == "exit":
        sys.exit(int(words[1]))
    if words[0] == "refuse":
        connection.send(Event(number, "error", ConfigError("The question is not to my taste.", field="question")))
        return
    connection.send(Event(number, "waiting", "Waiting: the engine is answering."))
    connection.send(Event(number, "snapshot", answer(request, "thou")))
    finish = "stop"
    if words[0] == "wait":
        while connection.recv()[1] != Stop(number):
            pass
        finish = "stopped"
    connection.send(Event(number, "done", answer(request, "thought", finish)))


def serve(connection: Connection, data_dir: Path) -> None:
    """Answer requests until the page's end of the pipe is closed, and note each in `<data_dir>/requests`."""
    while True:
        number, request = connection.recv()
        with (data_dir / "requests").open("a") as file:
            file.write(f"{type(request).__name__} {getattr(request, 'run', '') or getattr(request, 'study', '')}\n")
        if isinstance(request, Compare):
            compare(connection, number, request)
        elif isinstance(request, Load) and request.model.name == "missing":
            connection.send(Event(number, "error", ModelError("There is no model called missing.")))
        elif isinstance(request, Load):
            connection.send(Event(0, "state", EngineState("ready", f"Loaded {request.model.name}")))
            connection.send(Event(number, "done"))
        elif isinstance(request, Export):
            connection.send(Event(number, "progress", "Writing the adapter"))
            connection.send(Event(number, "done", data_dir / "exports" / request.run))
        elif isinstance(request, Finetune):
            connection.send(Event(number, "progress", "Nobody reads this"))


if __name__ == "__main__":
    folder = Path(sys.argv[-1])
    if (folder / "broken").exists():
        sys.exit(1)
    try:
        serve(Connection(int(sys.argv[-2])), folder)
    except EOFError:
        (folder / "ended").touch()
