"""What the loopback Hub keeps, and what goes in and out of it: users, repositories with their commits, calls and answers."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["model", "dataset", "space"]
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png")
LFS_FROM = 10_000_000


@dataclass(frozen=True)
class User:
    """Somebody with a token. `role` is what the token may: read or write."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, owner: str) -> bool:
        """Whether repositories under that name are theirs."""
        return owner in (self.name, *self.orgs)


@dataclass(frozen=True)
class File:
    """A file of a commit. `sha256` if it lies in LFS; `content` if it lies in git."""

    size: int
    oid: str
    sha256: str = ""
    content: bytes = b""

    @property
    def etag(self) -> str:
        """What the client names the cached file after, and compares its own with."""
        return self.sha256 or self.oid

    def lfs(self, oid_name: str) -> dict[str, Any]:
        """Its entry in listings, where the hash has one of two names."""
        return {"lfs": {oid_name: self.sha256, "size": self.size, "pointerSize": 130}} if self.sha256 else {}


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    id: str
    title: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository with its commits, oldest first."""

    kind: Kind
    name: str
    private: bool = False
    gated: bool = False
    granted: tuple[str, ...] = ()
    commits: list[Commit] = field(default_factory=list)
    made_with: dict[str, Any] = field(default_factory=dict)

    def commit(self, title: str, files: dict[str, File]) -> Commit:
        """Append a commit that holds exactly these files."""
        said = f"{self.kind} {self.name} {title} {len(self.commits)} {sorted((path, file.etag) for path, file in files.items())}"
        self.commits.append(Commit(hashlib.sha1(said.encode()).hexdigest(), title, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        """The commit of a branch or hash. Refused if there is none."""
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        found = [commit for commit in self.commits if commit.id == revision]
        if not found:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]


class Refused(Exception):
    """An answer that is an error: status, words, and the Hub's code for it."""

    def __init__(self, status: int, said: str, code: str = "", **more: Any) -> None:
        super().__init__(said)
        headers = {"X-Error-Message": said, **({"X-Error-Code": code} if code else {})}
        self.answer = Answer(status, json.dumps({"error": said, **more}).encode(), headers)


@dataclass(frozen=True)
class Call:
    """One request: its query and headers, its body, who asks, and the parts that its route took from the path."""

    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    user: User | None
    parts: dict[str, str]

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def kind(self) -> Kind:
        """Which kind of repository the path is about: API paths always tell, others only if it is no model."""
        return (self.parts.get("kind") or "models/").strip("/").removesuffix("s")  # type: ignore[return-value]


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def git_oid(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def in_lfs(path: str, size: int) -> bool:
    """Whether a file goes into LFS rather than git. Empty files cannot."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_FROM)
