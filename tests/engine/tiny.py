"""Tiny models with random weights, adapters that do something, and rows that can be learnt in a few steps."""

import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from deepdoctor.comparison import Comparison
from deepdoctor.config import DatasetConfig, FinetuneConfig, ModelConfig, SamplingConfig, preset
from deepdoctor.engine.adapters import fresh_adapter
from deepdoctor.engine.compare import Question, compare
from deepdoctor.engine.decode import Decoder, Row, decode
from deepdoctor.engine.model import PROJECTIONS, LoadedModel
from deepdoctor.engine.session import Session, never
from deepdoctor.nano.tokenizer import save_tokenizer, train_tokenizer
from deepdoctor.prompts import STYLES, render_completion, render_question
from deepdoctor.runs import Run

CONTEXT = 512
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False}),
    "llama_tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama_many_heads": (LlamaConfig, {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "llama3_rope": (LlamaConfig, {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 1}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"head_dim": 16, "tie_word_embeddings": False}),
}
SIGNS = {"fever": "an infection", "thirst": "diabetes", "wheeze": "asthma", "jaundice": "hepatitis"}
WORDINGS = (
    "A patient aged {} has {}. What is it?",
    "Which illness explains, in somebody of {} years, {}?",
    "Name the cause: {}-year-old, {}.",
    "The nurse of ward {} reports {}; your diagnosis?",
    "At {} one wakes up with {}. Why?",
    "Give a reason for what a teacher, {}, complains of, namely {}.",
    "{} days after a long journey there is {}. What do you suspect?",
    "My neighbour ({}) suffers from {} since Monday; which disease could that be?",
    "On examination of this {} year old man we find {}. Conclude.",
    "Tell me what lies behind, at age {}, unexpected {}.",
    "Her mother is {}. Now {} has begun. What should come to mind first?",
    "Case {}: the only sign was {}. Solve it.",
)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=24)


def rows(ages: tuple[int, ...] = (20, 40, 60)) -> list[dict[str, str]]:
    """Teachable rows in the dataset's own columns: the sign tells the answer."""
    return [
        {
            "Question": WORDINGS[(number + 3 * place) % len(WORDINGS)].format(age, sign),
            "Complex_CoT": f"The sign is {sign}. That suggests {answer}.",
            "Response": f"It is {answer}.",
        }
        for number, age in enumerate(ages)
        for place, (sign, answer) in enumerate(SIGNS.items())
    ]


def write_rows(file: Path, content: list[dict[str, str]]) -> DatasetConfig:
    """The rows as a JSONL file, and the configuration that reads it."""
    file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return DatasetConfig(source="file", path=str(file))


@cache
def trained_tokenizer() -> Any:
    """A small tokenizer with the R1 distills' special tokens."""
    texts = [
        render_question(row["Question"], style) + render_completion(row["Complex_CoT"], row["Response"], "", style)
        for row in rows()
        for style in STYLES.values()
    ]
    return train_tokenizer(texts, 600)


def save_model(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A random model of that family with its tokenizer, for `from_pretrained`. No weight keeps a value that would hide a mistake."""
    tokenizer = trained_tokenizer()
    kind, settings = FAMILIES[family]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(kind(**{**SHAPE, **settings, "vocab_size": tokenizer.get_vocab_size(), **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.0 if name.endswith("bias") else 1.0))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def plain(folder: Path) -> Any:
    """The model as transformers alone loads it: nothing of ours has ever been near these weights."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save_adapter(
    folder: Path, model_folder: Path, seed: int = 1, strength: float = 0.1, rank: int = 4, projections: tuple[str, ...] = PROJECTIONS
) -> Path:
    """A random LoRA adapter whose second factor is not zero; strength 0 gives one that changes nothing."""
    torch.manual_seed(seed)
    peft = get_peft_model(
        plain(model_folder), LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=list(projections))
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * strength)
    peft.save_pretrained(folder)
    return folder


