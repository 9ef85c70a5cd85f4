"""The same fine-tuning by stock libraries, as their own documentation has it: TRL with PEFT and bitsandbytes, and Unsloth with TRL.

Used by benchmarks/finetuning.py, each in a process of its own. Rows, LoRA, optimizer, schedule and rows a step are the article's.
"""

from deepdoctor.engine.accelerator import GIB

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from deepdoctor.config import FinetuneConfig
from deepdoctor.engine.finetune import PlainLossTrainer
from deepdoctor.engine.model import PROJECTIONS


class Clock(TrainerCallback):
    """When each step ended, in seconds since `begin` was called; after `stop_after` steps TRL is told to stop."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.ends = stop_after, list[float]()
        self.begin()

    def begin(self) -> None:
        """Start counting."""
        self._began = time.perf_counter()

    def tick(self) -> None:
        """A step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter() - self._began)

    def on_step_end(self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_kwargs: Any) -> None:
        """TRL says so."""
        self.tick()
        control.should_training_stop = len(self.ends) == self.stop_after


def trl(folder: Path, texts: list[str], recipe: FinetuneConfig, stop_after: int, four_bit: bool) -> dict[str, Any]:
    """Stock TRL + PEFT: 4 bit as documented (2 × 4, its default checkpointing), or 16 bit with the largest batch and no checkpointing."""
    cuda = torch.cuda.is_available()
    more: dict[str, Any] = {"dtype": torch.bfloat16 if cuda else torch.float32}
    if four_bit:
        from transformers import BitsAndBytesConfig

        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": 0} if cuda else None, **more)
    lora = LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, lora_dropout=0.0, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
    )
    torch.manual_seed(recipe.seed)  # the adapter's first values are then ours
    return _train(get_peft_model(model, lora) if not four_bit else model, folder, texts, recipe, stop_after, _more(recipe, four_bit, lora))


def unsloth(folder: Path, texts: list[str], recipe: FinetuneConfig, stop_after: int, gib: float | None) -> dict[str, Any]:
    """Unsloth at the article's settings: 4 bit, batches of 2 added up 4 times, its own checkpointing."""
    from unsloth import FastLanguageModel

    if gib:
        torch.cuda.set_per_process_memory_fraction(gib * GIB / torch.cuda.mem_get_info()[1])
    model, _tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder), max_seq_length=recipe.max_seq_length, dtype=None, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=0,
        target_modules=list(PROJECTIONS),
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=recipe.seed,
    )
    return _train(model, folder, texts, recipe, stop_after, {})


def _more(recipe: FinetuneConfig, four_bit: bool, lora: LoraConfig) -> dict[str, Any]:
    if four_bit:
        return {"peft_config": lora}
    rows = recipe.rows_per_step
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1, "gradient_checkpointing": False}


def _train(model: Any, folder: Path, texts: list[str], recipe: FinetuneConfig, stop_after: int, more: dict[str, Any]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peft = {"peft_config": more.pop("peft_config")} if "peft_config" in more else {}
    cuda = torch.cuda.is_available()
    arguments = {
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulation,
        "max_steps": recipe.max_steps,
        "warmup_steps": recipe.warmup_steps,
        "learning_rate": recipe.learning_rate,
        "optim": recipe.optimizer if cuda else "adamw_torch",
        "weight_decay": recipe.weight_decay,
        "lr_scheduler_type": recipe.scheduler,
        "seed": recipe.seed,
        "max_length": recipe.max_seq_length,
        "logging_steps": 1,
        "bf16": cuda,
        "use_cpu": not cuda,
        "dataset_text_field": "text",
        **more,
    }
    clock, folder_of_its_own = Clock(stop_after), tempfile.mkdtemp(prefix="deepdoctor-peer-")
    trainer = (SFTTrainer if cuda else PlainLossTrainer)(  # TRL's own loss needs Triton
        model=model,
        args=SFTConfig(output_dir=folder_of_its_own, report_to="none", save_strategy="no", disable_tqdm=True, **arguments),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        callbacks=[clock],
        **peft,
    )
    trainer.train()
    return {"ends": clock.ends, "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row]}
