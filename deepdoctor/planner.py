"""The planner: how a run is computed on this device, chosen once, with a reason in one line for each choice. Torch-free.

What it chooses changes time and memory, not what is learnt: the rows of a step, their order and the mean over their tokens stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from deepdoctor.config import FinetuneConfig
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import ConfigError
from deepdoctor.estimates import How, memory_of, on_gpu, padded_length, rounded_up, seconds_of

GIB = 2**30
# what is chosen may take this share of the memory at most: estimates are meant to be right within 15%
USABLE = 0.85
MOST_AT_ONCE = 256
# ways whose seconds differ by less than estimates do are held to be as fast; the simplest of them is taken
AS_FAST = 1.1
# tokens: what tensor cores compute at once, and few enough different lengths that cuDNN's plans are soon all built
TILE, CUDNN_MULTIPLE = 8, 128
AS_SET = "As set in the recipe."
WORDS = {"4bit": "4 bits", "16bit": "16 bits", "float16": "16 bits", "bfloat16": "16 bits", "float32": "32 bits"}


@dataclass(frozen=True)
class Choice:
    """One thing that was chosen: what, which value, and why; in words."""

    name: str
    value: str
    why: str


class Decision(NamedTuple):
    """How a run is computed, and the same in words."""

    how: How
    choices: tuple[Choice, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: {"how", "choices"}."""
        return {"how": asdict(self.how), "choices": [asdict(choice) for choice in self.choices]}

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Decision":
        """Read back what `to_dict` wrote."""
        return cls(How(**values["how"]), tuple(Choice(**choice) for choice in values["choices"]))


def decide(config: FinetuneConfig, model: ModelInfo, lengths: Sequence[int]) -> Decision:
    """How a run over rows of these `lengths` (those that are trained on, not empty) is computed, and why.

    Of what fits, a way that is expected to be as fast as any; where nothing fits, what takes least. Settings that are not "auto" are taken
    as they are; the base is held in 4 bits only where that is asked for, or where 16 bits fit in no way. Raises ConfigError for more
    devices than there are.
    """
    _require_devices(config, model)
    ways = list(_ways(config, model))
    usable = USABLE * model.memory_bytes
    fitting = [way for way in ways if memory_of(config, model, way, lengths) <= usable]
    same = [way for way in fitting if way.precision == fitting[0].precision]
    seconds = [seconds_of(config, model, way, lengths) for way in same]
    how = next((way for way, taken in zip(same, seconds, strict=True) if taken <= AS_FAST * min(seconds)), ways[-1])
    reasons = _Reasons(config, model, lengths, how)
    choices = (
        Choice("Base weights", WORDS[how.precision], reasons.precision()),
        Choice("Batch size × accumulation", f"{how.batch} × {how.accumulation} rows", reasons.batch()),
        Choice("Checkpointing", "on" if how.checkpointing else "off", reasons.checkpointing()),
        Choice("Attention", "cuDNN" if how.attention == "cudnn" else "PyTorch", reasons.attention()),
        Choice("Padding", _padding(how.padded_to), reasons.padding()),
        Choice("Loader workers", str(how.workers) if how.workers else "none", reasons.workers()),
    )
    return Decision(how, choices + _devices(config, model))


def _require_devices(config: FinetuneConfig, model: ModelInfo) -> None:
    if config.devices <= model.devices:
        return
    there = f"this machine has {model.devices}" if on_gpu(model.device) else f"without one, at most {model.devices} processes share the CPU"
    raise ConfigError(f"GPUs: {there} (given: {config.devices}).", field="devices")


def _devices(config: FinetuneConfig, model: ModelInfo) -> tuple[Choice, ...]:
    """By how many devices, where there is a choice."""
    gpu = on_gpu(model.device)
    if config.devices == 1 and not (gpu and model.devices > 1):
        return ()
    value = f"{config.devices} of {model.devices}" if gpu else f"none, {config.devices} processes"
    if config.devices == 1:
        return (Choice("GPUs", value, AS_SET),)
    rows = config.rows_per_step // config.devices
    shared = (
        f"{rows} {'row' if rows == 1 else 'rows'} of each step on each, {config.rows_per_step} together; memory is that of one of them."
    )
    return (Choice("GPUs", value, shared if gpu else f"{shared} They share the CPU's cores: a way to try it, and no faster."),)


def _ways(config: FinetuneConfig, model: ModelInfo) -> Iterator[How]:
    """Every way that the recipe leaves open: the simplest first, and what takes least memory last."""
    cuda = on_gpu(model.device)
    attention = "cudnn" if cuda and config.attention == "cudnn" else "pytorch"
    chosen = _padded_to(model, attention)
    checkpointing = {"auto": (False, True), "on": (True,), "off": (False,)}[config.gradient_checkpointing] if cuda else (False,)
    for precision in _precisions(config, model):
        for again in checkpointing:
            for batch in _batches(config):
                yield How(
                    precision=precision,
                    batch=batch,
                    accumulation=config.rows_per_step // config.devices // batch,
                    checkpointing=again,
                    attention=attention,
                    padded_to=config.padded_to or chosen,
                    workers=config.loader_workers,
                    devices=config.devices,
                )


def _padded_to(model: ModelInfo, attention: str) -> int:
    """Unsloth's attention takes rows one behind the other; other forwards need them side by side, padded to one length."""
    if not on_gpu(model.device):
        return 1
    if attention == "cudnn":
        return CUDNN_MULTIPLE
    return 0 if model.backend == "unsloth" else TILE


