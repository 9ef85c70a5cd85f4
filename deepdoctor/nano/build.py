"""Build deepdoctor-nano from its conditions: `python -m deepdoctor.nano.build`. Seeded; minutes on one GPU."""

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from deepdoctor.nano.bundle import HELD_OUT_FILE, write_bundle
from deepdoctor.nano.corpus import Corpus, make_corpus, tokenizer_texts
from deepdoctor.nano.knowledge import load_conditions
from deepdoctor.nano.tokenizer import BOS_ID, EOS_ID, LONGEST, PAD_ID, save_tokenizer, train_tokenizer
from deepdoctor.prompts import ARTICLE, render_question, split_completion

MODEL_FOLDER = Path(__file__).with_name("model")
WARMUP_SHARE = 0.03
# the question's words cannot be foretold: learning them would cost capacity that the answer needs
PROMPT_WEIGHT = 0.1
LENGTH_STEP = 32
CHECKED = 32


@dataclass(frozen=True)
class Training:
    """What a training came to: optimizer steps, mean loss of the last fiftieth of them, tokens read (padding left out), seconds."""

    steps: int
    loss: float
    tokens: int
    seconds: float


def main() -> None:
    """Command line of the build."""
    arguments = _arguments()
    write_bundle()
    if arguments.cases_only:
        return
    started = time.perf_counter()
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(tokenizer_texts(min(arguments.documents, 20_000), arguments.seed))
    save_tokenizer(tokenizer, arguments.out)
    say(started, f"tokenizer: {tokenizer.get_vocab_size()} ids")
    corpus = make_corpus(tokenizer, arguments.documents, arguments.seed, arguments.dataset_voice, arguments.processes)
    median_prompt, median_rest = np.median(corpus.prompts), np.median(corpus.lengths - corpus.prompts)
    say(
        started, f"corpus: {len(corpus)} documents, {len(corpus.ids):,} tokens; medians: prompt {median_prompt:.0f}, rest {median_rest:.0f}"
    )
    model = new_model(tokenizer).to(arguments.device)
    say(started, f"model: {model.num_parameters():,} parameters on {arguments.device}")
    training = pretrain(model, corpus, arguments, started)
    save_model(model, tokenizer, arguments.out)
    rows = json.loads(HELD_OUT_FILE.read_text(encoding="utf-8"))[:CHECKED]
    check = greedy_check(model, tokenizer, rows)
    say(started, f"greedy check on {CHECKED} held-out questions: {check}")
    made = figures(arguments, training, check, time.perf_counter() - started)
    made |= {"parameters": model.num_parameters(), "taught": taught()}
    write_figures(arguments.out, made)


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A fresh model of about 4.9 million parameters: its weights in 16 bits stay under 10 MB."""
    ids: dict[str, Any] = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, **ids)
    return model


def batches(corpus: Corpus, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """One epoch of document numbers in batches of similar length, in random order."""
    noise = generator.uniform(0, LENGTH_STEP, len(corpus))
    order = np.argsort(corpus.lengths + noise, kind="stable")
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    generator.shuffle(chunks)
    return chunks


def batch_of(corpus: Corpus, documents: np.ndarray, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (documents, longest + 1, rounded up) and the weight of each id as a target: 0 for padding and BOS, PROMPT_WEIGHT, or 1."""
    longest = int(corpus.lengths[documents].max())
    width = -(-(longest - 1) // LENGTH_STEP) * LENGTH_STEP + 1
    ids = np.full((len(documents), width), pad, dtype=np.int64)
    weights = np.zeros((len(documents), width), dtype=np.float32)
    for row, number in enumerate(documents):
        start, end, prompt = corpus.starts[number], corpus.starts[number + 1], corpus.prompts[number]
        ids[row, : end - start] = corpus.ids[start:end]
        weights[row, 1:prompt] = PROMPT_WEIGHT
        weights[row, prompt : end - start] = 1
    return torch.from_numpy(ids), torch.from_numpy(weights)


def pretrain(model: LlamaForCausalLM, corpus: Corpus, arguments: argparse.Namespace, started: float) -> Training:
    """Train in place for `arguments.steps` steps, printing the loss a hundred times."""
    generator = np.random.default_rng(arguments.seed)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95), fused=arguments.device == "cuda")
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, max(1, int(arguments.steps * WARMUP_SHARE)), arguments.steps)
    model.train()
    begun, tokens = time.perf_counter(), 0
    losses: list[torch.Tensor] = []
    waiting: list[np.ndarray] = []
    every = max(1, arguments.steps // 100)
    for step in range(1, arguments.steps + 1):
        waiting = waiting or batches(corpus, arguments.batch, generator)
        documents = waiting.pop()
        ids, weights = batch_of(corpus, documents, PAD_ID)
        loss = _loss(model, ids.to(arguments.device, non_blocking=True), weights.to(arguments.device, non_blocking=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        tokens += int(corpus.lengths[documents].sum())
        if step % every == 0:
            mean = torch.stack(losses[-every:]).mean().item()
            say(started, f"step {step}/{arguments.steps}  loss {mean:.4f}  {tokens / (time.perf_counter() - begun):,.0f} tokens/s")
    last = torch.stack(losses[-max(1, arguments.steps // 50) :]).mean().item()
    return Training(arguments.steps, last, tokens, time.perf_counter() - begun)


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    # no attention mask: padding stands on the right, so causal attention never looks at it, and sdpa keeps its fast kernel
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (each * wanted).sum() / wanted.sum()


@torch.inference_mode()
def greedy_check(model: LlamaForCausalLM, tokenizer: Tokenizer, rows: list[dict[str, str]], most_new: int = 600) -> dict[str, float]:
    """Shares of held-out `rows` whose greedy answer names the key term, and whose thought was closed."""
    model.eval()
    prompts = [tokenizer.encode(render_question(row["Question"], ARTICLE)).ids for row in rows]
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD_ID] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": most_new}
    written: Any = model.generate(ids, attention_mask=ids.ne(PAD_ID).long(), **settings)  # type: ignore[misc]
    named = closed = 0
    for row, tokens in zip(rows, written[:, width:].tolist(), strict=True):
        _, response, ended = split_completion(tokenizer.decode(tokens))
        named += row["Key_Term"].lower() in response.lower()
        closed += ended
    return {"names_key_term": named / len(rows), "closed": closed / len(rows)}


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights in 16 bits, configuration and tokenizer into `folder`; the model keeps the rounded weights in 32 bits."""
    model.bfloat16().save_pretrained(folder)
    model.float()
    save_tokenizer(tokenizer, folder)


def figures(arguments: argparse.Namespace, training: Training, check: dict[str, float], seconds: float) -> dict[str, Any]:
    """What a training was asked for, on what it ran, and what it came to."""
    cuda = arguments.device == "cuda"
    return {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items() if name != "out"},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
        | {"tokenizers": tokenizers.__version__, "numpy": np.__version__},
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "seconds": round(seconds, 1),
        "training_seconds": round(training.seconds, 1),
        "steps": training.steps,
        "final_loss": round(training.loss, 4),
        "tokens_seen": training.tokens,
        "greedy_check": check,
    }


def taught() -> dict[str, str]:
    """The fingerprint of every condition as it now stands, by name."""
    return {condition.name: condition.fingerprint for condition in load_conditions()}


def write_figures(folder: Path, made: dict[str, Any]) -> None:
    """Put build.json beside the weights."""
    (folder / "build.json").write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def say(started: float, line: str) -> None:
    print(f"[{time.perf_counter() - started:6.1f} s] {line}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deepdoctor.nano.build", description=__doc__)
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps")
    parser.add_argument("--documents", type=int, default=300_000, help="fresh documents in the corpus; several epochs run over them")
    parser.add_argument("--batch", type=int, default=128, help="documents in a batch")
    parser.add_argument("--dataset-voice", type=float, default=0.02, help="share of thoughts and of answers in the dataset voice")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak of the learning rate")
    parser.add_argument("--seed", type=int, default=3407, help="of cases, weights and order")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that write the corpus")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder for model and tokenizer")
    parser.add_argument("--cases-only", action="store_true", help="write only the bundled rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
