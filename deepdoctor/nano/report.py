"""Did fine-tuning change what it should? Base and tuned answer all held-out cases, and what they wrote is measured against the aims.

    python -m deepdoctor.nano.report [--json] [--data-dir FOLDER] [--run ID] [--rows N] [--preset quick]

Without --run a new run is trained first. Answers are greedy, base and tuned rows of several questions in one batch.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepdoctor.comparison import Transcript, measures
from deepdoctor.config import EMBEDDED_MODEL, PRESETS, DatasetConfig, ModelConfig, SamplingConfig, Settings, preset
from deepdoctor.dataset import HeldOutCase, held_out_examples
from deepdoctor.errors import DeepDoctorError
from deepdoctor.prompts import render_question, style_named
from deepdoctor.runs import Run
from deepdoctor.tokens import encode_examples

QUESTIONS_AT_ONCE = 8
LONGEST_ANSWER = 1200

Side = dict[str, float]


@dataclass(frozen=True)
class Aim:
    """What is hoped for one measure, in words and as a test of (base, tuned)."""

    label: str
    told: str
    holds: Callable[[float, float], bool]


AIMS = {
    "names_key_term": Aim(
        "answers that name the key term",
        "both at least 85%, tuned at most 3 points below base",
        lambda base, tuned: min(base, tuned) >= 0.85 and base - tuned <= 0.03 + 1e-9,
    ),
    "bullets": Aim("answers with bullets", "base at least 90%, tuned at most 5%", lambda base, tuned: base >= 0.9 and tuned <= 0.05),
    "one_paragraph": Aim("answers of one paragraph", "tuned at least 95%", lambda _base, tuned: tuned >= 0.95),
    "reasoning_tokens": Aim("median reasoning tokens", "tuned at most 70% of base", lambda base, tuned: tuned <= 0.7 * base),
    "closed": Aim("thoughts closed", "both at least 98%", lambda base, tuned: min(base, tuned) >= 0.98),
    "held_out_loss": Aim("held-out loss", "down by at least 30%", lambda base, tuned: tuned <= 0.7 * base),
    "held_out_reasoning_loss": Aim("held-out loss of reasoning", "down by at least 30%", lambda base, tuned: tuned <= 0.7 * base),
    "held_out_response_loss": Aim("held-out loss of response", "down by at least 30%", lambda base, tuned: tuned <= 0.7 * base),
}
SHARES = ("names_key_term", "bullets", "one_paragraph", "closed")


def names_key_term(transcript: Transcript, key_term: str) -> bool:
    """Whether the response, not only the thought, contains the key term, in whatever case."""
    return key_term.casefold() in transcript.response.casefold()


def measured(cases: Sequence[HeldOutCase], transcripts: Sequence[Transcript]) -> Side:
    """Measures of one side over its transcripts, one a case: shares (0 to 1) and the median of reasoning tokens.

    A thought that never closed has no answer: it counts as naming nothing, and as neither bullets nor one paragraph.
    """
    styles = [measures(transcript) for transcript in transcripts]
    shares = {
        "names_key_term": [names_key_term(transcript, case.key_term) for case, transcript in zip(cases, transcripts, strict=True)],
        "bullets": [style["bullets"] > 0 for style in styles],
        "one_paragraph": [style["paragraphs"] == 1 and not style["bullets"] and not style["headings"] for style in styles],
        "closed": [transcript.closed for transcript in transcripts],
    }
    side: Side = {name: sum(found) / len(transcripts) for name, found in shares.items()}
    return {**side, "reasoning_tokens": float(statistics.median(style["reasoning_tokens"] for style in styles))}


def by_kind(cases: Sequence[HeldOutCase], base: Sequence[Transcript], tuned: Sequence[Transcript]) -> dict[str, dict[str, Any]]:
    """{asked: {"rows", "base", "tuned"}} with the measures of the cases that ask that."""
    found = {}
    for asked in dict.fromkeys(case.asked for case in cases):
        places = [place for place, case in enumerate(cases) if case.asked == asked]
        chosen = [cases[place] for place in places]
        sides = {name: measured(chosen, [texts[place] for place in places]) for name, texts in (("base", base), ("tuned", tuned))}
        found[asked] = {"rows": len(places), **sides}
    return found


def judged(base: Side, tuned: Side) -> list[dict[str, Any]]:
    """Every measure with its aim: {"name", "label", "base", "tuned", "aim", "reached"}."""
    return [
        {
            "name": name,
            "label": aim.label,
            "base": base[name],
            "tuned": tuned[name],
            "aim": aim.told,
            "reached": aim.holds(base[name], tuned[name]),
        }
        for name, aim in AIMS.items()
    ]


def report(data_dir: Path, model: str, run_id: str | None, preset_name: str, rows: int | None) -> dict[str, Any]:
    """Train (or take) a run, let both sides answer, and measure. Raises DeepDoctorError if that cannot be done."""
    from deepdoctor.engine.adapters import select_adapter
    from deepdoctor.engine.session import Session

    session = Session(data_dir)
    if run_id:
        run = session.runs.get(run_id)
        loaded = session.load(run.model)
    else:
        loaded = session.load(ModelConfig.of({"name": model}))
        run = session.runs.create(loaded.config, DatasetConfig(), preset(preset_name), "nano report")
        _say(f"Fine-tuning run {run.id} …")
        session.finetune(run.id)
    cases = held_out_examples()[:rows]
    adapter = select_adapter(loaded, run.adapter_dir())
    base, tuned = answers(loaded, cases, adapter, run.finetune.prompt_style)
    losses = held_out_losses(loaded, cases, adapter, run)
    sides = [{**measured(cases, texts), **loss} for texts, loss in zip((base, tuned), losses, strict=True)]
    figures = judged(*sides)
    return {
        "model": loaded.config.name,
        "run": run.id,
        "preset": run.finetune.preset,
        "rows": len(cases),
        "finetuning_seconds": run.status.get("wall_seconds"),
        "device": loaded.info.device,
        "figures": figures,
        "reached": all(figure["reached"] for figure in figures),
        "by_kind": by_kind(cases, base, tuned),
        "transcripts": [
            {"asked": case.asked, "key_term": case.key_term, "question": case.example.question, "base": asdict(one), "tuned": asdict(other)}
            for case, one, other in zip(cases, base, tuned, strict=True)
        ],
    }


def answers(loaded: Any, cases: Sequence[HeldOutCase], adapter: str, prompt_style: str) -> tuple[list[Transcript], list[Transcript]]:
    """Greedy answers of base and tuned to every case, both sides of QUESTIONS_AT_ONCE questions in one batch."""
    from deepdoctor.engine.decode import Row, decode, transcript

    sampling = SamplingConfig(temperature=0, max_new_tokens=LONGEST_ANSWER)
    style = style_named(prompt_style)
    written: tuple[list[Transcript], list[Transcript]] = ([], [])
    for start in range(0, len(cases), QUESTIONS_AT_ONCE):
        batch = cases[start : start + QUESTIONS_AT_ONCE]
        prompts = [loaded.tokenizer(render_question(case.example.question, style))["input_ids"] for case in batch]
        sides = [[Row(prompt, side, sampling) for prompt in prompts] for side in (None, adapter)]
        for _ in decode(loaded, [*sides[0], *sides[1]]):
            pass
        for texts, side_rows in zip(written, sides, strict=True):
            texts += [transcript(loaded, row) for row in side_rows]
        _say(f"{start + len(batch)} of {len(cases)} cases answered")
    return written


def held_out_losses(loaded: Any, cases: Sequence[HeldOutCase], adapter: str, run: Run) -> tuple[Side, Side]:
    """Held-out losses of base and tuned, over the reasoning and response that the cases were bundled with."""
    from deepdoctor.engine.evaluate import evaluate

    _say("Measuring held-out losses")
    tokenizer, style = loaded.tokenizer.backend_tokenizer, style_named(run.finetune.prompt_style)
    rows = encode_examples([case.example for case in cases], tokenizer, loaded.info.eos, style, "response_only")
    return evaluate(loaded, rows, None), evaluate(loaded, rows, adapter)


def as_text(result: dict[str, Any]) -> str:
    """The report as a table for people."""
    seconds = result["finetuning_seconds"]
    took = f"{seconds:.0f} s of fine-tuning" if seconds is not None else "fine-tuning not timed"
    lines = [
        f"{result['model']}, run {result['run']} (preset {result['preset']}): {took} on {result['device']}; {result['rows']} cases",
        "",
        f"{'':<32}{'base':>8}{'tuned':>8}  {'reached':<8} aim",
    ]
    for figure in result["figures"]:
        base, tuned = (_shown(figure["name"], figure[side]) for side in ("base", "tuned"))
        lines.append(f"{figure['label']:<32}{base:>8}{tuned:>8}  {'yes' if figure['reached'] else 'no':<8} {figure['aim']}")
    lines += ["", f"{'by what is asked':<32}{'cases':>8}{'key term':>16}{'bullets':>16}{'reasoning':>14}"]
    for asked, kind in result["by_kind"].items():
        pairs = (_pair(kind, "names_key_term"), _pair(kind, "bullets"), _pair(kind, "reasoning_tokens"))
        lines.append(f"{asked:<32}{kind['rows']:>8}{pairs[0]:>16}{pairs[1]:>16}{pairs[2]:>14}")
    return "\n".join(lines)


def _pair(kind: dict[str, Any], name: str) -> str:
    return f"{_shown(name, kind['base'][name])} → {_shown(name, kind['tuned'][name])}"


def _shown(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.0f}" if name == "reasoning_tokens" else f"{value:.3f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. The exit code says whether it could be measured (0, else 2), not whether the aims are reached."""
    defaults = Settings.from_environment()
    parser = argparse.ArgumentParser(prog="python -m deepdoctor.nano.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object, transcripts included")
    parser.add_argument("--data-dir", type=Path, default=defaults.data_dir, help="where runs lie (default: %(default)s)")
    parser.add_argument("--run", help="measure this run instead of training one")
    parser.add_argument("--rows", type=int, help="only the first N held-out cases")
    parser.add_argument("--preset", default="quick", choices=list(PRESETS), help="recipe of the new run (default: %(default)s)")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="base model of the new run (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.rows is not None and options.rows < 1:
        parser.error("--rows must be at least 1")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = report(options.data_dir, options.model, options.run, options.preset, options.rows)
    except DeepDoctorError as error:
        print(error, file=sys.stderr)
        if options.json:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        return 2
    print(json.dumps(result, ensure_ascii=False, indent=2) if options.json else as_text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
