"""Whose a base model is: its own id on the Hub, and its licence, told only where the name leaves no doubt of it."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from deepdoctor.config import EMBEDDED_MODEL

# a mirror of other people's models, and whose they are, told by the name without what says that a copy is in fewer bits
MIRROR = "unsloth"
OWNERS = (
    (re.compile(r"deepseek-(?:r1|v\d)(?:[-.].*)?"), "deepseek-ai"),
    (re.compile(r"qw(?:en|q).*"), "Qwen"),
    (re.compile(r"(?:meta-)?llama-(?:2|3|3\.[123])-\d+b(?:-vision)?(?:-instruct|-chat)?(?:-hf)?|llama-4-.*"), "meta-llama"),
)
BITS = r"(?:bnb|awq|gptq|gguf|exl2|hqq|aqlm|nf4|fp8|int[48]|[2-8]-?bits?|w[48]a(?:8|16)|\d+g|quantized)"
COPY = re.compile(rf"(?i)(?:[-_.](?:unsloth|dynamic))*[-_.]{BITS}(?:[-_.](?:{BITS}|dynamic))*$")
# parts of names as their owners write them; sizes, versions and the like are in capitals
WORDS = ("DeepSeek", "Distill", "Llama", "Meta", "Instruct", "Base", "Coder", "Math", "Thinking", "Vision", "QwQ", "Scout", "Maverick")
CAPITALS = re.compile(r"(?i)a?\d+(?:\.\d+)?[bme]|[rv]\d(?:\.\d)?|vl")
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


def real_id(base: str, said: Iterable[str] = ()) -> str | None:
    """The Hub's own id of a base model: mirrors and copies in fewer bits are traced to the original. None for nano and local folders.

    said: what the files of a copy say that they were made from, as `said_by` reads it: believed if it is named as the copy is. A copy
    whose original is not known keeps its own id; see `is_copy`.
    """
    if not _is_id(base):
        return None
    owner, _, name = base.partition("/")
    plain = COPY.sub("", name)
    if owner.lower() == MIRROR:
        return next((f"{whose}/{_cased(plain)}" for start, whose in OWNERS if start.fullmatch(plain.lower())), f"{MIRROR}/{plain}")
    if plain == name:
        return base
    if owner in {whose for _start, whose in OWNERS}:
        return f"{owner}/{plain}"
    originals = [each for each in said if _is_id(each) and each.partition("/")[2].lower() == plain.lower()]
    return real_id(originals[0]) if originals else base


def is_copy(base: str) -> bool:
    """Whether a model is, by its name, a copy of another one in fewer bits."""
    return bool(COPY.search(base))


def said_by(folder: Path) -> list[str]:
    """What a model's files say that they were made from; often that is a path of whoever made them."""
    found = []
    for file, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        try:
            found.append(json.loads((folder / file).read_text(encoding="utf-8"))[key])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [each for each in found if isinstance(each, str)]


def _is_id(name: str) -> bool:
    if "/" not in name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _cased(name: str) -> str:
    """A model's name as its owner writes it, whatever its case."""
    if llama2 := re.fullmatch(r"llama-2-(\d+b)(-chat)?(?:-hf)?", name.lower()):
        return f"Llama-2-{llama2[1]}{llama2[2] or ''}-hf"
    words = {each.lower(): each for each in WORDS}
    parts = [part.upper() if CAPITALS.fullmatch(part) else words.get(part.lower(), part) for part in name.split("-")]
    cased = re.sub(r"\bqwen", "Qwen", "-".join(parts))
    return f"Meta-{cased}" if re.match(r"Llama-3-\d", cased) else cased


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
