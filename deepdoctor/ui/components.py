"""Small parts that every tab uses: text made safe for the page, stat rows, badges, empty states, and errors told to the user."""

import functools
import html
import inspect
import queue
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gradio as gr

from deepdoctor.comparison import Comparison
from deepdoctor.errors import DeepDoctorError, is_disk_full, told

T = TypeVar("T")
BANNER = "Research demo. Not a medical device, not medical advice, not clinically validated. Do not enter patient-identifiable information."
# For every event: no overlay while it runs, no API. Without the empty list the browser would copy the whole state of each output, and of
# all that lies inside it, several times an event, though no progress is shown: with our timers that kept it busy for ever.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
BOLD = re.compile(r"\*\*(\S(?:[^*\n]*\S)?)\*\*")
BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+(.*)$")
SNAPSHOTS_PER_SECOND = 10
NUMBERED = re.compile(r"^\s*\d{1,2}[.)]\s+")


def escape(text: object) -> str:
    """Any text as HTML that shows exactly that text: no markup, no attribute, no `${…}` or `{{…}}` template survives."""
    return html.escape(str(text)).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


def render_answer(text: str) -> str:
    """An answer as HTML: everything escaped, then only **bold**, paragraphs and list lines are recognised."""
    blocks: list[str] = []
    items: list[str] = []
    kind = ""
    for line in text.strip().split("\n"):
        bullet = BULLET.match(line)
        wanted = ("ol" if NUMBERED.match(line) else "ul") if bullet else ""
        if items and wanted != kind:
            blocks.append(f"<{kind}>{''.join(items)}</{kind}>")
            items = []
        kind = wanted
        if bullet:
            items.append(f"<li{_start(line)}>{_inline(bullet.group(1))}</li>")
        elif line.strip():
            blocks.append(f"<p>{_inline(line.strip())}</p>")
    if items:
        blocks.append(f"<{kind}>{''.join(items)}</{kind}>")
    return "".join(blocks)


def _start(line: str) -> str:
    number = NUMBERED.match(line)
    return f' value="{int(re.sub(r"[^0-9]", "", number.group()))}"' if number else ""


def _inline(line: str) -> str:
    return BOLD.sub(r"<strong>\1</strong>", escape(line))


def badge(text: str, kind: str = "") -> str:
    """A small labelled mark. kind: "", "seen", "near-seen", "unseen", "ok", "warn" or "bad"."""
    return f'<span class="dd-badge {escape(kind)}">{escape(text)}</span>'


def number(value: float) -> str:
    """A count for reading: thousands separated, and as few decimals as tell it."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"


def stats(pairs: Iterable[tuple[object, str]]) -> str:
    """A row of (number or word, label), as a description list."""
    cells = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(_shown(value))}</dd></div>" for value, label in pairs)
    return f'<dl class="dd-stats">{cells}</dl>'


def _shown(value: object) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def empty_state(title: str, text: str) -> str:
    """What a panel shows before there is anything to show: what will be here, and how to get it."""
    return f'<div class="dd-empty"><p class="dd-empty-title">{escape(title)}</p><p>{escape(text)}</p></div>'


def note(text: str, kind: str = "") -> str:
    """A sentence set apart. kind: "", "warn", "bad" or "ok"."""
    return f'<p class="dd-note {escape(kind)}">{escape(text)}</p>'


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (DeepDoctorError, OSError) as error:
        if not isinstance(error, DeepDoctorError) and not is_disk_full(error):
            raise
        raise gr.Error(escape(told(error)), title="That did not work", duration=12, print_exception=False) from error


def told_in_place(work: Callable[[], Any], told: Callable[[str], Any]) -> Iterator[Any]:
    """What `work` returns; what it refuses is yielded as `told` of a note that stays on the page, then raised: a passing message alone
    is easily missed."""
    try:
        yield work()
    except DeepDoctorError as error:
        yield told(note(str(error), "bad"))
        raise


def user_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an event handler, plain or generator: a DeepDoctorError or a full disk becomes a message on the page. Others stay errors."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any, **named: Any) -> Iterator[Any]:
            with _told():
                yield from handler(*args, **named)

        return generator

    @functools.wraps(handler)
    def plain(*args: Any, **named: Any) -> Any:
        with _told():
            return handler(*args, **named)

    return plain


def overheard(work: Callable[[Callable[[str], None]], T]) -> Generator[str, None, T]:
    """Do work in a thread of its own; yields what it says, and returns or raises what it does. The work ends even if nobody listens."""
    said: queue.Queue[str | None] = queue.Queue()
    found: list[T] = []
    raised: list[Exception] = []

    def done() -> None:
        try:
            found.append(work(said.put))
        except Exception as error:
            raised.append(error)
        finally:
            said.put(None)

    threading.Thread(target=done, name="overheard", daemon=True).start()
    while (line := said.get()) is not None:
        yield line
    if raised:
        raise raised[0]
    return found[0]


def status(html: str) -> str:
    """HTML whose changes are read out."""
    return f'<div role="status">{html}</div>'


def limited(items: Iterator[Comparison | str]) -> Generator[Comparison | str, None, None]:
    """The items without the snapshots that come sooner than a tenth of a second after the one before; closes `items` when closed."""
    shown = 0.0
    try:
        for item in items:
            if isinstance(item, str) or item.finished or time.monotonic() - shown >= 1 / SNAPSHOTS_PER_SECOND:
                shown = time.monotonic()
                yield item
    finally:
        close = getattr(items, "close", None)
        if close:
            close()
