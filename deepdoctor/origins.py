"""Whose a base model is: its own id on the Hub, and its licence, told only where the name leaves no doubt of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from deepdoctor.config import EMBEDDED_MODEL

# mirrors of other people's models, and whose they are, told by how the name begins
MIRROR = "unsloth/"
OWNERS = (("DeepSeek-", "deepseek-ai"), ("Qwen", "Qwen"), ("Llama-", "meta-llama"), ("Meta-Llama-", "meta-llama"))
LLAMAS = {"2": "Llama 2", "3": "Meta Llama 3", "3.1": "Llama 3.1", "3.2": "Llama 3.2", "3.3": "Llama 3.3", "4": "Llama 4"}
# a version is not followed by what would make it a size, a number of bits or another version
LLAMA = re.compile(r"(?:^|[-_])(?:(code)-?)?llama(?:[-_]?(3[._][123]|[234])(?![._]?\d|b|-bit|-[123](?:-|$)))?")
DISTILLED_LLAMAS = {"8b": "3.1", "70b": "3.3"}
MIT = "- DeepSeek released the distilled weights under the MIT licence; the licence of the model they were distilled into applies too."
# what Qwen released under Apache-2.0; of Qwen2.5 the 3B and the 72B are under licences of its own
SIZE = r"(?:0\.5b|1\.5b|7b|14b|32b)"
APACHE_QWEN = re.compile(
    rf"qwen/(?:qwen2\.5-(?:coder-|math-)?{SIZE}(?:-instruct)?"
    r"|qwen3-(?:0\.6b|1\.7b|4b|8b|14b|32b|30b-a3b|235b-a22b)(?:-base|-instruct-2507|-thinking-2507)?|qwq-32b)"
)
MIT_QWEN = re.compile(r"deepseek-ai/deepseek-r1-(?:distill-qwen-(?:1\.5b|7b|14b|32b)|0528-qwen3-8b)")


@dataclass(frozen=True)
class Licence:
    """The licence of a base model: its id in the Hub's metadata, "other" if it is not known, and the lines that tell of it."""

    id: str
    told: tuple[str, ...]


NOT_KNOWN = Licence(
    "other",
    (
        "- The base model's name does not tell its licence, which applies: look it up at its source, and write it into this card's head.",
        "- A model derived from Llama 3 or a later Llama must say so, and be named accordingly.",
    ),
)


def real_id(base: str) -> str | None:
    """The Hub's own id of a base model: mirrors and their 4-bit copies are traced to the original. None for nano and local folders."""
    if "/" not in base or Path(base).exists():
        return None
    try:
        validate_repo_id(base)
    except HFValidationError:
        return None
    if not base.startswith(MIRROR):
        return base
    name = re.sub(r"(-unsloth)?-bnb-4bit$", "", base.removeprefix(MIRROR))
    return next((f"{owner}/{name}" for start, owner in OWNERS if name.startswith(start)), f"{MIRROR}{name}")


def llama_version(base: str) -> str | None:
    """Which Llama a model is derived from, if its name tells that: "3.1"; None if from none, or if it does not tell which."""
    name = base.rsplit("/", 1)[-1].lower()
    if distilled := re.search(r"deepseek-r1-distill-llama-([\d.]+b)(?![a-z0-9])", name):
        return DISTILLED_LLAMAS.get(distilled[1])
    found = LLAMA.search(name)
    if not found:
        return None
    return "2" if found[1] else found[2] and found[2].replace("_", ".")


def must_be_named_llama(base: str) -> bool:
    """Whether the base's licence asks that what is derived from it is named and marked as such; from Llama 3 on it does."""
    return llama_version(base) not in (None, "2")


def licence_of(base: str) -> Licence:
    """The licence of a base model, by its own id on the Hub, the path of its folder, or "nano"."""
    name = base.lower()
    if version := llama_version(base):
        built = "Built with Llama. " if must_be_named_llama(base) else ""
        llama = f"- {built}{attribution(version)} Its acceptable use policy applies."
        return Licence(f"llama{version}", (MIT, llama) if name.startswith("deepseek-ai/") else (llama,))
    if base == EMBEDDED_MODEL:
        return Licence("apache-2.0", ("- The base model, its teaching cases and this model are released under Apache-2.0.",))
    if MIT_QWEN.fullmatch(name):
        return Licence("mit", (MIT, "- Distilled into a model of Qwen that was released under Apache-2.0."))
    if APACHE_QWEN.fullmatch(name):
        return Licence("apache-2.0", ("- Qwen released the base model under Apache-2.0.",))
    return NOT_KNOWN


def attribution(version: str) -> str:
    """What Meta's licence asks to be told."""
    terms = f"{LLAMAS[version]} is licensed under the {LLAMAS[version]} Community License"
    return f"{terms}, Copyright © Meta Platforms, Inc. All Rights Reserved."
