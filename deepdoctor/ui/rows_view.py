"""How the dataset tab draws: the table of rows, one row's texts, what the checks found, and the picture of lengths. Text in, HTML out."""

from collections.abc import Sequence

from deepdoctor.checks import Report
from deepdoctor.dataset import Example
from deepdoctor.ui.components import escape, number, stats

EXCERPT = 220
BINS = 24
WIDTH, HEIGHT, FOOT, LEFT = 280, 110, 20, 4
PART_TITLES = {"prompt": "Prompt", "reasoning": "Reasoning", "response": "Response", "total": "Whole row"}


def rows_table(shown: Sequence[tuple[int, Example]]) -> str:
    """A page of rows as a table; each question is a button that carries the row's index in `data-row`."""
    body = "".join(_row(index, example) for index, example in shown)
    head = '<th scope="col" class="num">Row</th><th scope="col">Question</th>'
    sizes = '<th scope="col" class="num">Reasoning</th><th scope="col" class="num">Response</th>'
    caption = '<caption class="dd-sr">Rows of the dataset. Choose a question to open its row. Lengths are in characters.</caption>'
    return f'<table class="dd-table dd-rows-table">{caption}<thead><tr>{head}{sizes}</tr></thead><tbody>{body}</tbody></table>'


def _row(index: int, example: Example) -> str:
    question = example.question if len(example.question) <= EXCERPT else f"{example.question[:EXCERPT]}…"
    button = (
        f'<button type="button" class="dd-row-open" data-row="{index}">'
        f'<span class="dd-clip">{escape(question) or "(no question)"}</span></button>'
    )
    sizes = "".join(f'<td class="num">{number(len(text))}</td>' for text in (example.reasoning, example.response))
    return f'<tr><td class="num">{number(index + 1)}</td><td>{button}</td>{sizes}</tr>'


def example_texts(index: int, example: Example) -> str:
    """One row's three texts, whole."""
    parts = (("Question", example.question), ("Reasoning", example.reasoning), ("Response", example.response))
    blocks = "".join(f'<div><h3>{title}</h3><div class="dd-prose">{escape(text) or _nothing()}</div></div>' for title, text in parts)
    return f'<div class="dd-example" data-shown="{index}">{blocks}</div>'


def _nothing() -> str:
    return '<span class="dd-muted">(empty)</span>'


def checks_table(report: Report, kept_apart: int = 0) -> str:
    """Every kind of trouble with its count, some of the rows, and what is done about it. The report is about rows not kept apart."""
    cells = [(report.rows + kept_apart, "rows"), (len(report.kept), "to train on"), (report.left_out, "left out")]
    head = stats([*cells, (kept_apart, "kept apart")] if kept_apart else cells)
    if kept_apart:
        head += (
            '<p class="dd-muted">Rows kept apart give the held-out loss. Their number is set on the Train tab; this is the usual one.</p>'
        )
    body = "".join(_finding(each.title, each.count, each.rows, each.done) for each in report.findings.values())
    columns = '<tr><th scope="col" class="num">Rows</th><th scope="col">Found, and what is done about it</th></tr>'
    return f'{head}<table class="dd-table dd-checks"><thead>{columns}</thead><tbody>{body}</tbody></table>'


def _finding(title: str, count: int, rows: Sequence[int], done: str) -> str:
    if not count:
        return f'<tr class="none"><td class="num">0</td><td>{escape(title)}</td></tr>'
    some = ", ".join(number(row) for row in rows[:8]) + (" …" if count > 8 else "")
    which = f'<br><span class="dd-muted">{escape(done)} {"Row" if count == 1 else "Rows"} {some}.</span>'
    return f'<tr><td class="num"><strong>{number(count)}</strong></td><td>{escape(title)}{which}</td></tr>'


def lengths_picture(report: Report, longest: int) -> str:
    """A histogram of token lengths for each part, over the rows that have a training text."""
    figures = []
    for part, title in PART_TITLES.items():
        lengths = [length for length, total in zip(report.lengths[part], report.lengths["total"], strict=True) if total]
        if lengths:
            figures.append(_figure(part, title, lengths, longest if part == "total" else None))
    return f'<div class="dd-lengths">{"".join(figures)}</div>'


def _figure(part: str, title: str, lengths: list[int], limit: int | None) -> str:
    ordered = sorted(lengths)
    middle, most = ordered[(len(ordered) - 1) // 2], ordered[-1]
    said = f"median {number(middle)}, longest {number(most)} tokens"
    caption = f'<figcaption><strong>{escape(title)}</strong> <span class="dd-muted">{said}</span></figcaption>'
    return f"<figure>{caption}{_histogram(part, f'{title}: {said}', ordered, limit)}</figure>"


def _histogram(part: str, title: str, ordered: list[int], limit: int | None) -> str:
    low, high = ordered[0], ordered[-1]
    step = max(1, -(-(high - low + 1) // BINS))
    counts = [0] * (-(-(high - low + 1) // step))
    for length in ordered:
        counts[(length - low) // step] += 1
    tallest = max(counts)
    slot, room = (WIDTH - 2 * LEFT) / len(counts), HEIGHT - FOOT - 14
    bars = []
    for place, count in enumerate(counts):
        start, size = low + place * step, room * count / tallest
        over = " over" if limit is not None and start > limit else ""
        box = f'x="{LEFT + place * slot + 0.5:.1f}" y="{HEIGHT - FOOT - size:.1f}" width="{max(1.0, slot - 1):.1f}" height="{size:.1f}"'
        bars.append(f'<rect class="bar{over}" {box}><title>{_span(start, step)}: {count_rows(count)}</title></rect>')
    line = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{HEIGHT - FOOT + 0.5}" y2="{HEIGHT - FOOT + 0.5}"/>'
    ends = f'<text x="{LEFT}" y="{HEIGHT - 6}">{number(low)}</text>' if high > low else ""
    ends += f'<text x="{WIDTH - LEFT}" y="{HEIGHT - 6}" text-anchor="end">{number(high)} tokens</text>'
    ends += f'<text x="{LEFT}" y="10">up to {count_rows(tallest)} a bar</text>'
    ends += _limit_line(limit, low, high)
    summary = f"{count_rows(len(ordered))}, from {number(low)} to {number(high)} tokens, {number(step)} tokens a bar."
    labels = f'<title id="dd-len-{part}">{escape(title)}</title><desc id="dd-lend-{part}">{escape(summary)}</desc>'
    named = f'role="img" aria-labelledby="dd-len-{part} dd-lend-{part}"'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {named}>{labels}{"".join(bars)}{line}{ends}</svg>'


def _limit_line(limit: int | None, low: int, high: int) -> str:
    if limit is None or not low <= limit < high:
        return ""
    place = LEFT + (WIDTH - 2 * LEFT) * (limit - low) / (high - low)
    drawn = f'<line class="limit" x1="{place:.1f}" x2="{place:.1f}" y1="14" y2="{HEIGHT - FOOT}"/>'
    return f'{drawn}<text x="{place:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{number(limit)}</text>'


def _span(start: int, step: int) -> str:
    return f"{number(start)} tokens" if step == 1 else f"{number(start)} to {number(start + step - 1)} tokens"


def count_rows(count: int) -> str:
    """A number of rows in words."""
    return "1 row" if count == 1 else f"{number(count)} rows"
