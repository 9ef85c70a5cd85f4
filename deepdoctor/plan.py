"""What a run will take, told before it starts: steps, tokens, adapter size, memory and time. Arithmetic only; torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepdoctor.config import FinetuneConfig
from deepdoctor.engine.protocol import ModelInfo
from deepdoctor.errors import DatasetError

# Calibrated by measurement: the share of the device's matrix rate (ModelInfo.flops) that a training step reaches,
# seconds a step and a decoded token take however small the model, and seconds before the first step.
TRAINING_EFFICIENCY = {"cpu": 0.2, "cuda": 0.25}
SECONDS_PER_STEP = 0.05
DECODE_SECONDS_PER_LAYER = {"cpu": 1.8e-3, "cuda": 5e-4}
SECONDS_TO_START = 8.0
# what the Quick preset takes with the embedded model on two free cores, measured; said wherever that run is recommended
QUICK_SECONDS = 95.0
# of an engine process on a CPU before it holds a model; there, memory is that of the process, and on a GPU that of its arrays
PROCESS_BYTES = round(0.9 * 2**30)

# what training needs on a GPU beside the weights: adapter, optimizer, activations of two long rows with checkpointing, logits
HEADROOM = 6 * 2**30
HEADROOM_4BIT = 4 * 2**30
FOUR_BIT_BYTES = 0.6  # a weight in NF4 with its scales, embeddings in 16 bit among them, before its shape is known
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "16bit": 2.0, "4bit": 0.53}
OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_8bit": 2}
ADAPTER_BYTES = 8  # a float32 weight and its float32 gradient
LOGIT_BYTES = 8  # a float32 logit and its gradient
# what the held-out loss reads at once: rows, tokens with their padding, and places whose logits are there together
EVALUATED_ROWS, EVALUATED_TOKENS, EVALUATED_PLACES = 8, 4096, 256
EVALUATED_LOGIT_BYTES = 14  # a logit as the head gives it, in float32, and twice more for its loss


@dataclass(frozen=True)
class Plan:
    """What one run will take. `rows` are trained on, `left_out` are longer than the limit, `held_out` are kept for evaluation.

    tokens: read in all steps together, padding not counted. seconds and memory_bytes, the peak, are estimates. precision: of the base while
    it trains; batch: rows computed at once; accumulation: batches in a step; checkpointing: whether activations are computed again.
    """

    rows: int
    left_out: int
    held_out: int
    steps: int
    epochs: float
    tokens: int
    trainable_parameters: int
    memory_bytes: int
    device_bytes: int
    seconds: float
    precision: str
    batch: int
    accumulation: int
    checkpointing: bool

    @property
    def fits(self) -> bool:
        """Whether the estimated memory is there."""
        return self.memory_bytes <= self.device_bytes


def plan(config: FinetuneConfig, model: ModelInfo, lengths: Sequence[int]) -> Plan:
    """Estimate a run over rows of these `lengths` (tokens a row, held-out rows not among them).

    memory = weights + adapter (weight, gradient, optimizer states) + activations + logits of one batch of the longest rows, or what the
    held-out loss needs if that is more; off a GPU with the process around them, because that is what a run's metrics tell.
    Activations of a layer: the inputs and outputs of its projections. With checkpointing only each layer's input is kept,
    and one layer whole. seconds: 4·N operations a token, forward and backward through N frozen weights (6·N with
    checkpointing, which goes forward twice), over padded batches; 2·N a token for each held-out loss; probes by decoding.
    Attention's own arithmetic is left out. Raises DatasetError if no row is short enough.
    """
    longest = min(config.max_seq_length, model.max_length)
    kept = [length for length in lengths if 0 < length <= longest]
    if not kept:
        raise DatasetError(
            f"No row to train on is left: all {len(lengths):,} are longer than {longest:,} tokens. Raise the longest row."
            if lengths
            else "There is no row to train on. Choose rows on the Dataset tab."
        )
    steps = config.steps_for(len(kept))
    mean = sum(kept) / len(kept)
    return Plan(
        rows=len(kept),
        left_out=len(lengths) - len(kept),
        held_out=config.held_out_rows,
        steps=steps,
        epochs=steps * config.rows_per_step / len(kept),
        tokens=round(steps * config.rows_per_step * mean),
        trainable_parameters=trainable_parameters(config, model),
        memory_bytes=_memory(config, model, max(kept)),
        device_bytes=model.memory_bytes,
        seconds=_seconds(config, model, kept, steps),
        precision=precision_for(config, model),
        batch=config.batch_size,
        accumulation=config.accumulation,
        checkpointing=_checkpoints(config, model),
    )


def precision_for(config: FinetuneConfig, model: ModelInfo) -> str:
    """In which numbers the base is held while it trains: as it is loaded, or as the recipe asks where Unsloth can load it anew.

    For a model in 4 bits whose recipe asks for 16 it is "16bit": which of the two kinds, the card decides.
    """
    held = "4bit" if model.precision == "4bit" else "16bit"
    reloads = model.backend == "unsloth" and config.base_precision not in ("auto", held)
    return config.base_precision if reloads else model.precision


def fits_in_16_bits(parameters: float, memory_bytes: int) -> bool:
    """Whether a GPU with that memory holds so many weights in 16 bits and can train too."""
    return parameters * 2 + HEADROOM <= memory_bytes


def needed_in_4_bits(parameters: float) -> float:
    """Bytes of GPU memory for so many weights in 4 bits and for training."""
    return parameters * FOUR_BIT_BYTES + HEADROOM_4BIT


def roughly(seconds: float) -> str:
    """An estimated duration, no finer than it deserves: "45 s", "1.5 min", "22 min", "3 h 10 min"."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if seconds < 165:
        return f"{round(seconds / 30) / 2:g} min"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(10 * round(seconds / 600), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def trainable_parameters(config: FinetuneConfig, model: ModelInfo) -> int:
    """Numbers in the adapter: rank × (inputs + outputs), over all adapted projections of all layers."""
    return config.lora_rank * model.layers * sum(inputs + outputs for inputs, outputs in model.projections.values())


def padded_length(lengths: Sequence[int], batch: int) -> float:
    """Expected length of the longest of `batch` rows drawn from `lengths`: what every row of the batch is padded to."""
    count = len(lengths)
    chances = ((rank / count) ** batch - ((rank - 1) / count) ** batch for rank in range(1, count + 1))
    return sum(length * chance for length, chance in zip(sorted(lengths), chances, strict=True))


def on_gpu(device: str) -> bool:
    """Whether a device, by the name that ModelInfo gives it, is an NVIDIA GPU with memory of its own."""
    return not device.upper().startswith(("CPU", "MPS"))


def _is_cuda(model: ModelInfo) -> bool:
    return on_gpu(model.device)


def _checkpoints(config: FinetuneConfig, model: ModelInfo) -> bool:
    return config.gradient_checkpointing and _is_cuda(model)


def _memory(config: FinetuneConfig, model: ModelInfo, longest: int) -> int:
    precision = precision_for(config, model)
    number_bytes = 4 if precision == "float32" else 2
    embedded = 2 * model.vocabulary * model.hidden_size if precision == "4bit" else 0  # embeddings and head stay in 16 bit
    weights = (model.parameters - embedded) * BYTES_PER_WEIGHT[precision] + embedded * 2
    optimizer = config.optimizer if _is_cuda(model) else "adamw_torch"
    adapter = trainable_parameters(config, model) * (ADAPTER_BYTES + OPTIMIZER_BYTES[optimizer])
    layer = sum(inputs + outputs for inputs, outputs in model.projections.values())
    layers = layer + model.layers * model.hidden_size if _checkpoints(config, model) else layer * model.layers
    training = config.batch_size * longest * (layers * number_bytes + model.vocabulary * LOGIT_BYTES)
    process = 0 if _is_cuda(model) else PROCESS_BYTES
    evaluating = _evaluation(model, longest, number_bytes) if config.held_out_rows else 0
    return round(process + weights + adapter + max(training, evaluating))


def _evaluation(model: ModelInfo, longest: int, number_bytes: int) -> int:
    """Bytes of one batch of the held-out loss: one layer's activations, an adapter's float32 input, and a slice of logits."""
    tokens = max(longest, min(EVALUATED_TOKENS, EVALUATED_ROWS * longest))
    layer = sum(inputs + outputs for inputs, outputs in model.projections.values()) * number_bytes
    widest = max(inputs for inputs, _outputs in model.projections.values()) * 4
    return tokens * (layer + widest) + EVALUATED_PLACES * model.vocabulary * EVALUATED_LOGIT_BYTES


def _seconds(config: FinetuneConfig, model: ModelInfo, lengths: Sequence[int], steps: int) -> float:
    kind = "cuda" if _is_cuda(model) else "cpu"
    rate = model.flops * TRAINING_EFFICIENCY[kind]
    operations = (6 if _checkpoints(config, model) else 4) * model.parameters
    trained = steps * config.rows_per_step * padded_length(lengths, config.batch_size) * operations / rate
    evaluations = _times(steps, config.eval_steps) if config.held_out_rows else 0
    evaluated = evaluations * config.held_out_rows * padded_length(lengths, config.batch_size) * 2 * model.parameters / rate
    answers = _times(steps, config.probe_steps) * max(1, len(config.probe_questions)) if config.probe_steps else 0
    probed = answers * config.probe_tokens * model.layers * DECODE_SECONDS_PER_LAYER[kind]
    return SECONDS_TO_START + trained + steps * SECONDS_PER_STEP + evaluated + probed


def _times(steps: int, every: int) -> int:
    """How often something happens that is done before the first step, every so many steps, and after the last."""
    between = (steps - 1) // every if every else 0
    return 2 + between
