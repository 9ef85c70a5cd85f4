"""What travels between page and engine process: requests in, events out. Torch-free, so that both sides can import it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from deepdoctor.config import ModelConfig, SamplingConfig
from deepdoctor.errors import ConfigError
from deepdoctor.prompts import ARTICLE

# numbers that a GGUF file can hold: 16 bit, 8 bit, and a good 4 bit
GGUF_KINDS = ("bf16", "f16", "q8_0", "q4_k_m")

# with the tuned side's, as many adapters as stay attached (engine.adapters.SELECTED_AT_MOST)
ALSO_AT_MOST = 3

# of characters: more than any model reads, and little enough to wait in the pipe while the engine is busy
LONGEST_QUESTION = 100_000

# tokens of the longest row that Unsloth is asked to train on; it would cut a longer one off without a word
LONGEST_TRAINED = 8192

Phase = Literal["starting", "loading", "ready", "busy", "failed", "dead"]


@dataclass(frozen=True)
class ModelInfo:
    """The loaded base model, as far as the page needs to know it.

    projections: per adapted module kind, (inputs, outputs) of one layer; flops: measured forward rate in FLOP/s of a matrix product
    on this device; memory_bytes: what the device has in all. tokenizer_file: a tokenizer.json that `tokenizers` can read. backend: the
    library that loaded it and trains it. decoding: why it is not decoded in pairs but one side after the other; "" if it is.
    heads: attention's query heads. launch_seconds: measured seconds in which this machine tells a GPU of one operation, 0 off a GPU.
    devices: how many such GPUs the machine has, on a CPU how many cores, for training by several processes.
    """

    name: str
    device: str
    precision: str
    parameters: int
    layers: int
    hidden_size: int
    vocabulary: int
    max_length: int
    projections: dict[str, tuple[int, int]]
    tokenizer_file: str
    eos: str
    base_hash: str
    flops: float
    memory_bytes: int
    backend: str = "transformers"
    decoding: str = ""
    heads: int = 0
    launch_seconds: float = 0.0
    devices: int = 1

    def longest_row(self, wanted: int) -> int:
        """Tokens of the longest row that is trained on where rows of up to `wanted` are to be."""
        return min(wanted, self.max_length, LONGEST_TRAINED if self.backend == "unsloth" else self.max_length)


@dataclass(frozen=True)
class EngineState:
    """Where the engine stands. `doing` is what keeps it busy, in words; `run` the run that is training and `study` the study that is being
    prepared, if any. trouble: how a run or study ended that the disk refuses to keep, in words."""

    phase: Phase = "starting"
    message: str = "Starting the engine"
    fraction: float | None = None
    model: ModelInfo | None = None
    doing: str = ""
    run: str = ""
    study: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Load:
    """Load a base model; the one before stays if this fails."""

    model: ModelConfig


@dataclass(frozen=True)
class Compare:
    """Answer one question with base and tuned together. `run` names the run whose adapter is the tuned side; step None: its final one.

    also: further checkpoints of the run that answer in the same pass, at most ALSO_AT_MOST. Raises ConfigError if they are more, or one of
    them would answer twice, and for a question of more than LONGEST_QUESTION characters.
    """

    question: str
    run: str
    step: int | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompt_style: str = ARTICLE.name
    reference: str = ""
    also: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if (length := len(self.question)) > LONGEST_QUESTION:
            said = f"The question has {length:,} characters, and at most {LONGEST_QUESTION:,} can be asked. Shorten it."
            raise ConfigError(said, field="question")
        if len(self.also) > ALSO_AT_MOST:
            raise ConfigError(f"At most {ALSO_AT_MOST} further checkpoints can answer beside the pair, not {len(self.also)}.", field="also")
        if len({self.step, *self.also}) <= len(self.also):
            raise ConfigError("A further checkpoint must be another one than the tuned side, and each is named once.", field="also")


@dataclass(frozen=True)
class Finetune:
    """Train the run whose folder has been made (`Runs.create`); with `resume` from its newest checkpoint."""

    run: str
    resume: bool = False


@dataclass(frozen=True)
class Export:
    """Write adapter, tokenizer and, if asked, the merged model of a run to a folder under `<data>/exports/`.

    gguf: one of GGUF_KINDS for a GGUF file of the merged model too, which is then merged whether or not it is kept; "" for none.
    """

    run: str
    step: int | None = None
    merged: bool = True
    gguf: str = ""


@dataclass(frozen=True)
class Prepare:
    """Write the answers that a study still lacks (`Studies.create` has made its folder)."""

    study: str


@dataclass(frozen=True)
class Stop:
    """Stop the request with that number as soon as the current token or step is done, keeping what there is."""

    request: int


Request = Load | Compare | Finetune | Export | Prepare | Stop


@dataclass(frozen=True)
class Event:
    """News from the engine about one request (0: about itself).

    kind: state (value: EngineState), progress (value: str), snapshot (value: Comparison), done (value: a result), error (value: a
    DeepDoctorError), waiting (value: why, in words).
    """

    request: int
    kind: Literal["state", "progress", "snapshot", "done", "error", "waiting"]
    value: Any = None
