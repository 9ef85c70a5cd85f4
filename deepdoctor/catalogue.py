"""The models that can be chosen by name, and which of them an app starts with."""

from dataclasses import dataclass
from pathlib import Path

from deepdoctor.config import EMBEDDED_MODEL

GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Known:
    """A model of the Hub: its id, what people call it, parameters in billions, and a mirror packed in 4 bits, which is downloaded in its
    place where it is held in 4 bits anyway, with that mirror's size in GB."""

    name: str
    label: str
    billions: float
    four_bit: str = ""
    four_bit_gb: float = 0.0


KNOWN = (
    Known(
        "unsloth/DeepSeek-R1-Distill-Llama-8B",
        "DeepSeek R1 Distill, Llama 8B",
        8.0,
        four_bit="unsloth/DeepSeek-R1-Distill-Llama-8B-bnb-4bit",
        four_bit_gb=5.7,  # linear layers in NF4, embedding and head in 16 bits
    ),
    Known("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "DeepSeek R1 Distill, Qwen 1.5B", 1.8),
    Known("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "DeepSeek R1 Distill, Qwen 7B", 7.6),
    Known("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "DeepSeek R1 Distill, Qwen 14B", 14.8),
    Known("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "DeepSeek R1 Distill, Qwen 32B", 32.8),
    Known("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "DeepSeek R1 Distill, Llama 70B", 70.6),
)
ON_A_GPU = KNOWN[0]


def default_model(gpus: Path = GPUS) -> str:
    """What an app starts with that was not told: on a machine with an NVIDIA GPU the 8B model, else the embedded one."""
    return ON_A_GPU.name if gpus.is_dir() and any(gpus.iterdir()) else EMBEDDED_MODEL


def known(name: str) -> Known | None:
    """The entry of that id, if there is one."""
    return next((each for each in KNOWN if each.name == name), None)
