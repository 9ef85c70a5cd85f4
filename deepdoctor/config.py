"""Every setting once: its type, default, bounds and one line of explanation. Form, command line and config.json all come from here."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deepdoctor.errors import ConfigError
from deepdoctor.files import holds_runs
from deepdoctor.prompts import STYLES

EMBEDDED_MODEL = "nano"
SEED = 3407
# where a Space has its storage, if it was given one
SPACE_STORAGE = Path("/data")
# what is wrong with a value, by pydantic's names of errors or their first words
WRONG = {
    "int": "needs a whole number",
    "float": "needs a number",
    "bool": "is either yes or no",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "string_too_short": "must not be empty",
    "too_long": "at most {max_length} can be given",
    "literal_error": "must be {expected}",
}


def _setting(default: Any, title: str, description: str, *, basic: bool = False, **bounds: Any) -> Any:
    return Field(default, title=title, description=description, json_schema_extra={"basic": basic}, **bounds)


class Config(BaseModel):
    """Base of all configurations: immutable, unknown settings refused, errors told in the user's words."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Check `values` and build the configuration. Raises ConfigError naming the first setting that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explained(cls, error) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a configuration saved by `save`. Raises ConfigError if it is not one."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{Path(path).name} is not a configuration file: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{Path(path).name} is not a configuration file: expected names and values.")
        return cls.of(values)

    def to_json(self) -> str:
        """The configuration as indented JSON, as `read` takes it."""
        return self.model_dump_json(indent=2)

    def changed(self, **values: Any) -> Self:
        """A checked copy with some settings replaced."""
        return self.of({**self.model_dump(), **values})


