"""The model card of a published run: what it is and was made from, its whole recipe, what was measured, and what was not shown.

Names, questions and answers are other people's text: in tables they are escaped, elsewhere they stand in fences that they cannot close.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from deepdoctor.comparison import FINISH_WORDS, Comparison, Transcript
from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig, FinetuneConfig, ModelConfig
from deepdoctor.figures import loss_curve
from deepdoctor.files import write_text
from deepdoctor.origins import attribution, is_copy, licence_of, llama_version, must_be_named_llama
from deepdoctor.prompts import style_named
from deepdoctor.runs import Run

EXAMPLES_SHOWN = 3
QUOTED = 2_000  # characters of one answer
FIGURE = "loss.png"
DATASET_LICENCES = {"FreedomIntelligence/medical-o1-reasoning-SFT": "Apache-2.0"}  # as their pages say
UNPACKED = "- **Merged into unpacked 4-bit weights**, not into the original's own 16-bit ones: what was lost in 4 bits is lost here too."


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells of one run.

    repo: where it is published; model: the base as the run names it; base_id: its own id on the Hub, None if it is not there;
    final: whether it is the adapter with which the run ended, and not a checkpoint; steps: optimizer steps it was trained for, of so many
    planned; rows: trained on; precision: in which the base was held meanwhile; curve: as `Run.curve` returns it, up to its step;
    unpacked: whether the merged model's weights come from 4-bit ones.
    """

    repo: str
    run: str
    model: ModelConfig
    base_id: str | None
    final: bool
    steps: int
    planned: int
    rows: int
    precision: str
    dataset: DatasetConfig
    recipe: FinetuneConfig
    curve: tuple[dict[str, Any], ...]
    examples: tuple[Comparison, ...]
    unpacked: bool = False


def facts_of(run: Run, comparisons: Iterable[Comparison], repo: str, made: dict[str, Any]) -> CardFacts:
    """The facts of a run's exported adapter, for `repo`. made: config.json of the export.

    Of its comparisons the newest proven ones count, unseen questions first; its are those whose proof names the very weights, since a run
    that went on had other ones under the same name.
    """
    finished = [each for each in comparisons if each.run == run.id and each.finished and each.proof]
    mine = [each for each in finished if each.proof and each.proof.adapter_hash == made["adapter_hash"]]
    proven = [each for each in mine if each.proof and not each.proof.problems()]
    step = int(made["adapter_step"])
    return CardFacts(
        repo=repo,
        run=run.id,
        model=run.model,
        base_id=made["base_id"],
        final=bool(made["final"]),
        steps=step,
        planned=run.status.get("steps") or step,
        rows=run.status["rows"],
        precision=run.status.get("precision") or run.model.precision,
        dataset=run.dataset,
        recipe=run.finetune,
        curve=tuple(row for row in run.curve() if row.get("step", 0) <= step),
        examples=tuple(sorted(proven, key=lambda each: each.seen.get("grade") != "unseen")[:EXAMPLES_SHOWN]),
        unpacked=bool(made["unpacked"]),
    )


def model_card(facts: CardFacts, merged: bool = False) -> str:
    """README.md of the adapter's repository, or with `merged` of the whole model's: metadata and text."""
    title = facts.repo.rsplit("/", 1)[-1] + ("-merged" if merged else "")
    parts = [
        f"---\n{_metadata(facts, merged).to_yaml()}\n---\n\n# {plain(title)}",
        "**Research demo. Not a medical device, not medical advice, not clinically validated. "
        "Do not enter patient-identifiable information.**",
        *(["**Built with Llama**"] if must_be_named_llama(_own(facts)) else []),
        _what_it_is(facts, merged),
        _usage(facts, merged),
        _losses(facts),
        _recipe(facts),
        _examples(facts),
        _not_shown(facts),
        _licences(facts),
    ]
    return "\n\n".join(parts) + "\n"


def write_cards(folder: Path, facts: CardFacts) -> None:
    """Write README.md, loss curve and, where due, Llama's notice into an export's `adapter/` and, if it is there, `merged/`."""
    picture = loss_curve(facts.curve, facts.repo) if _has_losses(facts) else None
    version = llama_version(_own(facts))
    for part, merged in (("adapter", False), ("merged", True)):
        if not (folder / part).is_dir():
            continue
        write_text(folder / part / "README.md", model_card(facts, merged))
        if picture:
            (folder / part / FIGURE).write_bytes(picture)
        if version:
            write_text(folder / part / "NOTICE", f"{attribution(version)}\n")


