"""A copy of studies and judgments in a private dataset on the Hub: for Spaces, whose disk is lost at every restart."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deepdoctor.errors import StudyError

if TYPE_CHECKING:
    from huggingface_hub import CommitScheduler, HfApi

COPIED = ["judgments/*.jsonl", "studies/*.json", "studies/*.jsonl"]
MINUTES = 5


def keep_copy(data_dir: Path, repo: str, token: str | None = None, endpoint: str | None = None) -> "CommitScheduler":
    """Bring back what the dataset `repo` holds and this disk lacks; then copy what changes to it every few minutes, and at exit.

    The dataset is made, private, if it is not there. Raises StudyError if it is public, or cannot be read: going on without what raters
    have said would lose them. Call it before anybody judges.
    """
    # imported here: only Spaces need it, and it takes time
    import httpx
    from huggingface_hub import CommitScheduler, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    api = HfApi(endpoint=endpoint, token=token)
    try:
        try:
            found = api.repo_info(repo, repo_type="dataset")
        except RepositoryNotFoundError:
            found = None
        if found and not found.private:
            raise StudyError(
                f"The dataset {repo} is public, and judgments carry names. Make it private, or name another in JUDGMENTS_REPO."
            )
        if found:
            _bring_back(api, repo, data_dir)
        return CommitScheduler(
            repo_id=repo, repo_type="dataset", private=True, folder_path=data_dir, allow_patterns=COPIED, every=MINUTES, hf_api=api
        )
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise StudyError(
            f"The copy of the judgments in the dataset {repo} cannot be used: {str(error).strip().splitlines()[0]} "
            "Check JUDGMENTS_REPO, and that HF_TOKEN may write to it."
        ) from error


def _bring_back(api: "HfApi", repo: str, data_dir: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        api.snapshot_download(repo, repo_type="dataset", allow_patterns=COPIED, local_dir=folder)
        for pattern in ("judgments/*.jsonl", "studies/**/*.json", "studies/**/*.jsonl"):
            for file in Path(folder).glob(pattern):
                kept = data_dir / file.relative_to(folder)
                if not kept.exists():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, kept)
