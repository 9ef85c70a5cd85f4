"""A W&B server on this machine: its API answers, and no upload to it is ever taken in, as behind a firewall or on a poor network."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LoopbackWandb:
    """The server. Use it as a context manager; `uploads` is the log of paths to which something was to be uploaded."""

    def __init__(self) -> None:
        self.uploads: list[str] = []
        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"home": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackWandb":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What the API says to a query or mutation of that name, of those that wandb 0.31 needs to log a run."""
        if name == "UpsertBucket":
            project = {"id": "p", "name": "a-project", "entity": {"id": "e", "name": "somebody"}}
            bucket = {"id": "1", "name": asked.get("name"), "displayName": "run", "config": "{}", "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in asked["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        viewer = {"id": "1", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": None, "model": None, "project": None}


class _Handler(BaseHTTPRequestHandler):
    home: LoopbackWandb
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: Any) -> None:
        """Nothing: standard error belongs to the tests."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = json.loads(asked) if "graphql" in self.path else {"query": ""}
        name = "".join(re.findall(r"(?:query|mutation)\s+(\w+)", query["query"])[:1])
        if name in ("", "CreateArtifact"):
            self.home.uploads.append(self.path)
            self.home.over.wait()
            self.close_connection = True
            return
        answer = json.dumps({"data": self.home.answer(name, query.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST
