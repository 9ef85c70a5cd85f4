"""Publishing an export on the Hub: the adapter with tokenizer and model card in one repository, the merged model in a second one."""

import filecmp
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from deepdoctor.card import facts_of, write_cards
from deepdoctor.checkpoints import adapter_step
from deepdoctor.comparison import Comparisons
from deepdoctor.config import ModelConfig
from deepdoctor.engine.protocol import Export
from deepdoctor.errors import ConfigError, DeepDoctorError, RunError
from deepdoctor.files import write_json
from deepdoctor.hub import Wanted, hub_api, is_passing, other_trouble, trouble
from deepdoctor.origins import must_be_named_llama, real_id
from deepdoctor.runs import Run, Runs

Say = Callable[[str], None]

# tells whose a repository is; uploaded first, so that an upload that was cut off can go on
MARK = "deepdoctor.json"
TRIES = 3
TOKENS = "https://huggingface.co/settings/tokens"
NO_TOKEN = f"Publishing needs a token that may write: make one at {TOKENS}, set HF_TOKEN to it and start again."
NAME_CHARACTERS = 50  # of the base's name in a suggested one: the Hub allows 96 for owner and name


@dataclass(frozen=True)
class Destination:
    """Where a push goes: to which repository, for its owner's eyes only or not, and whether anything else in there is replaced."""

    repo: str
    private: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class Part:
    """One repository, and the files of the export that go into it."""

    repo: str
    label: str
    files: tuple[Path, ...]


def push_run(data_dir: Path, wanted: Export, to: Destination, export: Callable[[], Path], say: Say = print) -> list[str]:
    """Publish a run's adapter and, if wanted, the merged model, each with its card; returns the addresses.

    `export` writes the export and returns its folder; it is called only where no such export lies there yet, and only once the destination
    has been found good. Raises ConfigError or RunError as `publish` does, and whatever `export` raises.
    """
    run = Runs(data_dir).get(wanted.run)
    check_destination(to.repo, run.model.name)
    folder = exported(data_dir, run, wanted) or export()
    facts = facts_of(run, Comparisons(data_dir).list(), to.repo, _made(folder))
    say(f"Writing the model card; it quotes {len(facts.examples)} of the saved comparisons with their questions")
    write_cards(folder, facts)
    url = publish(folder, to, wanted.merged, say=say)
    return [url, f"{url}-merged"] if wanted.merged else [url]


def suggested_repo(run: Run, owner: str = "owner") -> str:
    """A name for the run's repository: the base's, beginning with Llama where its licence asks for it, and the end of the run's id."""
    base = run.model.name
    name = re.sub(r"[^A-Za-z0-9._]+", "-", (real_id(base) or base).rstrip("/").rpartition("/")[2])
    if must_be_named_llama(base):
        name = "Llama-" + re.sub(r"(?i)(?:^|(?<=[-_]))(?:meta-)?llama-?", "", name)
    name = re.sub(r"[-.]{2,}", "-", name[:NAME_CHARACTERS]).strip("-._")
    return f"{owner}/{name or 'model'}-medical-{run.id.rpartition('-')[2]}"


def publish(folder: Path, to: Destination, merged: bool = True, token: str | None = None, say: Say = print) -> str:
    """Upload an export with its cards (`card.write_cards`) to `to.repo`, and with `merged` its merged model, if it has one, to `…-merged`.

    Returns the address of the first. What has been uploaded is not sent again: a broken connection is tried again, and so can the whole
    call be. A repository that holds anything but an earlier upload of the same adapter is left alone, unless `to.overwrite` says to replace
    it. Raises ConfigError if the name will not do, RunError for whatever else stands in the way; both say what to do.
    """
    made = _made(folder)
    base = ModelConfig.of(made["model"]).name
    parts = _parts(folder, to.repo, merged)
    mark = {"run": made["run"], "step": made["step"]}
    api = hub_api(token)
    try:
        check_destination(to.repo, base, token)
        for part in parts:
            _open(api, part.repo, to.private, mark, to.overwrite)
        for part in parts:
            say(f"Uploading the {part.label} to {part.repo}")
            with tempfile.TemporaryDirectory() as staged:
                _stage(part, Path(staged), made["base_id"], mark)
                _upload(api, part.repo, Path(staged), say, to.overwrite)
    except DeepDoctorError:
        raise
    except Exception as error:
        raise _explained(error, to.repo) from error
    return f"{api.endpoint}/{to.repo}"


def check_destination(repo: str, base: str, token: str | None = None) -> None:
    """Raise, before anything is made or sent, if that repository cannot be published to: its name, the token, its owner."""
    owner, _, name = repo.partition("/")
    try:
        validate_repo_id(f"{repo}-merged")
    except HFValidationError:
        name = ""
    if not name:
        raise ConfigError(f"{repo!r} cannot be a repository's name. Expected owner/name, of letters, digits, -, _ and dots.", field="repo")
    if must_be_named_llama(base) and not name.startswith("Llama"):
        raise ConfigError(
            f"The base model is derived from Llama, whose licence asks that the name begins with it: {owner}/Llama-{name}.", field="repo"
        )
    try:
        who = hub_api(token).whoami()
    except LocalTokenNotFoundError as error:
        raise RunError(NO_TOKEN) from error
    except Exception as error:
        raise _explained(error, repo) from error
    owners = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if owner not in owners:
        raise RunError(f"Your token belongs to {who['name']}, who has no right to write to {owner}. Choose among: {', '.join(owners)}.")
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise RunError(f"Your token may only read. Make one that may write at {TOKENS}, set HF_TOKEN to it and start again.")


def exported(data_dir: Path, run: Run, wanted: Export) -> Path | None:
    """The folder of an export that holds what is wanted, from the adapter that the run has now; None if it must be exported (anew).

    Raises RunError if the run has no such adapter.
    """
    folder = Path(data_dir) / "exports" / (wanted.run + (f"-{wanted.step}" if wanted.step is not None else ""))
    weights = folder / "adapter" / "adapter_model.safetensors"
    current = run.adapter_dir(wanted.step) / weights.name
    same = weights.exists() and filecmp.cmp(weights, current, shallow=False)
    # the first exports did not say which adapter they are of; the card has to
    told = same and _made(folder).get("adapter_step") == adapter_step(run, wanted.step)
    return folder if told and (not wanted.merged or (folder / "merged").is_dir()) else None


def _made(folder: Path) -> dict[str, Any]:
    """How an export was made; {} if it does not say, and then it must be made anew."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _parts(folder: Path, repo: str, merged: bool) -> list[Part]:
    shared = (folder / "prompt_style.json",)
    adapter = (*(folder / "adapter").iterdir(), *(folder / "tokenizer").iterdir(), *shared)
    parts = [Part(repo, "adapter", adapter)]
    if merged and (folder / "merged").is_dir():
        parts.append(Part(f"{repo}-merged", "merged model", (*(folder / "merged").iterdir(), *shared)))
    if not all((folder / name / "README.md").exists() for name in ("adapter", "merged")[: len(parts)]):
        raise RunError(f"The export in {folder} has no model card; nothing is published without one. Export it again.")
    return parts


def _stage(part: Part, staged: Path, base_id: str | None, mark: dict[str, object]) -> None:
    """Links to all files, and those that must not be uploaded as they are: PEFT names the base by its local path or 4-bit copy."""
    for file in part.files:
        if file.name == "adapter_config.json":
            values = json.loads(file.read_text(encoding="utf-8"))
            write_json(staged / file.name, {**values, "base_model_name_or_path": base_id})
        else:
            (staged / file.name).symlink_to(file.resolve())
    write_json(staged / MARK, mark)


def _open(api: HfApi, repo: str, private: bool, mark: dict[str, object], overwrite: bool) -> None:
    """Make the repository and mark it, or see that the one there may be written to."""
    try:
        api.create_repo(repo, private=private)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        info = api.model_info(repo)
        if private and not info.private:
            raise RunError(f"{repo} is public already. Publish it as public, or choose another name.") from None
        if info.private and not private:
            raise RunError(
                f"{repo} is private already. Publish it as private, or make it public in its settings on the Hub first."
            ) from None
        there = {file.rfilename for file in info.siblings or []} - {".gitattributes"}
        if there and not overwrite and not (MARK in there and _mark_of(api, repo, info.sha) == mark):
            raise RunError(f"{repo} has other content already. Choose another name, or say that it is to be overwritten.") from None
    api.upload_file(
        repo_id=repo, path_in_repo=MARK, path_or_fileobj=(json.dumps(mark, indent=2) + "\n").encode(), commit_message="Begin an upload"
    )


def _mark_of(api: HfApi, repo: str, revision: str | None) -> object:
    file = Path(api.hf_hub_download(repo, MARK, revision=revision))
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _upload(api: HfApi, repo: str, staged: Path, say: Say, overwrite: bool) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            api.upload_folder(
                repo_id=repo,
                folder_path=staged,
                commit_message="Upload from DeepDoctor",
                delete_patterns="*" if overwrite else None,
            )
            return
        except Exception as error:
            if attempt == TRIES or not is_passing(error):
                raise
            say(f"The connection broke; trying again ({attempt + 1} of {TRIES}). What has arrived is not sent again.")
            time.sleep(attempt)


def _explained(error: Exception, repo: str) -> RunError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return RunError(f"The Hub does not know this token (HTTP 401). Make a new one at {TOKENS}, set HF_TOKEN to it and start again.")
    if status == 403:
        said = " ".join((getattr(error, "server_message", None) or "no reason given").split())
        return RunError(
            f"The Hub refuses to write to {repo} (HTTP 403: {said}). Give the token the right at {TOKENS}, or choose another owner."
        )
    wanted = Wanted("model", repo, may="write")
    return RunError(trouble(error, wanted) or other_trouble(error, wanted))
