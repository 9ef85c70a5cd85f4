"""A copy of studies and judgments in a private dataset on the Hub: for Spaces, whose disk is lost at every restart."""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import TYPE_CHECKING

from deepdoctor.errors import StudyError
from deepdoctor.studies.study import Studies

if TYPE_CHECKING:
    from huggingface_hub import CommitScheduler, HfApi

COPIED = ("judgments", "studies")
# whether or not anything was heard of
MINUTES = 5
# seconds between two copies that were asked for; the Hub takes about 128 commits an hour
APART = 60.0
# seconds that the end of the app waits for the last copy
PATIENCE = 60.0


class Copy:
    """The copy being kept of one data folder. Safe for threads.

    repo: the dataset. apart: seconds at least between two copies that `soon` asks for.
    """

    def __init__(self, api: "HfApi", repo: str, data_dir: Path, apart: float = APART) -> None:
        self.api, self.repo, self.studies, self.apart = api, repo, Studies(data_dir), apart
        self._lock = Lock()
        self._waiting: Timer | None = None
        self._asked = -apart
        self._forgotten: set[str] = set()
        # path in the copy -> its time of change, of what the last copies brought there
        self._copied: dict[str, float] = {}
        self._made, self._failed, self._closed = 0.0, "", False
        self.scheduler = _scheduler(self, data_dir)
        # the scheduler's own first copy may come before it is ready for it, and is then left out
        self.scheduler.trigger()

    def soon(self) -> None:
        """Copy what was just saved: at once, or when the last copy that was asked for is `apart` seconds old. Does not wait for it."""
        with self._lock:
            if self._waiting or self._closed:
                return
            now = time.monotonic()
            self._asked = max(now, self._asked + self.apart)
            self._waiting = Timer(self._asked - now, self._start)
            self._waiting.daemon = True
            self._waiting.start()

    def _start(self) -> None:
        with self._lock:
            self._waiting = None
        # when Python ends, nothing new can be begun; the scheduler makes the last copy then
        with suppress(RuntimeError):
            self.scheduler.trigger()

    def close(self) -> None:
        """Make a last copy, for PATIENCE seconds at most, and no more."""
        with self._lock:
            self._closed = True
            if self._waiting:
                self._waiting.cancel()
        # what goes wrong is told by the scheduler's log
        with suppress(Exception):
            self.scheduler.trigger().result(PATIENCE)
        self.scheduler.stop()

    @property
    def failing(self) -> bool:
        """Whether the last copy failed."""
        return bool(self._failed)

    @property
    def told(self) -> str:
        """What is copied where, when last, and what can still be lost, in words."""
        last = f"last at {time.strftime('%d %b %H:%M', time.localtime(self._made))}" if self._made else "not yet since the start"
        if self._failed:
            return (
                f"The copy of studies and judgments in the dataset {self.repo} fails ({last}): {self._failed} What was saved since lies on "
                "this machine only, and is lost if its disk is. It is tried again every minute."
            )
        return (
            f"Studies and judgments are copied to the private dataset {self.repo}, {last}. What raters save is there within about a "
            "minute; should this machine be lost before that, this minute is lost with it."
        )

    def make(self) -> None:
        """Make one copy, take away there what was deleted here, and note how that went. Raises what goes wrong."""
        began = time.time()
        try:
            self._push()
            self._forget()
        except Exception as error:
            self._failed = _first_line(error)
            self.soon()
            raise
        self._made, self._failed = began, ""

    def _push(self) -> None:
        """Copy what changed. A file that is deleted meanwhile is left out: the library's own push fails at it."""
        from huggingface_hub import CommitOperationAdd

        changed: dict[str, float] = {}
        operations = []
        for path, file in self._files():
            with suppress(FileNotFoundError):
                # before it is read: what is written to it meanwhile is then copied the next time
                time_of_change = file.stat().st_mtime
                if self._copied.get(path) != time_of_change:
                    operations.append(CommitOperationAdd(path, file.read_bytes()))
                    changed[path] = time_of_change
        if operations:
            self.api.create_commit(self.repo, operations, commit_message="Copy studies and judgments", repo_type="dataset")
        self._copied |= changed

    def _files(self) -> list[tuple[str, Path]]:
        """What is to be copied: path in the copy, and the file."""
        root, gone = self.studies.root.parent, self.studies.deleted()
        return [(path, file) for path, file in _within(root) if _study_of(path) not in gone]

    def _forget(self) -> None:
        """Delete in the dataset what is left there of deleted studies."""
        from huggingface_hub import CommitOperationDelete

        gone = self.studies.deleted() - self._forgotten
        if not gone:
            return
        left = [path for path in self.api.list_repo_files(self.repo, repo_type="dataset") if _study_of(path) in gone]
        if left:
            operations = [CommitOperationDelete(path) for path in left]
            self.api.create_commit(self.repo, operations, commit_message="Delete what was deleted in the app", repo_type="dataset")
        self._forgotten |= gone


def _study_of(path: str) -> str:
    """The id of the study that a file of the copy belongs to, or ""."""
    folder, _, rest = path.partition("/")
    return rest.partition("/")[0] if folder == "studies" and "/" in rest else ""


def _within(root: Path) -> list[tuple[str, Path]]:
    """What a data folder, or a copy of one, has to be copied: path in it, and the file. What vanishes while it is listed is left out."""
    # os.walk passes over folders that vanish; Path.glob fails at them
    files = [Path(folder) / name for copied in COPIED for folder, _, names in os.walk(root / copied) for name in names]
    return [(file.relative_to(root).as_posix(), file) for file in sorted(files) if file.suffix in (".json", ".jsonl")]


def _scheduler(copy: Copy, data_dir: Path) -> "CommitScheduler":
    # imported here: only Spaces need it, and it takes time
    from huggingface_hub import CommitScheduler

    class Scheduler(CommitScheduler):
        """Tells its copy how it goes."""

        def push_to_hub(self) -> None:
            """One copy, if anything changed."""
            copy.make()

    return Scheduler(
        repo_id=copy.repo,
        repo_type="dataset",
        private=True,
        folder_path=data_dir,
        every=MINUTES,
        hf_api=copy.api,
    )


def keep_copy(data_dir: Path, repo: str, token: str | None = None, endpoint: str | None = None, apart: float = APART) -> Copy:
    """Bring back what the dataset `repo` holds and this disk lacks; then copy what changes to it: soon after a judgment, and at the end.

    The dataset is made, private, if it is not there. Raises StudyError if it is public, or cannot be read: going on without what raters
    have said would lose them. Call it before anybody judges.
    """
    import httpx
    from huggingface_hub import HfApi
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
        return Copy(api, repo, data_dir, apart)
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise StudyError(
            f"The copy of the judgments in the dataset {repo} cannot be used: {_first_line(error)} "
            "Check JUDGMENTS_REPO, and that HF_TOKEN may write to it."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _bring_back(api: "HfApi", repo: str, data_dir: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        api.snapshot_download(repo, repo_type="dataset", allow_patterns=[f"{name}/*.json*" for name in COPIED], local_dir=folder)
        here, there = Studies(data_dir), Studies(Path(folder))
        # first: a copy that was not yet cleaned must not bring back what was deleted for good
        for study in sorted(there.deleted() - here.deleted()):
            here.note_deleted(study)
        gone = here.deleted()
        for path, file in _within(Path(folder)):
            kept = data_dir / path
            if not kept.exists() and _study_of(path) not in gone:
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, kept)