def _explained(cls: type[Config], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return ConfigError(f"There is no setting called {name!r}. Known: {', '.join(cls.model_fields)}.", field=name)
    field = cls.model_fields.get(name or "")
    title = field.title if field else "The configuration"
    words = WRONG.get(first["type"].split("_")[0], WRONG.get(first["type"], ""))
    bounds = {key: f"{value:,.10g}" if isinstance(value, int | float) else value for key, value in first.get("ctx", {}).items()}
    said = words.format(**bounds) or first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = "nothing" if first["input"] in (None, "") else repr(first["input"])
    return ConfigError(f"{title}: {said} (given: {given})." if field else f"{said}.", field=name)


class ModelConfig(Config):
    """Which base model, and in which numbers it is held."""

    name: str = _setting(EMBEDDED_MODEL, "Model", "nano, a local folder, or a Hugging Face Hub id", basic=True, min_length=1)
    precision: Literal["auto", "float32", "bfloat16", "float16", "4bit"] = _setting(
        "auto", "Precision", "auto: 32-bit on a CPU; on a GPU 16-bit, or 4-bit where memory is short", basic=True
    )
    revision: str | None = _setting(None, "Revision", "Branch, tag or commit of a Hub model")
    gpu_memory_gib: float | None = _setting(None, "GPU memory", "Use at most so many GiB of the GPU; empty: all of it", gt=0)


class DatasetConfig(Config):
    """Where the rows come from, and which of their columns is which."""

    source: Literal["bundled", "file", "hub"] = _setting(
        "bundled", "Source", "Bundled teaching cases, a file, or a Hub dataset", basic=True
    )
    path: str | None = _setting(None, "File", "JSON, JSONL, CSV or Parquet", basic=True)
    name: str = _setting("FreedomIntelligence/medical-o1-reasoning-SFT", "Hub dataset", "owner/name", basic=True)
    config: str = _setting("en", "Hub config", "Hub datasets with several configs need one: en, zh, en_mix, zh_mix")
    split: str = _setting("train", "Split", "Which split of the Hub dataset")
    revision: str | None = _setting("fc2c9e8a37b38f38da6d449564a8c350b244aef4", "Revision", "Commit, tag or branch; pins what was read")
    first_rows: int | None = _setting(500, "First rows", "Read only this many rows; empty for all", basic=True, ge=1)
    question_column: str | None = _setting(None, "Question column", "Empty: guessed")
    reasoning_column: str | None = _setting(None, "Reasoning column", "Empty: guessed")
    response_column: str | None = _setting(None, "Response column", "Empty: guessed")


class SamplingConfig(Config):
    """How tokens are drawn. Temperature 0 takes the likeliest token every time."""

    temperature: float = _setting(0.6, "Temperature", "0 is greedy; the R1 distills recommend 0.6", basic=True, ge=0, le=2)
    top_p: float = _setting(0.95, "Top-p", "Draw from the likeliest tokens that together reach this probability", basic=True, gt=0, le=1)
    top_k: int = _setting(0, "Top-k", "Draw from this many likeliest tokens; 0: from all", ge=0, le=100_000)
    min_p: float = _setting(0.0, "Min-p", "Leave out tokens less likely than this share of the likeliest", ge=0, le=1)
    repetition_penalty: float = _setting(1.0, "Repetition penalty", "Above 1: tokens that stand already become less likely", gt=0, le=5)
    max_new_tokens: int = _setting(1200, "Longest answer", "Most new tokens a side, reasoning included", basic=True, ge=1, le=8192)
    seed: int = _setting(SEED, "Seed", "The same seed gives the same two texts again", basic=True, ge=0, le=2**31 - 1)


class FinetuneConfig(Config):
    """One LoRA fine-tuning run. The defaults are the source article's recipe; see PRESETS."""

    preset: str = _setting("article", "Preset", "Which preset these values started from")
    prompt_style: Literal[tuple(STYLES)] = _setting("article", "Prompt style", "The text around question and answer", basic=True)  # type: ignore[valid-type]
    supervision: Literal["whole_text", "response_only"] = _setting(
        "whole_text", "Supervision", "Train on the whole text as in the article, or only on reasoning and answer", basic=True
    )
    max_steps: int = _setting(60, "Steps", "Optimizer steps; 0 trains whole epochs instead", basic=True, ge=0, le=1_000_000)
    epochs: float = _setting(1.0, "Epochs", "Passes over the rows; used when steps is 0", basic=True, gt=0, le=100)
    learning_rate: float = _setting(2e-4, "Learning rate", "Peak learning rate of the adapter", basic=True, gt=0, le=1)
    batch_size: int = _setting(2, "Batch size", "Rows computed at once on one device; see Batches", basic=True, ge=1, le=256)
    accumulation: int = _setting(4, "Accumulation", "Batches added up before each optimizer step", basic=True, ge=1, le=1024)
    batching: Literal["auto", "as_set"] = _setting("as_set", "Batches", "auto: the same rows a step, in the largest batches that fit")
    devices: int = _setting(1, "GPUs", "GPUs of this machine that share the rows of each step", ge=1, le=64)
    rows_per_device: bool = _setting(False, "Rows per GPU", "As many rows a step on each GPU, instead of one step's rows shared among them")
    lora_rank: int = _setting(16, "LoRA rank", "Width of the adapter", basic=True, ge=1, le=512)
    lora_alpha: int = _setting(16, "LoRA alpha", "The adapter is scaled by alpha / rank", ge=1, le=1024)
    lora_dropout: float = _setting(0.0, "LoRA dropout", "Share of adapter inputs dropped in training", ge=0, lt=1)
    use_rslora: bool = _setting(False, "Rank-stabilized", "Scale by alpha / sqrt(rank) instead")
    max_seq_length: int = _setting(2048, "Longest row", "Tokens; longer rows are left out and counted", ge=16, le=131072)
    warmup_steps: int = _setting(5, "Warm-up steps", "Steps over which the learning rate rises", ge=0, le=100_000)
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = _setting("linear", "Schedule", "How the learning rate falls")
    optimizer: Literal["adamw_8bit", "adamw_torch"] = _setting(
        "adamw_8bit", "Optimizer", "8-bit needs a GPU; a CPU uses adamw_torch instead"
    )
    weight_decay: float = _setting(0.01, "Weight decay", "AdamW's weight decay", ge=0, le=1)
    base_precision: Literal["auto", "16bit", "4bit"] = _setting(
        "4bit", "Base in", "4bit holds the base in NF4; auto: as it is loaded, or 4bit if it does not fit. A GPU setting, ignored on a CPU"
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = _setting(
        "on", "Gradient checkpointing", "Less memory, more arithmetic; auto: only if needed. A GPU setting, off on a CPU"
    )
    attention: Literal["auto", "pytorch", "cudnn"] = _setting("auto", "Attention by", "Whose kernels; a GPU setting, ignored on a CPU")
    padded_to: int = _setting(0, "Pad to multiples of", "Tokens a batch's length is rounded up to; 1: not; 0: chosen", ge=0, le=1024)
    loader_workers: int = _setting(0, "Loader workers", "Processes that pad batches ahead; 0: the trainer does it itself", ge=0, le=16)
    seed: int = _setting(SEED, "Seed", "Row order and the adapter's first values", ge=0, le=2**31 - 1)
    logging_steps: int = _setting(10, "Log every", "Steps between two points of the loss plot", ge=1, le=10_000)
    eval_steps: int = _setting(20, "Evaluate every", "Steps between two held-out losses; 0: only first and last", ge=0, le=100_000)
    held_out_rows: int = _setting(24, "Held-out rows", "Rows kept out of training for the held-out loss", ge=0, le=10_000)
    checkpoint_steps: int = _setting(20, "Checkpoint every", "Steps between two checkpoints", ge=1, le=100_000)
    checkpoints_kept: int = _setting(
        4, "Checkpoints kept", "The newest, always with that of the best held-out loss; the others are removed", ge=1, le=100
    )
    probe_steps: int = _setting(20, "Probe every", "Steps between two answers to the probe questions; 0: none", ge=0, le=100_000)
    probe_questions: tuple[str, ...] = _setting((), "Probe questions", "At most two; empty: the first held-out question", max_length=2)
    probe_tokens: int = _setting(400, "Probe length", "Most new tokens of a probe answer", ge=1, le=4096)
    wandb: Literal["off", "offline", "online"] = _setting("off", "Weights & Biases", "online needs WANDB_API_KEY", basic=True)
    wandb_project: str = _setting("deepdoctor", "W&B project", "Project the run is logged to", min_length=1)

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _reads_older_files(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_steps and self.warmup_steps > self.max_steps:
            raise ValueError(f"Warm-up steps ({self.warmup_steps}) must not exceed the steps ({self.max_steps})")
        if self.rows_per_step % self.devices:
            raise ValueError(f"GPUs ({self.devices}) must divide the {self.rows_per_step} rows of a step, or take as many rows each")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows that go into one optimizer step, on all devices together."""
        return self.batch_size * self.accumulation * (self.devices if self.rows_per_device else 1)

    def steps_for(self, rows: int) -> int:
        """Optimizer steps of a run over `rows` training rows."""
        per_epoch = -(-rows // self.rows_per_step)
        return self.max_steps or max(1, round(per_epoch * self.epochs))


# what the planner may choose in a preset that reproduces nobody's run
AUTOMATIC: dict[str, Any] = {"batching": "auto", "base_precision": "auto", "gradient_checkpointing": "auto"}
PRESETS: dict[str, FinetuneConfig] = {
    "article": FinetuneConfig(),
    "quick": FinetuneConfig(
        preset="quick",
        max_steps=30,
        learning_rate=4e-3,
        batch_size=8,
        accumulation=1,
        **AUTOMATIC,
        optimizer="adamw_torch",
        logging_steps=1,
        eval_steps=10,
        checkpoint_steps=10,
        probe_steps=10,
    ),
    "full_epoch": FinetuneConfig(
        preset="full_epoch", **AUTOMATIC, max_steps=0, eval_steps=100, checkpoint_steps=100, checkpoints_kept=5, probe_steps=100
    ),
}


def preset(name: str) -> FinetuneConfig:
    """The preset of that name. Raises ConfigError naming the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset {name!r}; choose one of: {', '.join(PRESETS)}.", field="preset")
    return PRESETS[name]


class StudyConfig(Config):
    """One blinded study: what is compared, on which questions, and how large a difference it should be able to tell."""

    name: str = _setting("", "Name", "What the study is called; raters do not see it", basic=True, max_length=80)
    run: str = _setting(..., "Run", "The run whose adapter is the tuned side", basic=True, min_length=1)
    step: int | None = _setting(None, "Checkpoint", "Step of the checkpoint; empty: the final adapter", basic=True, ge=0)
    native_arm: bool = _setting(
        False, "Native arm", "Half of a rater's pairs are tuned against the base under its native prompt", basic=True
    )
    prompt_style: Literal[tuple(STYLES)] = _setting("article", "Prompt style", "The text around each question")  # type: ignore[valid-type]
    seeds_per_question: int = _setting(1, "Seeds per question", "Pairs written for each question", ge=1, le=5)
    repeat_share: float = _setting(0.1, "Repeated pairs", "Share of pairs shown again with slots swapped", ge=0, le=0.5)
    raters_expected: int = _setting(3, "Raters expected", "For the number of verdicts needed", basic=True, ge=1, le=1000)
    effect: float = _setting(
        0.65, "Effect", "Share of decided verdicts for one side that the study should tell from a half", basic=True, gt=0.5, lt=1
    )
    unseen_only: bool = _setting(True, "Unseen questions only", "Leave out what training has seen or nearly seen", basic=True)
    login_required: bool = _setting(False, "Raters log in", "Raters log in with Hugging Face; works on a Space only")
    seed: int = _setting(SEED, "Assignment seed", "Order and slots of the pairs", ge=0, le=2**31 - 1)
    sampling: SamplingConfig = _setting(SamplingConfig(), "Sampling", "How the answers are drawn")

    @model_validator(mode="after")
    def _makes_different_pairs(self) -> Self:
        if self.native_arm and self.prompt_style == "native":
            raise ValueError("Native arm needs another prompt style than native, or both arms would be the same base")
        if self.seeds_per_question > 1 and (self.sampling.temperature == 0 or self.sampling.top_k == 1):
            raise ValueError("Seeds per question must be 1 with temperature 0 or top-k 1: every seed would give the same pair again")
        return self

    @property
    def seeds(self) -> tuple[int, ...]:
        """The sampling seed of each pair of a question."""
        return tuple((self.sampling.seed + number) % 2**31 for number in range(self.seeds_per_question))


class Settings(Config):
    """How the app is launched; flags win over the environment, the environment over these defaults."""

    host: str = _setting("127.0.0.1", "HOST", "Address to listen on")
    port: int = _setting(7860, "PORT", "Port to listen on", ge=0, le=65535)
    model: str = _setting(EMBEDDED_MODEL, "MODEL", "nano, a local folder, or a Hub id; not given on an NVIDIA GPU: the 8B", min_length=1)
    data_dir: Annotated[Path, AfterValidator(Path.expanduser)] = _setting(Path("data"), "DATA_DIR", "Folder for all that is kept")
    login: str = _setting("", "LOGIN", "name:password that everyone who opens the page must give; better set in the environment")
    trainers: str = _setting("", "TRAINERS", "On a Space: Hugging Face names, separated by commas, that may train beside the owner")
    judgments_repo: str = _setting(
        "", "JUDGMENTS_REPO", "owner/name of a private dataset on the Hub that keeps a copy of studies and judgments; needs HF_TOKEN"
    )

    @model_validator(mode="after")
    def _has_whole_login(self) -> Self:
        if self.login and not all(self.credentials):
            raise ValueError("LOGIN must be a name and a password with a colon between them")
        return self

    @property
    def credentials(self) -> tuple[str, str]:
        """Name and password of `login`."""
        name, _, password = self.login.partition(":")
        return name.strip(), password

    @property
    def data_lasts(self) -> bool:
        """Whether the data folder lies on a disk of its own. The disk that a Space starts from is emptied at every restart."""
        folder = self.data_dir.resolve()
        return any(os.path.ismount(each) for each in [folder, *folder.parents][:-1])

    @classmethod
    def from_environment(cls, given: dict[str, Any] | None = None) -> "Settings":
        """Settings from the environment (HOST, PORT, MODEL, DATA_DIR …), overridden by what is `given` and not None.

        On a Space the app listens to everyone, and keeps its data in the mounted storage, if that can hold it.
        """
        names = {str(field.title): name for name, field in cls.model_fields.items()}
        values: dict[str, Any] = {"host": "0.0.0.0"} if os.environ.get("SPACE_ID") else {}
        if os.environ.get("SPACE_ID") and holds_runs(SPACE_STORAGE):
            values["data_dir"] = SPACE_STORAGE
        values |= {name: os.environ[title] for title, name in names.items() if os.environ.get(title)}
        return cls.of({**values, **{name: value for name, value in (given or {}).items() if value is not None}})
