"""What a run takes if it is computed in a given way: memory and seconds. Arithmetic and measured constants; torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepdoctor.config import FinetuneConfig
from deepdoctor.engine.protocol import ModelInfo

# The share of the device's matrix rate (ModelInfo.flops) that training reaches; seconds that a batch takes besides on a CPU; how many
# launches (ModelInfo.launch_seconds) what a GPU computes of a layer for one batch takes, without and with checkpointing; seconds a layer
# takes for a decoded token; and seconds before the first step.
# CPU: the embedded model on two cores of an AMD EPYC (2.05e11 FLOP/s) with nobody else on them: steps of 8 rows of 466 tokens took 1.34 to
# 1.38 s as 8 × 1, 1.34 s as 2 × 4 and 1.63 s as 1 × 8, of 4 rows of 300 tokens 0.41 s; a probe 5.5 ms a token.
# GPU: an 8B, Unsloth, steps of 8 rows of 724 tokens without padding, cuDNN off. H100 (7.6e14 FLOP/s), bfloat16: 0.40 to 0.46 s as 8 × 1 (on
# an H200 0.39 s), 0.52 s as 4 × 2, with checkpointing 0.60 s as 8 × 1; 4 bits: 0.45 s as 8 × 1, with checkpointing 0.58 to 0.65 s as 8 × 1.
# A probe 5.7 to 6.5 ms a token. Small batches take what launching takes, and that differs between machines: where 7.4 µs were measured for
# one, 0.81 s as 2 × 4, 1.59 s as 1 × 8 and with checkpointing 1.23 s as 2 × 4, all in 4 bits; on an H200 beside another processor (7.1 µs)
# 0.89, 1.74 and 1.25 s; on a third machine, of which it was not measured, 1.31, 2.32 and 1.6 to 2.0 s.
TRAINING_EFFICIENCY = {"cpu": 0.31, "16bit": 0.61, "4bit": 0.57}
CPU_SECONDS_PER_BATCH = 0.045
LAUNCHES_PER_LAYER = {False: 910, True: 1340}
DECODE_SECONDS_PER_LAYER = {"cpu": 0.92e-3, "cuda": 1.8e-4}
SECONDS_TO_START = {"cpu": 2.5, "cuda": 6.0}
# more of them where several processes train: each imports its libraries and loads the model. GPU: two H100s
SECONDS_FOR_PROCESSES = {"cpu": 8.0, "cuda": 50.0}
# what cuDNN's attention takes to plan one layer for a length that it has not met: the bfloat16 run above took 1.46 s a step with it
CUDNN_PLAN_SECONDS = (1.46 - 0.54) / 32
# what the Quick preset takes with the embedded model on those two cores: 54 to 57 s; said wherever that run is recommended
QUICK_SECONDS = 57.0
# of an engine process on a CPU without rows; there, memory is that of the process, and on a GPU that of its arrays. With it peaks come out
# as measured in those runs, in GiB: 0.76 (1 × 8), 0.91 (2 × 4), 0.95 (4 × 1 short rows), 1.64 to 1.67 (8 × 1)
PROCESS_BYTES = round(0.64 * 2**30)

# what training needs on a GPU beside the weights: adapter, optimizer, activations of two long rows with checkpointing, logits
HEADROOM = 6 * 2**30
HEADROOM_4BIT = 4 * 2**30
FOUR_BIT_BYTES = 0.6  # a weight in NF4 with its scales, embeddings in 16 bit among them, before its shape is known
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "16bit": 2.0, "4bit": 0.53}
OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_8bit": 2}
ADAPTER_BYTES = 8  # a float32 weight and its float32 gradient
# of a checkpoint: a float32 weight; what lies beside weights and optimizer, tokenizer not counted; a step in the trainer's own log
SAVED_WEIGHT_BYTES, SAVED_BESIDE_BYTES, SAVED_STEP_BYTES = 4, 110_000, 300
GRADIENT_BYTES = 4  # the same gradient once more, where several devices exchange it
LOGIT_BYTES = {"transformers": 8, "unsloth": 4}  # a logit and its gradient: both in float32, or both in 16 bit
# with Unsloth the loss is made of at most so many logits at once. Steps of 8 rows of 724 tokens of an 8B take, in GiB, bfloat16 38.9 as
# 8 × 1, 4 bits with checkpointing 7.2 as 8 × 1; with Unsloth's own loss, of up to twice as many at 6 bytes, they took bfloat16 39.2 to 39.9
# as 8 × 1, 28.0 as 4 × 2, 19.7 as 1 × 8, with checkpointing 17.9 as 8 × 1; 4 bits 28.7 as 8 × 1, 13.1 as 2 × 4, 10.2 as 1 × 8, with
# checkpointing 7.1 as 8 × 1 and 7.3 as 2 × 4
PIECE_OF_LOGITS = 2**27
SCORE_BYTES = 8  # on a CPU, where attention over padded rows keeps them: a float32 score and its share
# what the held-out loss reads at once: rows, tokens with their padding, and places whose logits are there together
EVALUATED_ROWS, EVALUATED_TOKENS, EVALUATED_PLACES = 8, 4096, 256
EVALUATED_LOGIT_BYTES = 14  # a logit as the head gives it, in float32, and twice more for its loss


@dataclass(frozen=True)
class How:
    """How a run is computed: faster or slower, in more or less memory, but the same rows a step in the same order.

    precision: of the base while it trains; batch: rows computed at once; accumulation: batches in a step; checkpointing: whether
    activations are computed again; attention: "pytorch" or "cudnn"; padded_to: batches are as long as a multiple of so many tokens, or for
    0 their rows follow each other without padding; workers: processes that pad batches ahead, 0 for none; devices: that share a step, each
    with its batch × accumulation.
    """

    precision: str
    batch: int
    accumulation: int
    checkpointing: bool
    attention: str = "pytorch"
    padded_to: int = 1
    workers: int = 0
    devices: int = 1


def fits_in_16_bits(parameters: float, memory_bytes: int) -> bool:
    """Whether a GPU with that memory holds so many weights in 16 bits and can train too."""
    return parameters * 2 + HEADROOM <= memory_bytes


def needed_in_4_bits(parameters: float) -> float:
    """Bytes of GPU memory for so many weights in 4 bits and for training."""
    return parameters * FOUR_BIT_BYTES + HEADROOM_4BIT


def trainable_parameters(config: FinetuneConfig, model: ModelInfo) -> int:
    """Numbers in the adapter: rank × (inputs + outputs), over all adapted projections of all layers."""
    return config.lora_rank * model.layers * sum(inputs + outputs for inputs, outputs in model.projections.values())


def rounded_up(length: int, multiple: int) -> int:
    """The next multiple of `multiple` from `length` on; `length` itself for 0."""
    return -(-length // multiple) * multiple if multiple else length


def padded_length(lengths: Sequence[int], batch: int, multiple: int = 1) -> float:
    """Expected length of the longest of `batch` rows drawn from `lengths`, rounded up: what every row of the batch is padded to."""
    count = len(lengths)
    chances = ((rank / count) ** batch - ((rank - 1) / count) ** batch for rank in range(1, count + 1))
    return sum(rounded_up(length, multiple) * chance for length, chance in zip(sorted(lengths), chances, strict=True))


def on_gpu(device: str) -> bool:
    """Whether a device, by the name that ModelInfo gives it, is an NVIDIA GPU with memory of its own."""
    return not device.upper().startswith(("CPU", "MPS"))


def rows_at_once(lengths: Sequence[int], how: How) -> int:
    """Rows of a batch: all there are, if they are fewer than it may hold."""
    return min(how.batch, len(lengths))


def tokens_at_once(lengths: Sequence[int], how: How) -> float:
    """Tokens of the largest batch that a run meets: of the longest rows, padded.

    Without padding three deviations above the mean, but the longest row among others as long as the mean at least: some batch holds it.
    """
    longest, mean, rows = max(lengths), sum(lengths) / len(lengths), rows_at_once(lengths, how)
    if how.padded_to:
        return rows * rounded_up(longest, how.padded_to)
    deviation = (sum((length - mean) ** 2 for length in lengths) / len(lengths)) ** 0.5
    usual = rows * mean + 3 * deviation * rows**0.5
    return min(rows * longest, max(usual, longest + (rows - 1) * mean))


def rows_trained(config: FinetuneConfig, rows: int, steps: int) -> int:
    """Rows that so many steps train on, over `rows` rows: the last step of an epoch takes what the others left."""
    epochs, more = divmod(steps, -(-rows // config.rows_per_step))
    return epochs * rows + min(rows, more * config.rows_per_step)


def memory_of(config: FinetuneConfig, model: ModelInfo, how: How, lengths: Sequence[int]) -> int:
    """Peak bytes while rows of these `lengths` are trained on.

    Of one device: weights + adapter (weight, gradient, optimizer states) + activations and logits of the largest batch, or what the
    held-out loss needs if that is more; off a GPU with the process around them, because that is what a run's metrics tell. Activations of
    a layer: the inputs and outputs of its projections, and on a CPU attention's scores. With checkpointing only each layer's input is kept,
    and one layer whole.
    """
    cuda = on_gpu(model.device)
    number_bytes = 4 if how.precision == "float32" else 2
    embedded = 2 * model.vocabulary * model.hidden_size if how.precision == "4bit" else 0  # embeddings and head stay in 16 bit
    weights = (model.parameters - embedded) * BYTES_PER_WEIGHT[how.precision] + embedded * 2
    exchanged = GRADIENT_BYTES if how.devices > 1 else 0
    states = OPTIMIZER_BYTES[config.optimizer if cuda else "adamw_torch"]
    adapter = trainable_parameters(config, model) * (ADAPTER_BYTES + states + exchanged)
    layer, unsloth = _kept_by_a_layer(model), model.backend == "unsloth"
    inputs = 0 if unsloth else model.layers * model.hidden_size  # Unsloth's checkpointing keeps them in the machine's own memory
    layers = layer + inputs if how.checkpointing else layer * model.layers
    scores = 0 if cuda else model.layers * model.heads * rounded_up(max(lengths), how.padded_to) * SCORE_BYTES
    tokens = tokens_at_once(lengths, how)
    logits = min(tokens * model.vocabulary, PIECE_OF_LOGITS) if unsloth else tokens * model.vocabulary
    training = tokens * (layers * number_bytes + scores) + logits * LOGIT_BYTES[model.backend]
    evaluating = _evaluation(model, max(lengths), number_bytes) if config.held_out_rows else 0
    return round((0 if cuda else PROCESS_BYTES) + weights + adapter + max(training, evaluating))


def _kept_by_a_layer(model: ModelInfo) -> int:
    """Numbers a token that a layer keeps for its backward pass: inputs and outputs of its projections.

    Unsloth keeps both norms' inputs and outputs, what attention gives, and the outputs of queries, keys, values, gate and up; it computes
    the rest again.
    """
    if model.backend != "unsloth":
        return sum(inputs + outputs for inputs, outputs in model.projections.values())
    again = ("o_proj", "down_proj")
    return 5 * model.hidden_size + sum(outputs for name, (_inputs, outputs) in model.projections.items() if name not in again)


def checkpoint_bytes(config: FinetuneConfig, model: ModelInfo, step: int) -> int:
    """Bytes on disk of the checkpoint at `step`: adapter, optimizer states, tokenizer, and the trainer's log so far."""
    states = OPTIMIZER_BYTES[config.optimizer if on_gpu(model.device) else "adamw_torch"]
    tokenizer = Path(model.tokenizer_file)
    beside = SAVED_BESIDE_BYTES + (tokenizer.stat().st_size if tokenizer.is_file() else 0)
    return trainable_parameters(config, model) * (SAVED_WEIGHT_BYTES + states) + beside + step * SAVED_STEP_BYTES


