"""What happens in the fold that chooses the base model: what it will take is told, it is loaded, and the fold shows what is loaded."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import gradio as gr

from deepdoctor.catalogue import KNOWN, Known, known
from deepdoctor.config import EMBEDDED_MODEL, ModelConfig
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import ConfigError, DeepDoctorError, ModelError
from deepdoctor.estimates import FOUR_BIT_BYTES, fits_in_16_bits, needed_in_4_bits
from deepdoctor.ui.components import note, user_errors
from deepdoctor.ui.context import Context, name_of
from deepdoctor.ui.form import Form, problems_of

GIB = 2**30
NANO_BILLIONS = 0.0049
CHOICES = [("deepdoctor-nano, embedded in the app", EMBEDDED_MODEL), *((each.label, each.name) for each in KNOWN)]
BITS = {"float32": "32 bits", "bfloat16": "16 bits", "float16": "16 bits", "4bit": "4 bits"}
BYTES = {"32 bits": 4.0, "16 bits": 2.0, "4 bits": FOUR_BIT_BYTES}
NO_CHOICE = "Choose a base model, or type the Hub id of one, such as owner/name."
NOT_FROM_ELSEWHERE = "Folders of the server cannot be named from elsewhere. Give a model's Hub id, such as owner/name."


class ModelEvents:
    """The fold's handlers. Everything they know is in the engine client, or handed to them."""

    def __init__(self, context: Context, form: Form) -> None:
        self.context, self.form = context, form

    @user_errors
    def load(self, profile: gr.OAuthProfile | None, name: str | None, *values: Any) -> Iterator[list[Any]]:
        """Load the chosen model. Outputs: notice, then the form's inputs with what is wrong told at each."""

        def config() -> ModelConfig:
            named = self._named(name)
            if problems:
                raise ConfigError("Not loaded: look at the settings marked above and under More settings.")
            return cast(ModelConfig, self.form.read(values, {"name": named}))

        problems = problems_of(ModelConfig, self.form.given(values, {"name": name or EMBEDDED_MODEL}))
        # with each notice, because the browser may draw only the last of several that come quickly
        told = self.form.tell(problems, {each.name: "?" for each in self.form.settings})
        for words in loading(self.context, profile, config):
            yield [words, *told]

    def _named(self, name: str | None) -> str:
        """The name as the engine takes it, a folder's path whole. Raises ConfigError or ModelError."""
        name = (name or "").strip()
        if not name:
            raise ConfigError(NO_CHOICE, field="name")
        if name == EMBEDDED_MODEL or not names_folder(name):
            return name
        if self.context.access.place != "local":
            raise ModelError(NOT_FROM_ELSEWHERE)
        return str(Path(os.path.expanduser(name)).resolve())

    def takes(self, name: str | None, *values: Any) -> str:
        """What the chosen model will take of memory and disk, as HTML."""
        given = self.form.given(values, {"name": (name or "").strip()})
        if problems_of(ModelConfig, given):
            return ""
        return note(*what_it_takes(ModelConfig.of(given), self.context.engine.state.model))

    def current(self) -> list[Any]:
        """Outputs: what this viewer knows, base model, what it takes, then the form's inputs, all about the model in use."""
        model = self.context.engine.model
        words = note(*what_it_takes(model, self.context.engine.state.model))
        return [self._known(), gr.update(value=model.name), words, *self.form.show(model)]

    def follow(self, known: str) -> Any:
        """`current`, once another model was loaded by anyone or the engine has told its memory; nothing as long as all is as it was,
        or the page has not shown anything yet."""
        return gr.skip() if known in ("", self._known()) else self.current()

    def _known(self) -> str:
        engine = self.context.engine
        return f"{engine.model.to_json()} {engine.state.model.memory_bytes if engine.state.model else 0}"


