"""Whose a base model is: its own id on the Hub, which Llama it is derived from, and what that one's licence asks to be told."""

import re
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# mirrors of other people's models, and whose they are, told by how the name begins
MIRROR = "unsloth/"
OWNERS = (("DeepSeek-", "deepseek-ai"), ("Qwen", "Qwen"), ("Llama-", "meta-llama"), ("Meta-Llama-", "meta-llama"))
LLAMA_LICENSES = {"2": "llama2", "3": "llama3", "3.1": "llama3.1", "3.2": "llama3.2", "3.3": "llama3.3"}


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
    """Which Llama a model is derived from, as far as its name tells: "3.1"; None if from none."""
    name = base.rsplit("/", 1)[-1].lower()
    if not re.search(r"(?:^|[-_])llama", name):
        return None
    if "deepseek-r1-distill-llama" in name:
        return "3.3" if "70b" in name else "3.1"
    found = re.search(r"llama-?(\d(?:\.\d)?)", name)
    return found[1] if found else "3.1"


def attribution(version: str) -> str:
    """What Meta's licence asks to be told."""
    terms = f"Llama {version} is licensed under the Llama {version} Community License"
    return f"{terms}, Copyright © Meta Platforms, Inc. All Rights Reserved."
