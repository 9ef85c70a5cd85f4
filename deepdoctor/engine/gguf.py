"""GGUF: a merged model as the one file that llama.cpp, Ollama and LM Studio read, written by Unsloth's converter."""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from deepdoctor.engine.protocol import GGUF_KINDS
from deepdoctor.errors import RunError

MODULE = "unsloth_zoo.llama_cpp"
# what llama.cpp's converter writes itself; anything smaller is made from it by llama-quantize
DIRECT = ("bf16", "f16", "q8_0")
HOW_TO_GET = (
    "GGUF needs Unsloth (pip install -r requirements.txt, on a machine with an NVIDIA GPU) and a built llama.cpp in ~/.unsloth/llama.cpp, "
    "or in the folder that UNSLOTH_LLAMA_CPP_PATH names. Get them and restart, or export without GGUF."
)


class Converter(Protocol):
    """What is used of Unsloth's module."""

    def check_llama_cpp(self) -> tuple[str, str]:
        """Where llama.cpp's quantizer and converter are. Raises RuntimeError if they are not there."""

    def convert_to_gguf(self, model_name: str, input_folder: str, **options: Any) -> tuple[list[str], bool]:
        """Write `model_name`, a path that ends in .gguf; returns the files made."""

    def quantize_gguf(self, input_gguf: str, output_gguf: str, quant_type: str, **options: Any) -> str:
        """Make a smaller file of a GGUF file."""


def unsloth_converter(name: str = MODULE) -> Converter:
    """Unsloth's converter. Raises RunError that says what is missing and how to get it."""
    try:
        module: Any = importlib.import_module(name)
    except Exception as error:  # without a GPU its import raises errors of several kinds
        raise RunError(f"No GGUF can be written here: Unsloth's converter could not be loaded ({_first(error)}). {HOW_TO_GET}") from error
    converter: Converter = module
    return converter


def require_parts(converter: Converter, kind: str) -> tuple[str, str]:
    """Where llama.cpp's quantizer and converter are. Raises RunError for an unknown kind, or if a part is missing."""
    if kind not in GGUF_KINDS:
        raise RunError(f"There is no GGUF {kind} here. Choose among: {', '.join(GGUF_KINDS)}.")
    try:
        return converter.check_llama_cpp()
    except Exception as error:
        raise RunError(f"No GGUF can be written here: {_first(error)}. {HOW_TO_GET}") from error


def convert(converter: Converter, merged: Path, target: Path, kind: str) -> Path:
    """Write the merged 16-bit model to the file `target` (*.gguf) in numbers of that kind; return it.

    Raises RunError with the converter's own words; then nothing of it is left.
    """
    quantizer, script = require_parts(converter, kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    first = target if kind in DIRECT else target.with_name(f"{target.stem}.bf16-first.gguf")
    first_kind = kind if kind in DIRECT else "bf16"
    whole = False
    try:
        with nothing_installed():
            # one file whatever its size: shards would be several
            made, _ = converter.convert_to_gguf(
                str(first), str(merged), quantization_type=first_kind, converter_location=script, max_shard_size="2000GB"
            )
            if kind not in DIRECT:
                converter.quantize_gguf(str(first), str(target), kind, quantizer_location=quantizer, print_output=False)
        if not target.is_file():
            raise RuntimeError(f"it wrote {', '.join(Path(file).name for file in made) or 'nothing'}, but not {target.name}")
        whole = True
    except Exception as error:
        raise RunError(f"The model could not be converted to GGUF: {_reason(error)}. Export without GGUF; the run is unharmed.") from error
    finally:
        for file in target.parent.glob(f"{target.stem}*.gguf"):
            if not (whole and file == target):
                file.unlink()
    return target


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Unsloth's converter may not install packages meanwhile, as it does when its own fail to import."""
    before = os.environ.get("UNSLOTH_AUTO_INSTALL")
    os.environ["UNSLOTH_AUTO_INSTALL"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["UNSLOTH_AUTO_INSTALL"]
        else:
            os.environ["UNSLOTH_AUTO_INSTALL"] = before


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].removeprefix("Unsloth: ").rstrip(".")


def _reason(error: BaseException) -> str:
    """Why the converter failed: of what its script said the last line that names an error, such as "KeyError: …", else the first line."""
    named = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*\S", str(error), re.MULTILINE)
    return named[-1].rstrip(".") if named else _first(error)