def disk_of(config: FinetuneConfig, model: ModelInfo, steps: int) -> int:
    """The most bytes that a run's checkpoints and its adapter take: as many as are kept, and one more while it is written."""
    saved = -(-steps // config.checkpoint_steps)
    together = min(saved, max(2, config.checkpoints_kept) + 1)  # the newest and the best stay even where one is kept
    return together * checkpoint_bytes(config, model, steps) + trainable_parameters(config, model) * SAVED_WEIGHT_BYTES


def _evaluation(model: ModelInfo, longest: int, number_bytes: int) -> int:
    """Bytes of one batch of the held-out loss: one layer's activations, an adapter's float32 input, and a slice of logits."""
    tokens = max(longest, min(EVALUATED_TOKENS, EVALUATED_ROWS * longest))
    layer = sum(inputs + outputs for inputs, outputs in model.projections.values()) * number_bytes
    widest = max(inputs for inputs, _outputs in model.projections.values()) * 4
    return tokens * (layer + widest) + EVALUATED_PLACES * model.vocabulary * EVALUATED_LOGIT_BYTES


def seconds_of(config: FinetuneConfig, model: ModelInfo, how: How, lengths: Sequence[int]) -> float:
    """Seconds of a whole run over rows of these `lengths`.

    4·N operations a token, forward and backward through N frozen weights (6·N with checkpointing, which goes forward twice), over padded
    batches, none of which takes less than launching it does; 2·N a token for each held-out loss; probes by decoding. Several GPUs share the
    training alone. Left out: attention's own arithmetic, and exchanging gradients.
    """
    kind = "cuda" if on_gpu(model.device) else "cpu"
    held = "cpu" if kind == "cpu" else "4bit" if how.precision == "4bit" else "16bit"
    rate = model.flops * TRAINING_EFFICIENCY[held]
    steps = config.steps_for(len(lengths))
    operations = (6 if how.checkpointing else 4) * model.parameters
    rows = rows_at_once(lengths, how)
    read = padded_length(lengths, rows, how.padded_to) if how.padded_to else sum(lengths) / len(lengths)
    batch = rows * read * operations / rate
    if kind == "cuda":
        batch = max(batch, model.layers * LAUNCHES_PER_LAYER[how.checkpointing] * model.launch_seconds)
    else:
        batch = (batch + CPU_SECONDS_PER_BATCH) * how.devices  # processes on a CPU share its cores
    batches = max(steps, -(-rows_trained(config, len(lengths), steps) // (rows * how.devices)))
    trained = batches * batch
    evaluations = _times(steps, config.eval_steps) if config.held_out_rows else 0
    evaluated = evaluations * config.held_out_rows * sum(lengths) / len(lengths) * 2 * model.parameters / rate
    answers = _times(steps, config.probe_steps) * max(1, len(config.probe_questions)) if config.probe_steps else 0
    probed = answers * config.probe_tokens * model.layers * DECODE_SECONDS_PER_LAYER[kind]
    met = min(batches, len({rounded_up(length, how.padded_to) for length in lengths})) if how.attention == "cudnn" else 0
    start = SECONDS_TO_START[kind] + (SECONDS_FOR_PROCESSES[kind] if how.devices > 1 else 0)
    return start + trained + evaluated + probed + met * model.layers * CUDNN_PLAN_SECONDS


def _times(steps: int, every: int) -> int:
    """How often something happens that is done before the first step, every so many steps, and after the last."""
    between = (steps - 1) // every if every else 0
    return 2 + between