def plain(text: object) -> str:
    """Any text as Markdown that shows just that text, on one line."""
    return re.sub(r"([\\`*_\[\]<>|&#~!$])", r"\\\1", " ".join(str(text).split()))


def fenced(text: str, most: int = QUOTED) -> str:
    """Any text as a code block that it cannot close, cut off after so many characters."""
    shown = text if len(text) <= most else f"{text[:most].rstrip()} … (cut here)"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown.strip()}\n{fence}"


def _has_losses(facts: CardFacts) -> bool:
    return any("loss" in row or "held_out_loss" in row for row in facts.curve)


def _own(facts: CardFacts) -> str:
    return facts.base_id or facts.model.name


def _metadata(facts: CardFacts, merged: bool) -> ModelCardData:
    language = "en" if facts.dataset.source == "bundled" else facts.dataset.config[:2] if facts.dataset.source == "hub" else None
    return ModelCardData(
        base_model=facts.base_id,
        base_model_relation=("finetune" if merged else "adapter") if facts.base_id else None,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        license=licence_of(_own(facts)).id,
        language=language if language in ("en", "zh") else None,
        datasets=[facts.dataset.name] if facts.dataset.source == "hub" else None,
        tags=["deepdoctor", "lora", "medical", "reasoning", "research-demo"],
    )


def _what_it_is(facts: CardFacts, merged: bool) -> str:
    adapter = f"a LoRA adapter of rank {facts.recipe.lora_rank}"
    at = "the final adapter" if facts.final else f"the checkpoint at step {facts.steps}"
    steps = f"{facts.steps} steps" if facts.steps == facts.planned else f"{facts.steps} of {facts.planned} planned steps"
    lines = [
        f"- **What:** {f'the base model with {adapter} merged into its weights' if merged else adapter}; {at} of run {plain(facts.run)}, "
        f"trained for {steps} with DeepDoctor.",
        f"- **Base model:** {_base(facts)}.",
        *([UNPACKED] if merged and facts.unpacked else []),
        f"- **Training rows:** {facts.rows:,} rows of {_dataset(facts.dataset)}.",
    ]
    return "\n".join(["## What it is", "", *lines])


def _base(facts: CardFacts) -> str:
    revision = f", revision {plain(facts.model.revision)}" if facts.model.revision else ""
    if facts.model.name == EMBEDDED_MODEL:
        return "deepdoctor-nano, the small embedded model that comes with DeepDoctor; it has no id on the Hub"
    if facts.base_id is None:
        return "a local folder of the one who trained; it has no id on the Hub"
    mirror = f", taken from {plain(facts.model.name)}" if facts.model.name != facts.base_id else ""
    copy = "; by its name a quantized copy of a model that is not known here" if is_copy(facts.base_id) else ""
    return f"[{facts.base_id}](https://huggingface.co/{facts.base_id}){mirror}{revision}{copy}"


def _dataset(dataset: DatasetConfig) -> str:
    if dataset.source == "bundled":
        return "the teaching cases that come with DeepDoctor, written for demonstration"
    if dataset.source == "file":
        return f"a file of the one who trained ({plain(Path(dataset.path or '').name)})"
    first = f", out of its first {dataset.first_rows:,}" if dataset.first_rows else ""
    revision = f"revision {plain(dataset.revision)}" if dataset.revision else "no revision pinned"
    link = f"[{plain(dataset.name)}](https://huggingface.co/datasets/{dataset.name})"
    return f"{link}, config {plain(dataset.config)}, split {plain(dataset.split)}, {revision}{first}"


def _usage(facts: CardFacts, merged: bool) -> str:
    repo, base = facts.repo + ("-merged" if merged else ""), facts.base_id or "path/to/the/base/model"
    load = [f'model = AutoModelForCausalLM.from_pretrained("{repo}")']
    if not merged:
        load = [f'base = AutoModelForCausalLM.from_pretrained("{base}")', f'model = PeftModel.from_pretrained(base, "{repo}")']
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    code = [*([] if merged else ["from peft import PeftModel"]), *imports, "", *load]
    code.append(f'tokenizer = AutoTokenizer.from_pretrained("{repo}")')
    return "\n".join(
        [
            *("## How to use it", "", "```python", *code, "```", ""),
            "Put the question into the prompt it was trained with. What is written up to `</think>` is reasoning, the rest is the answer:",
            *("", fenced(style_named(facts.recipe.prompt_style).prompt)),
        ]
    )


