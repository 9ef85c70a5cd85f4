"""Visitors who know the page's events and post to them directly, as a script would, with or without a Space's login cookie."""

import hashlib
import json
import time
import uuid
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

import httpx
import itsdangerous

# All that changes something for others, or takes something along: each asks who the visitor is
GATED = {
    *("ModelEvents.load", "Handlers.load_needed", "HubAdapterEvents.fetch", "HubAdapterEvents.remove"),
    *("TrainEvents.start", "TrainEvents.stop", "TrainEvents.resume"),
    *("RunsEvents.rename", "RunsEvents.resume", "RunsEvents.ask_to_delete", "RunsEvents.delete", "RunsEvents.export", "PushEvents.push"),
    # studies: what is listed carries links, and what is drawn unblinds
    *("StudiesEvents.refresh", "StudiesEvents.pick", "StudiesEvents.steps_of", "StudiesEvents.review", "StudiesEvents.create"),
    *("StudiesEvents.prepare", "StudiesEvents.stop", "StudiesEvents.let_in", "StudiesEvents.close"),
    *("StudiesEvents.ask_to_delete", "StudiesEvents.delete", "StudiesEvents.export"),
}
REFUSED = "You may not"
SECRET = "what only the Space and Hugging Face know"


def cookie_of(name: str, secret: str = SECRET, expires_in: float = 3600) -> str:
    """The session cookie that Gradio's login leaves with a visitor of that name, signed as Gradio signs it."""
    userinfo = {"sub": name, "name": name.title(), "preferred_username": name, "profile": f"https://huggingface.co/{name}", "picture": ""}
    info = {"access_token": "token", "scope": "openid profile", "expires_at": time.time() + expires_in, "userinfo": userinfo}
    key = hashlib.sha256(f"{secret}-v4".encode()).hexdigest()
    return itsdangerous.TimestampSigner(key).sign(b64encode(json.dumps({"oauth_info": info}).encode())).decode()


@dataclass
class Visitor:
    """One browser tab at that address. `cookies` are sent along."""

    url: str
    cookies: dict[str, str] = field(default_factory=dict)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    def post(self, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        """Post a body of JSON."""
        return httpx.post(f"{self.url}gradio_api/{path}", json=body, cookies=self.cookies, timeout=30, **more)

    def ask(self, event: int, data: list[Any], event_data: Any = None, query: str = "", **more: Any) -> str:
        """Call an event through the queue; returns all that came back, as text. `query` is that of the page's address."""
        body = {"data": data, "fn_index": event, "session_hash": self.session, "event_data": event_data, **more}
        self.post(f"queue/join{query}", body).raise_for_status()
        address = f"{self.url}gradio_api/queue/data?session_hash={self.session}"
        lines = []
        with httpx.stream("GET", address, cookies=self.cookies, timeout=60) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if "process_completed" in line:
                    return "\n".join(lines)
        raise AssertionError(f"The event did not end: {lines}")
