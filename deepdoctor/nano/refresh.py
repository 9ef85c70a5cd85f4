"""Teach the shipped model the conditions that changed since it was built: `python -m deepdoctor.nano.refresh`. Minutes on a laptop's CPU.

Pretraining is taken up again, in the same voices, on fresh documents of which about half are about changed conditions; what it was taught
stands in build.json (`taught`). The tokenizer stays. A new build from scratch needs a GPU; this does not.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from deepdoctor.nano.build import (
    CHECKED,
    MODEL_FOLDER,
    Training,
    figures,
    greedy_check,
    pretrain,
    save_model,
    say,
    taught,
    write_figures,
)
from deepdoctor.nano.bundle import HELD_OUT_FILE, write_bundle
from deepdoctor.nano.corpus import make_corpus
from deepdoctor.nano.knowledge import Condition, load_conditions


def main() -> None:
    """Command line of the refresh."""
    arguments = _arguments()
    made = json.loads((MODEL_FOLDER / "build.json").read_text(encoding="utf-8"))
    conditions = load_conditions()
    changed = changed_since(made["taught"], conditions)
    if not changed:
        print("No condition changed since the weights were made.")
        return
    print(f"{len(changed)} conditions changed: {', '.join(condition.name for condition in changed)}.")
    write_bundle()
    started = time.perf_counter()
    torch.manual_seed(arguments.seed)
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).to(arguments.device)
    training = teach(model, tokenizer, emphasised(conditions, changed), arguments, started)
    save_model(model, tokenizer, arguments.out)
    rows = json.loads(HELD_OUT_FILE.read_text(encoding="utf-8"))
    names = {condition.name for condition in changed}
    check = greedy_check(model, tokenizer, rows[:CHECKED])
    check_of_changed = greedy_check(model, tokenizer, [row for row in rows if row["Condition"] in names])
    say(started, f"greedy check: {check}; of changed conditions: {check_of_changed}")
    new = figures(arguments, training, check, time.perf_counter() - started)
    new |= {"greedy_check_of_changed": check_of_changed, "changed": sorted(names)}
    write_figures(arguments.out, made | {"refreshes": [*made.get("refreshes", []), new], "taught": taught()})


def teach(
    model: LlamaForCausalLM, tokenizer: Tokenizer, conditions: list[Condition], arguments: argparse.Namespace, started: float
) -> Training:
    """Train in place on fresh documents about `conditions`, each shown once."""
    documents = arguments.steps * arguments.batch
    corpus = make_corpus(tokenizer, documents, arguments.seed, arguments.dataset_voice, arguments.processes, conditions)
    say(started, f"{documents} documents, {len(corpus.ids):,} tokens")
    return pretrain(model, corpus, arguments, started)


def changed_since(known: dict[str, str], conditions: list[Condition]) -> list[Condition]:
    """The conditions whose facts are not those of `known` (fingerprints by name)."""
    return [condition for condition in conditions if known.get(condition.name) != condition.fingerprint]


def emphasised(conditions: list[Condition], changed: list[Condition]) -> list[Condition]:
    """All conditions, with the changed ones repeated until they are about half of what is drawn."""
    return conditions + changed * max(1, round(len(conditions) / len(changed)) - 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deepdoctor.nano.refresh", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=16, help="documents in a batch")
    parser.add_argument("--rate", type=float, default=5e-4, help="peak of the learning rate")
    parser.add_argument("--dataset-voice", type=float, default=0.02, help="share of thoughts and of answers in the dataset voice")
    parser.add_argument("--seed", type=int, default=3408, help="of documents and order")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that write the corpus")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder for model and tokenizer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