def with_adapter(model_folder: Path, adapter_folder: Path) -> Any:
    """Base and adapter as plain peft loads them."""
    return PeftModel.from_pretrained(plain(model_folder), adapter_folder).eval()


def open_session(data_dir: Path, model_folder: Path) -> Session:
    """A session with that model loaded."""
    session = Session(data_dir)
    session.load(ModelConfig(name=str(model_folder)))
    return session


def model_of(session: Session) -> LoadedModel:
    """The session's loaded model."""
    assert session.loaded is not None
    return session.loaded


def generate(model: Any, prompt: list[int], new_tokens: int, **settings: Any) -> list[int]:
    """What transformers' own greedy generate writes after the prompt, without the end-of-sequence token; `settings` are generate's."""
    with torch.inference_mode():
        ids = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=2,
            **settings,
        )[0, len(prompt) :].tolist()
    return ids[: ids.index(1)] if 1 in ids else ids


def write(loaded: LoadedModel, *texts: Row) -> list[list[int]]:
    """Decode rows to their ends; the tokens of each."""
    for _ in decode(loaded, list(texts)):
        pass
    return [row.tokens for row in texts]


class Endless(LoadedModel):
    """A loaded model for which no token ends an answer, so that rows write as many as asked: `Endless(**vars(loaded))`."""

    @property
    def eos_id(self) -> int:
        """An id that no token has."""
        return -1


def recorded(decoder: Decoder, *rows: Row) -> list[torch.Tensor]:
    """Decode rows to their ends; of each the logits from which each of its tokens was drawn, [tokens, vocabulary]."""
    found: dict[int, list[torch.Tensor]] = {id(row): [] for row in rows}
    decoder.submit(list(rows))
    while decoder.step():
        for slot, row in enumerate(decoder.rows):
            found[id(row)].append(decoder.state.logits[slot].clone())
    # the first token was drawn from the prompt's logits
    return [torch.stack([row.first_logits, *found[id(row)]]) for row in rows if row.first_logits is not None]


def recipe(**changes: Any) -> FinetuneConfig:
    """A short recipe over `rows()`: 3 of 12 rows held out, no probes unless asked for."""
    short = {"max_steps": 4, "warmup_steps": 1, "held_out_rows": 3, "batch_size": 3, "learning_rate": 0.01, "lora_rank": 4}
    often = {"logging_steps": 1, "eval_steps": 0, "checkpoint_steps": 2, "probe_steps": 0, "probe_tokens": 8}
    return preset("quick").changed(**{**short, **often, **changes})


def new_run(session: Session, dataset: DatasetConfig, **changes: Any) -> Run:
    """A queued run of the session's model."""
    return session.runs.create(model_of(session).config, dataset, recipe(**changes))


def losses(run: Run, name: str = "loss") -> dict[int, float]:
    """One curve of a run: {step: value}."""
    return {row["step"]: row[name] for row in run.curve() if name in row}


class StopAfter:
    """A should_stop that says yes from its n-th question on."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def asked(question: str = "A patient aged 30 has fever. What is it?", sampling: SamplingConfig = GREEDY) -> Question:
    """A question as `compare` takes it."""
    return Question(question, sampling, "article", "run")


def pair(loaded: LoadedModel, folder: Path, question: Question | None = None) -> Comparison:
    """One comparison to its end."""
    return list(compare(loaded, question or asked(), folder, never))[-1]


def busy_training(session: Session) -> Iterator[None]:
    """Optimizer steps on a fresh adapter of the loaded model, one for each item taken."""
    loaded = model_of(session)
    model = fresh_adapter(loaded, recipe())
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=0.01)
    ids = torch.tensor([loaded.tokenizer(render_question("What is thirst?"))["input_ids"]])
    while True:
        model.train()
        model.set_adapter("default")
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        yield


def until(true: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether something becomes true in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not true():
        time.sleep(0.02)
    return true()