def loading(context: Context, profile: gr.OAuthProfile | None, config: Callable[[], ModelConfig]) -> Iterator[str]:
    """Load the model that `config` gives, for a visitor who may: notes of what is done and how it ended. Raises DeepDoctorError."""
    engine = context.engine
    try:
        context.access.require(name_of(profile), "load a model")
        wanted = config()
        state = engine.state
        first = f"First the engine ends {state.doing}. " if state.phase == "busy" and state.doing else ""
        yield _status(note(f"{first}Loading {wanted.name} … The line at the top tells how far it is."))
        engine.load(wanted)
        yield _status(note(f"Loaded {wanted.name}.", "ok"))
    except DeepDoctorError as error:
        stays = engine.state.model
        still = (
            f" {stays.name} is still loaded." if isinstance(error, ModelError) and stays and "was loaded again" not in str(error) else ""
        )
        yield _status(note(f"{error}{still}", "bad"))
        raise


def names_folder(name: str) -> bool:
    """Whether the engine would look for a model of that name on its own disk rather than on the Hub."""
    try:
        return name.startswith(("/", ".", "~")) or Path(name).is_dir()
    except (OSError, ValueError):
        return False


def what_it_takes(config: ModelConfig, engine: ModelInfo | None) -> tuple[str, str]:
    """What a model will take against what the engine's device has: (words, kind of note). Weights only, from the catalogue's numbers.

    engine: the loaded model, which tells the device; None while there is none.
    """
    entry = known(config.name)
    billions = NANO_BILLIONS if config.name == EMBEDDED_MODEL else entry.billions if entry else 0.0
    memory = _memory(config, engine)
    if not billions:
        has = f" {_has(config, engine)} {memory / GIB:,.1f} GiB." if engine else ""
        return (
            f"A parameter takes 4 bytes in 32 bits, 2 in 16 bits and a good half in 4 bits.{has} Files are downloaded if need be.",
            "",
        )
    on_gpu, parameters = _on_gpu(engine), billions * 1e9
    if engine and not on_gpu and config.precision == "4bit":
        return "4 bits need an NVIDIA GPU; choose another precision.", "warn"
    bits = _bits(config, parameters, memory, engine)
    words = f"About {_gib(parameters * BYTES[bits])} of weights in {bits}"
    fetched = f" {_files(config, entry, bits)}, are downloaded if they are not here yet." if entry else ""
    if not engine:
        return f"{words}.{fetched}", ""
    words = f"{words}. {_has(config, engine)} {memory / GIB:,.1f} GiB"
    if (needed_in_4_bits(parameters) if bits == "4 bits" else parameters * BYTES[bits]) > memory:
        return f"{words}: too little. Choose a smaller model{' or 4 bits' if on_gpu and bits != '4 bits' else ''}.", "warn"
    if on_gpu and bits == "16 bits" and not fits_in_16_bits(parameters, memory):
        return f"{words}: enough to compare, but hardly to train; 4 bits leave room.{fetched}", "warn"
    return f"{words}.{fetched}", ""


def _files(config: ModelConfig, entry: Known, bits: str) -> str:
    """What is downloaded, and how large it is: where there is a mirror for 4 bits, that."""
    if bits == "4 bits" and entry.four_bit and not config.revision:
        return f"Its files packed in 4 bits ({entry.four_bit}), about {entry.four_bit_gb:,.0f} GB"
    return f"Its files, about {entry.billions * 2:,.0f} GB"


def _bits(config: ModelConfig, parameters: float, memory: int, engine: ModelInfo | None) -> str:
    """In which numbers the engine will hold it: what is asked for, or what auto chooses."""
    if config.precision != "auto":
        return BITS[config.precision]
    if config.name == EMBEDDED_MODEL or (engine and not _on_gpu(engine)):
        return "32 bits"
    return "16 bits" if not engine or fits_in_16_bits(parameters, memory) else "4 bits"


def _memory(config: ModelConfig, engine: ModelInfo | None) -> int:
    memory = engine.memory_bytes if engine else 0
    return min(memory, round(config.gpu_memory_gib * GIB)) if config.gpu_memory_gib and _on_gpu(engine) else memory


def _on_gpu(engine: ModelInfo | None) -> bool:
    return engine is not None and not engine.device.lower().startswith(("cpu", "mps"))


def _has(config: ModelConfig, engine: ModelInfo | None) -> str:
    if not _on_gpu(engine):
        return "This machine has"
    return "Of the GPU it may use" if config.gpu_memory_gib else "The GPU has"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:,.0f} MiB"


def _status(html: str) -> str:
    return f'<div role="status">{html}</div>'
