"""A small Hub on this machine, kept in memory: what the real huggingface_hub client calls for, with faults that can be switched on.

Models, datasets and Spaces; users with tokens and organisations; private and gated repositories; commits and revisions; files in git or in
LFS (never Xet, which the client must have switched off). The fixture `loopback_hub` in conftest points the library at one.
"""

import functools
import hashlib
import re
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_answers import ROUTES
from tests.loopback_repos import Answer, Call, File, Kind, Refused, Repo, User, git_oid, in_lfs

# cut_*: the connection breaks half-way; lose_commit_answer: it breaks after the commit was made; refuse_commit: HTTP 403; break: HTTP 500
Fault = Literal["cut_upload", "cut_download", "lose_commit_answer", "refuse_commit", "break"]


class LoopbackHub:
    """The server and all that it keeps. Use it as a context manager; `requests` is the log of what was asked ("PUT /lfs/…").

    `slow` is how many seconds each file of weights takes, one after the other, so that a download can be watched.
    """

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: Counter[Fault] = Counter()
        self.slow = 0.0
        self.line = threading.Lock()
        self.lock = threading.RLock()
        self.server = _Server(("127.0.0.1", 0), functools.partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away: from now on connections are refused."""
        self.server.shutdown()
        self.server.server_close()

    def add_user(self, name: str, *orgs: str, role: str = "write") -> str:
        """Make a user; returns the token."""
        token = f"hf_{name}_{role}"
        self.users[token] = User(name, orgs, role)
        return token

    def add_repo(self, name: str, files: dict[str, bytes] | None = None, kind: Kind = "model", **more: Any) -> Repo:
        """Make a repository, with these files in a second commit. `more`: private, gated, granted (names that may read though gated)."""
        repo = self.repos[kind, name] = Repo(kind, name, **more)
        first = repo.commit("initial commit", {".gitattributes": self._file(".gitattributes", b"*.safetensors filter=lfs\n")})
        if files:
            repo.commit("add files", first.files | {path: self._file(path, content) for path, content in files.items()})
        return repo

    def _file(self, path: str, content: bytes) -> File:
        if not in_lfs(path, len(content)):
            return File(len(content), git_oid(content), content=content)
        digest = hashlib.sha256(content).hexdigest()
        self.stored[digest] = content
        return File(len(content), git_oid(digest.encode()), digest)

    def declare(self, repo: Repo, path: str, size: int) -> None:
        """Commit a file that is only said to be there: its size is listed, its content cannot be fetched."""
        digest = hashlib.sha256(path.encode()).hexdigest()
        repo.commit("declare", repo.at("main").files | {path: File(size, git_oid(digest.encode()), digest)})

    def content(self, file: File) -> bytes:
        """The bytes of a file."""
        return self.stored.get(file.sha256, b"") if file.sha256 else file.content

    def files(self, name: str, kind: Kind = "model") -> dict[str, bytes]:
        """What lies in a repository now, without .gitattributes."""
        found = self.repos[kind, name].at("main").files
        return {path: self.content(file) for path, file in found.items() if path != ".gitattributes"}

    def asked(self, pattern: str) -> int:
        """How many requests ("METHOD path") match."""
        with self.lock:
            return sum(bool(re.search(pattern, request)) for request in self.requests)

    def take(self, fault: Fault) -> bool:
        """Whether this fault is to happen now; it then is one fewer."""
        with self.lock:
            happens = self.faults[fault] > 0
            self.faults[fault] -= happens
            return happens

    def user(self, authorization: str) -> User | None:
        """Who asks; None without a token."""
        if not authorization:
            return None
        try:
            return self.users[authorization.removeprefix("Bearer ")]
        except KeyError:
            raise Refused(401, "Invalid credentials in Authorization header") from None

    def repo(self, call: Call, write: bool = False) -> Repo:
        """The repository that a call is about, if the caller may see it (or write to it)."""
        name, user = call.parts["name"], call.user
        found = self.repos.get((call.kind, name))
        owns = user is not None and user.owns(name.split("/")[0])
        if found is None or (found.private and not owns):
            # the Hub tells nobody what is private: without a token even a name that does not exist is 401
            raise Refused(404 if user else 401, "Repository not found" if user else "Invalid username or password.", "RepoNotFound")
        if write and not user:
            raise Refused(401, "Invalid username or password.")
        if write and not (owns and user and user.role == "write"):
            raise Refused(403, f"Forbidden: you must use a write token to upload to {name}")
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away in the middle; whatever else goes wrong is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: LoopbackHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_args: Any) -> None:
        """The log is `requests`."""

    def _serve(self) -> None:
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and self.hub.take("cut_upload"):
            self.rfile.read(length // 2)
            self._cut()
            return
        body = self.rfile.read(length) if "chunked" not in self.headers.get("Transfer-Encoding", "") else self._chunks()
        answer = self._answer(body)
        if "/commit/" in self.path and self.hub.take("lose_commit_answer"):
            self._cut()
        else:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _chunks(self) -> bytes:
        found = []
        while size := int(self.rfile.readline(), 16):
            found.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(found)

    def _answer(self, body: bytes) -> Answer:
        split = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            if self.hub.take("break"):
                raise Refused(500, "Internal Error")
            user = self.hub.user(headers.get("authorization", ""))
            for wanted, pattern, answer in ROUTES:
                if method == wanted and (match := re.fullmatch(pattern, split.path)):
                    parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                    with self.hub.lock:
                        return answer(self.hub, Call(parse_qs(split.query), headers, body, user, parts))
            raise Refused(404, f"This Hub has no {method} {split.path}")
        except Refused as refused:
            return refused.answer

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.slow and self.path.endswith(".safetensors"):
            with self.hub.line:
                time.sleep(self.hub.slow)
        if "/resolve/" in self.path and self.hub.take("cut_download"):
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self._cut()
        else:
            self.wfile.write(answer.body)

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
