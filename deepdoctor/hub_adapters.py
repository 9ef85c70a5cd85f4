"""LoRA adapters of the Hub as tuned sides: fetched once, looked at, and kept under `<data>/adapters/`.

Of an adapter's configuration only what plain LoRA needs is kept; what would make PEFT do anything else to the base is refused.
"""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from deepdoctor.download import ANSWER_SECONDS, Bar, Progress, Report
from deepdoctor.errors import DeepDoctorError, ModelError
from deepdoctor.files import write_json
from deepdoctor.hub import Wanted, hub_api, hub_endpoint, other_trouble, trouble
from deepdoctor.origins import real_id

PREFIX = "hub--"
FOLDER = "folder--"
WEIGHTS, CONFIG, ABOUT = "adapter_model.safetensors", "adapter_config.json", "hub.json"
MOST_BYTES, MOST_CONFIG, MOST_HEADER = 8 * 10**9, 10**6, 50 * 10**6
ID = re.compile(r"hub--[\w.-]{1,96}--[\w.-]{1,96}--[0-9a-f]{12}")
# beyond these, PEFT would train or change other things than two low-rank factors, or change the base to put them in
OTHER_KINDS = {
    **dict.fromkeys(("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "target_parameters"), "{} is set"),
    **dict.fromkeys(("trainable_token_indices", "megatron_config", "alora_invocation_tokens", "arrow_config"), "{} is set"),
    **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out"), "{} is on"),
}
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "loftq", "orthogonal")


@dataclass(frozen=True)
class HubAdapter:
    """One adapter on disk, of one commit. It can stand where a run stands on the tuned side."""

    path: Path

    @property
    def id(self) -> str:
        """The folder's name: hub--owner--name--commit. Comparisons keep it in place of a run's id."""
        return self.path.name

    @property
    def about(self) -> dict[str, Any]:
        """hub.json: {"repo", "revision" (the whole commit), "base" (as the adapter names it, or "")}. Raises ModelError if damaged."""
        try:
            return dict(json.loads((self.path / ABOUT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"The adapter in {self.path} is damaged: {error}. Remove the folder and fetch the adapter again.") from None

    @property
    def repo(self) -> str:
        """Its name on the Hub."""
        return str(self.about["repo"])

    @property
    def name(self) -> str:
        """What it is called on the page."""
        return f"{self.repo} (Hub)"

    def adapter_dir(self, step: int | None = None) -> Path:
        """Where its weights lie. Raises ModelError for a step: the Hub's adapter has none."""
        if step is not None:
            raise ModelError(f"{self.name} has no checkpoints.")
        return self.path

    def training_questions(self) -> list[str]:
        """None are known."""
        return []

    def made_for_another(self, base: str) -> str:
        """That the adapter names another base than the one called so, in words; "" if the same, or if it names none."""
        named = str(self.about["base"])
        # the Hub tells no case apart, and Unsloth writes its names in lower case
        if not named or (real_id(named) or named).lower() == (real_id(base) or base).lower():
            return ""
        return f"{self.name} says that it was made for {named[:100]}, not for {base}. If a tensor does not fit, it is refused by its name."


class FolderAdapter(HubAdapter):
    """An adapter in a folder of this machine, as PEFT or an export writes one. It is read where it lies, and not kept."""

    @property
    def id(self) -> str:
        """Comparisons keep it in place of a run's id: folder--name."""
        return f"{FOLDER}{self.path.resolve().name}"

    @property
    def about(self) -> dict[str, Any]:
        """{"repo" (the folder), "base" (as the adapter names it, or "")}. Raises ModelError if there is no adapter in the folder."""
        try:
            given = read_config(self.path, str(self.path))
        except OSError as error:
            raise ModelError(f"There is no adapter in {self.path}: {CONFIG} cannot be read ({error.strerror}).") from None
        return {"repo": str(self.path), "base": str(given.get("base_model_name_or_path") or "")}

    @property
    def name(self) -> str:
        """The folder."""
        return f"{self.path} (folder)"


class HubAdapters:
    """All adapters fetched from the Hub under one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.root = Path(data_dir) / "adapters"

    def list(self) -> list[HubAdapter]:
        """Those that are whole, by name."""
        found = [HubAdapter(file.parent) for file in sorted(self.root.glob(f"{PREFIX}*/{ABOUT}")) if ID.fullmatch(file.parent.name)]
        return [each for each in found if _is_readable(each)]

    def get(self, adapter_id: str) -> HubAdapter:
        """The adapter with that id. Raises ModelError if there is none (an id is a folder's name, never a path)."""
        found = HubAdapter(self.root / adapter_id)
        if not ID.fullmatch(adapter_id) or not (found.path / ABOUT).exists():
            raise ModelError(f"There is no adapter {adapter_id[:60]!r} here. Fetch it from the Hub again.")
        return found

    def find(self, named: str, report: Report) -> HubAdapter:
        """The adapter in the folder `named`; or the one of the Hub's repository of that name that was fetched last, or is fetched now.

        Raises ModelError as `fetch` does, or if there is no adapter in the folder.
        """
        folder = Path(named).expanduser()
        if folder.is_dir() or named.startswith(("/", ".", "~")):
            return FolderAdapter(folder)
        here = [each for each in self.list() if each.repo.lower() == named.strip().lower()]
        return max(here, key=lambda each: (each.path / ABOUT).stat().st_mtime, default=None) or self.fetch(named, "", report)

    def remove(self, adapter_id: str) -> None:
        """Remove an adapter's files; comparisons made with it stay. Raises ModelError if there is none, or if they cannot be removed."""
        found = self.get(adapter_id)
        # out of the list at once and as a whole, whatever stops the removal
        try:
            with tempfile.TemporaryDirectory(prefix=".removing-", dir=self.root) as aside:
                found.path.rename(Path(aside) / found.id)
        except OSError as error:
            raise ModelError(f"{found.path} could not be removed: {error.strerror}.") from error

    def fetch(self, repo: str, revision: str, report: Report, token: str | None = None) -> HubAdapter:
        """Fetch an adapter, if that commit of it is not here yet. revision: a branch, tag or commit; "" for the newest.

        Raises ModelError that says what to do: no such name, gated, no network, disk full, no adapter, or one of another kind.
        """
        wanted = Wanted("model", repo.strip(), revision.strip() or None)
        try:
            return self._fetched(wanted, report, token)
        except DeepDoctorError:
            raise
        except Exception as error:
            raise ModelError(trouble(error, wanted) or other_trouble(error, wanted)) from error

    def _fetched(self, wanted: Wanted, report: Report, token: str | None) -> HubAdapter:
        report(f"Looking for {wanted.name} on the Hub", None)
        info = hub_api(token).model_info(wanted.name, revision=wanted.revision, files_metadata=True, timeout=ANSWER_SECONDS)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        made = HubAdapter(self.root / f"{PREFIX}{info.id.replace('/', '--')}--{(info.sha or '')[:12]}")
        if not ID.fullmatch(made.id):
            raise ModelError(f"{wanted.name} cannot be kept under its name. Expected owner/name.")
        if (made.path / ABOUT).exists():
            return made
        self._require_adapter(wanted.name, sizes)
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=self.root) as aside:
            bars: Any = partial(Bar, Progress(wanted.name, sizes[WEIGHTS] + sizes[CONFIG], report))
            snapshot_download(
                info.id,
                revision=info.sha,
                allow_patterns=[WEIGHTS, CONFIG],
                local_dir=aside,
                token=token,
                endpoint=hub_endpoint(),
                etag_timeout=ANSWER_SECONDS,
                tqdm_class=bars,
            )
            shutil.rmtree(Path(aside) / ".cache", ignore_errors=True)
            given = read_config(Path(aside), wanted.name)
            write_json(Path(aside) / CONFIG, plain_lora(given, modules_of(Path(aside) / WEIGHTS, wanted.name), wanted.name))
            shutil.copytree(aside, made.path, dirs_exist_ok=True)
        base = given.get("base_model_name_or_path")
        write_json(made.path / ABOUT, {"repo": info.id, "revision": info.sha, "base": base if isinstance(base, str) else ""})
        return made

    def _require_adapter(self, name: str, sizes: dict[str, int]) -> None:
        missing = [file for file in (CONFIG, WEIGHTS) if file not in sizes]
        if missing:
            raise ModelError(f"{name} is no LoRA adapter in PEFT's format: it has no {' and no '.join(missing)}. Choose another one.")
        if sizes[WEIGHTS] > MOST_BYTES or sizes[CONFIG] > MOST_CONFIG:
            raise ModelError(f"{name} is larger than any LoRA adapter should be ({sizes[WEIGHTS] / 1e9:,.1f} GB). Choose another one.")
        free = shutil.disk_usage(next(folder for folder in (self.root, *self.root.parents) if folder.exists())).free
        if 2 * sizes[WEIGHTS] > free:
            raise ModelError(f"{name} needs {2 * sizes[WEIGHTS] / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free. Free some space.")


def _is_readable(adapter: HubAdapter) -> bool:
    try:
        return {"repo", "base"} <= adapter.about.keys()
    except ModelError:
        return False


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """An adapter's configuration; `name` is what it is called within a sentence. Raises ModelError, or OSError if there is none."""
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"The {CONFIG} of {name} cannot be read: {error}. Choose another adapter.") from None
    if not isinstance(values, dict):
        raise ModelError(f"The {CONFIG} of {name} cannot be read: expected names and values. Choose another adapter.")
    return values


def modules_of(weights: Path, name: str) -> list[str]:
    """The modules that an adapter's weights belong to, as PEFT names them, read from the file's head. Raises ModelError."""
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER:
                raise ValueError("its head is too long")
            head = json.loads(file.read(length))
        keys = [key for key in head if key != "__metadata__"]
    except (ValueError, TypeError) as error:
        raise ModelError(f"The weights of {name} cannot be read as safetensors: {error}. Choose another adapter.") from None
    if not keys:
        raise ModelError(f"The weights of {name} are empty. Choose another adapter.")
    return sorted({key.removeprefix("base_model.model.").partition(".lora_")[0] for key in keys})


def rank_and_weight(given: dict[str, Any], name: str) -> tuple[int, float]:
    """r and lora_alpha of an adapter's configuration. Raises ModelError if it does not tell them."""
    rank, alpha = given.get("r"), given.get("lora_alpha")
    if not (isinstance(rank, int) and 0 < rank <= 4096 and isinstance(alpha, int | float)):
        raise ModelError(f"The {CONFIG} of {name} does not tell a rank (r) and a weight (lora_alpha). Choose another adapter.")
    return rank, alpha


def plain_lora(given: dict[str, Any], modules: list[str], name: str) -> dict[str, Any]:
    """PEFT's configuration of a plain LoRA adapter on those modules, of what `given` says. Raises ModelError if it is of another kind."""
    other = [told.format(key) for key, told in OTHER_KINDS.items() if given.get(key)]
    if given.get("peft_type") != "LORA":
        other.append(f"its type is {str(given.get('peft_type'))[:40]}")
    if given.get("bias") not in (None, "none"):
        other.append("it trains biases")
    if given.get("init_lora_weights") not in PLAIN_STARTS:
        other.append("it was begun from a changed base (init_lora_weights)")
    if other:
        raise ModelError(f"Only plain LoRA adapters can be compared in pairs, and {name} is none: {'; '.join(other)}.")
    rank, alpha = rank_and_weight(given, name)
    kept = {"r": rank, "lora_alpha": alpha, "use_rslora": bool(given.get("use_rslora")), "target_modules": modules}
    return {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True, "lora_dropout": 0.0, **kept}
