"""The two ways to load a base model and to attach LoRA to it: Unsloth on CUDA, transformers and PEFT everywhere else."""

from deepdoctor.engine.accelerator import HAS_UNSLOTH

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from deepdoctor.engine.head_loss import without_compiling
from deepdoctor.engine.protocol import LONGEST_TRAINED
from deepdoctor.errors import ModelError

TRAINED = "default"


class Backend(Protocol):
    """What the engine asks of a library that loads models."""

    name: str

    def load(self, folder: str, dtype: torch.dtype, four_bit: bool) -> tuple[Any, list[str]]:
        """A causal language model from a folder in numbers of `dtype`, and the names of weights that the folder lacks."""

    def attach(self, model: Any, lora: LoraConfig, seed: int, checkpointing: bool) -> PeftModel:
        """The model, bare or with adapters, with one more adapter called TRAINED that is ready to be trained."""

    def training(self) -> AbstractContextManager[None]:
        """What holds while the trainer runs."""

    def reading(self, model: Any, tokens: int) -> AbstractContextManager[None]:
        """What holds while the bare model, or one around it, reads a text of so many tokens."""

    def rest(self, model: Any) -> None:
        """Leave training: no dropout, no checkpointing, nothing that needs a gradient."""


class Transformers:
    """Plain transformers and PEFT: any device, 16 and 32 bit."""

    name = "transformers"

    def load(self, folder: str, dtype: torch.dtype, four_bit: bool) -> tuple[Any, list[str]]:
        """By `AutoModelForCausalLM`, which fills what is missing with noise and only warns."""
        if four_bit:
            raise ModelError("4-bit weights need an NVIDIA GPU with Unsloth and bitsandbytes; choose another precision.")
        answer: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # told by name instead
            output_loading_info=True,
        )
        model, found = answer
        return model, sorted(found["missing_keys"]) + sorted(str(each[0]) for each in found["mismatched_keys"])

    def attach(self, model: Any, lora: LoraConfig, seed: int, checkpointing: bool) -> PeftModel:  # noqa: ARG002
        """By PEFT."""
        if isinstance(model, PeftModel):
            model.add_adapter(TRAINED, lora)
            return model
        return get_peft_model(model, lora, adapter_name=TRAINED)

    def training(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def reading(self, model: Any, tokens: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing."""
        return nullcontext()

    def rest(self, model: Any) -> None:
        """Evaluation mode without gradient checkpointing."""
        if model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()


class Unsloth:
    """Unsloth's loading and its faster forward and backward pass: CUDA, 16 bit and NF4."""

    name = "unsloth"

    def load(self, folder: str, dtype: torch.dtype, four_bit: bool) -> tuple[Any, list[str]]:
        """By `FastLanguageModel`; its tokenizer, which it changes, is not used."""
        from unsloth import FastLanguageModel

        model, _tokenizer = FastLanguageModel.from_pretrained(
            model_name=folder,
            max_seq_length=longest_for(folder),
            dtype=dtype,
            load_in_4bit=four_bit,
            device_map={"": 0},
        )
        names = {name for name, _ in model.named_parameters()} - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
        return model, sorted(names - stored_names(Path(folder)))

    def attach(self, model: Any, lora: LoraConfig, seed: int, checkpointing: bool) -> PeftModel:
        """By `get_peft_model`, or for a model with adapters by PEFT and the same patches again."""
        from unsloth import FastLanguageModel

        kind = "unsloth" if checkpointing else False
        if isinstance(model, PeftModel):
            model.add_adapter(TRAINED, lora)
            model.set_adapter(TRAINED)
            FastLanguageModel.patch_peft_model(model, use_gradient_checkpointing=kind)
            return FastLanguageModel.for_training(model, use_gradient_checkpointing=kind) or model
        made = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=sorted(lora.target_modules or ()),
            bias="none",
            use_gradient_checkpointing=kind,
            random_state=seed,
            use_rslora=lora.use_rslora,
        )
        return FastLanguageModel.for_training(made, use_gradient_checkpointing=kind) or made

    def training(self) -> AbstractContextManager[None]:
        """Losses without anything to compile first."""
        return without_compiling()

    @contextmanager
    def reading(self, model: Any, tokens: int) -> Iterator[None]:
        """The text is read to its end: of one that is longer than Unsloth was told of it leaves out the rest without a word."""
        told = getattr(model.model, "max_seq_length", tokens)
        if tokens <= told:
            yield
            return
        model.model.max_seq_length = tokens
        try:
            yield
        finally:
            model.model.max_seq_length = told

    def rest(self, model: Any) -> None:
        """Evaluation mode without gradient checkpointing."""
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(model)
        # marks the model as generating, which changes what its forward pass takes
        for module in model.modules():
            vars(module).pop("_flag_for_generation", None)
        model.eval()


def longest_for(folder: str) -> int:
    """Tokens of the longest row that Unsloth is told of: never more than the model reads, or it would stretch the model's rotations."""
    return min(LONGEST_TRAINED, AutoConfig.from_pretrained(folder).max_position_embeddings)


def stored_names(folder: Path) -> set[str]:
    """Names of the tensors in a model's safetensors files."""
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found.update(opened.keys())
    return found


def backend_for(device: torch.device, dtype: torch.dtype) -> Backend:
    """Unsloth for 16-bit and 4-bit weights on CUDA where it is installed, else transformers."""
    on_gpu = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return Unsloth() if HAS_UNSLOTH and on_gpu else Transformers()