def _losses(facts: CardFacts) -> str:
    if not _has_losses(facts):
        return "## Losses\n\nNone were recorded."
    rows = []
    for metric, label in (("held_out_loss", f"held-out, {facts.recipe.held_out_rows} rows"), ("loss", "training")):
        points = [(row["step"], row[metric]) for row in facts.curve if metric in row]
        if points:
            (began, before), (ended, after) = points[0], points[-1]
            # a training loss is the mean over the steps before it; a held-out loss is that of one step's weights and of no others
            measured = metric == "loss" or ended == facts.steps
            now = f"{after:.4f} (step {ended})" if measured else f"not measured at step {facts.steps}"
            rows.append(f"| {label} | {before:.4f} (step {began}) | {now} |")
    table = ["| Loss | Before | After |", "|---|---|---|", *rows]
    return "\n".join(["## Losses", "", *table, "", f"![Training and held-out loss against the step]({FIGURE})"])


def _recipe(facts: CardFacts) -> str:
    values = facts.recipe.model_dump()
    names = [name for name in values if not name.startswith(("probe_", "wandb"))]
    rows = [f"| Precision of the base | {facts.precision} |"]
    rows += [f"| {plain(FinetuneConfig.model_fields[name].title)} | {plain(values[name])} |" for name in names]
    return "\n".join(["## Recipe", "", "| Setting | Value |", "|---|---|", *rows])


def _examples(facts: CardFacts) -> str:
    head = "## Example comparisons\n\n"
    if not facts.examples:
        return f"{head}None were saved for this adapter."
    told = (
        "The newest that were saved, unseen questions first, not picked for their quality. Both sides were decoded together from one "
        "copy of the weights, each from the same seed. What stands in the boxes was written by the models and may be wrong."
    )
    return head + "\n\n".join([told, *(_example(number, each) for number, each in enumerate(facts.examples, 1))])


def _example(number: int, made: Comparison) -> str:
    sampling = f"temperature {made.sampling.temperature:g}, seed {made.sampling.seed}"
    parts = [f"### Example {number}: {plain(made.seen.get('grade', 'not graded'))} in training; {sampling}", fenced(made.question)]
    parts += [f"{label} ({_side(side)}):\n\n{_answer(side)}" for label, side in (("Base", made.base), ("Tuned", made.tuned))]
    return "\n\n".join([*parts, *([f"Reference answer:\n\n{fenced(made.reference)}"] if made.reference else [])])


def _side(side: Transcript) -> str:
    return f"{side.tokens} tokens, {side.reasoning_tokens} of them reasoning; {FINISH_WORDS[side.finish_reason]}"


def _answer(side: Transcript) -> str:
    return fenced(side.response) if side.closed else "No answer: the thought was never closed."


def _not_shown(facts: CardFacts) -> str:
    return f"""## What was not shown

- **No clinical validation.** No clinician has judged this model for this card, and it was tried on no patient.
- **No correctness was measured.** A lower held-out loss says that the dataset's texts became more predictable, not that answers are right.
- **Style is not correctness.** Training on {facts.rows:,} rows changes how answers are written; that they are shorter or more direct does
  not make them truer, and a published answer tuned this way has contradicted its reference.
- **References are hints.** They may come from another model or from exam questions, and may be wrong or outdated.
- **No safety, bias or robustness tests** were made, and the examples above are single draws.

## Intended use and limits

For research and teaching on how fine-tuning changes a reasoning model. Not for diagnosis, treatment, triage or any decision about
somebody's health, and not for patient data. It writes fluent text whether or not it is true."""


def _licences(facts: CardFacts) -> str:
    lines = [*licence_of(_own(facts)).told]
    if facts.dataset.source == "hub":
        own = f"is under {licence}" if (licence := DATASET_LICENCES.get(facts.dataset.name)) else "has a licence of its own: see its page"
        lines.append(f"- The dataset {facts.dataset.name} {own}.")
    return "\n".join(["## Licences", "", *lines])