def _padding(multiple: int) -> str:
    if not multiple:
        return "none"
    return f"to a multiple of {multiple}" if multiple > 1 else "to the longest row"


def _precisions(config: FinetuneConfig, model: ModelInfo) -> tuple[str, ...]:
    """As the base is held, or as the recipe asks where Unsloth can load it anew; for "auto" also 4 bits.

    For a model in 4 bits whose recipe asks for 16 it is "16bit": which of the two kinds, the card decides.
    """
    held = "4bit" if model.precision == "4bit" else "16bit"
    if model.backend != "unsloth" or config.base_precision == held:
        return (model.precision,)
    if config.base_precision == "auto":
        return (model.precision,) if held == "4bit" else (model.precision, "4bit")
    return (config.base_precision,)


def _batches(config: FinetuneConfig) -> list[int]:
    """Batch sizes that divide a device's rows of a step, the largest first; or the one that is set, no larger than a device's share."""
    rows = config.rows_per_step // config.devices
    most = config.batch_size if config.batching == "as_set" else MOST_AT_ONCE
    found = [batch for batch in range(min(rows, most), 0, -1) if rows % batch == 0]
    return found[:1] if config.batching == "as_set" else found


@dataclass(frozen=True)
class _Reasons:
    """Why each part of `how` was chosen, a sentence or two each."""

    config: FinetuneConfig
    model: ModelInfo
    lengths: Sequence[int]
    how: How

    def _gib(self, **changes: Any) -> str:
        return f"{memory_of(self.config, self.model, replace(self.how, **changes), self.lengths) / GIB:.1f} GiB"

    @property
    def _fits(self) -> bool:
        return memory_of(self.config, self.model, self.how, self.lengths) <= self._most

    @property
    def _most(self) -> float:
        return USABLE * self.model.memory_bytes

    def _usable(self) -> str:
        return f"{self._most / GIB:.1f} GiB that may be used"

    def precision(self) -> str:
        asked = self.config.base_precision
        if self.model.backend != "unsloth":
            return "As it is loaded: only Unsloth on an NVIDIA GPU can load it anew in other numbers."
        if asked != "auto":
            return AS_SET
        if self.how.precision == self.model.precision:
            return "As it is loaded."
        return f"In {WORDS[self.model.precision]} even one row at once would need about {self._gib(**self._least())} of {self._usable()}."

    def _least(self) -> dict[str, Any]:
        again = on_gpu(self.model.device) and self.config.gradient_checkpointing != "off"
        return {"precision": self.model.precision, "batch": _batches(self.config)[-1], "checkpointing": again}

    def batch(self) -> str:
        if self.config.batching == "as_set":
            return AS_SET if self.how.batch == self.config.batch_size else f"The recipe's rows, shared by {self.how.devices}."
        if not self._fits:
            return f"The smallest there is, and still it needs about {self._gib()} of {self._usable()}."
        larger = [batch for batch in _batches(self.config) if batch > self.how.batch]
        if not larger:
            return f"All rows of a step{' on each' if self.how.devices > 1 else ''} at once fit: about {self._gib()} of {self._usable()}."
        if memory_of(self.config, self.model, self._with(larger[-1]), self.lengths) <= self._most:
            return f"Faster than larger ones: {larger[-1]} rows at once would be padded to the longest of them. About {self._gib()}."
        return f"The largest that fits: {larger[-1]} rows at once would need about {self._gib(batch=larger[-1])} of {self._usable()}."

    def _with(self, batch: int) -> How:
        return replace(self.how, batch=batch, accumulation=self.config.rows_per_step // self.config.devices // batch)

    def checkpointing(self) -> str:
        if not on_gpu(self.model.device):
            return "A GPU setting; off a GPU activations are kept."
        if self.config.gradient_checkpointing != "auto":
            return AS_SET
        if not self.how.checkpointing:
            return "Activations fit, and computing them again would take half as much arithmetic again."
        smallest = _batches(self.config)[-1]
        if memory_of(self.config, self.model, replace(self.how, batch=smallest, checkpointing=False), self.lengths) <= self._most:
            return "Without it only batches so small would fit that a step would take longer."
        at_once = "one row" if smallest == 1 else f"{smallest} rows"
        return f"Without it even {at_once} at once would need about {self._gib(batch=smallest, checkpointing=False)} of {self._usable()}."

    def attention(self) -> str:
        if not on_gpu(self.model.device):
            return "cuDNN is for NVIDIA GPUs."
        if self.config.attention != "auto":
            return AS_SET
        return "cuDNN builds a plan for every new length; with the 8B on an H200 that took 1.46 s a step instead of 0.54 s."

    def padding(self) -> str:
        if self.config.padded_to:
            return AS_SET
        if not on_gpu(self.model.device):
            return "A CPU would compute what is padded beyond it."
        if self.how.attention == "cudnn":
            found = len({rounded_up(length, CUDNN_MULTIPLE) for length in self.lengths})
            return f"cuDNN then meets at most {found} {'length' if found == 1 else 'different lengths'}; order and losses stay."
        if not self.how.padded_to:
            share = 1 - sum(self.lengths) / len(self.lengths) / padded_length(self.lengths, max(2, self.how.batch))
            return f"Rows follow each other in one line: padded to the longest, {share:.0%} of what is computed would be padding."
        return "Whole tiles for the tensor cores, at most 7 tokens a row more; order and losses stay."

    def workers(self) -> str:
        if self.how.workers:
            return AS_SET
        return "Rows are encoded before training; padding 8 of them takes about 2 ms."
