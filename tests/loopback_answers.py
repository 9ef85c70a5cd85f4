"""What the loopback Hub answers, one function a route; see loopback_hub.py.

Answers follow what huggingface_hub 1.33 reads and what the Hub is documented to send; `checked_card` knows only the rules it states.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml

from tests.loopback_repos import Answer, Call, File, Kind, Refused, git_oid, in_lfs

if TYPE_CHECKING:
    from tests.loopback_hub import LoopbackHub

LICENSES = {"apache-2.0", "mit", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "other"}
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def as_json(value: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def whoami(_hub: "LoopbackHub", call: Call) -> Answer:
    """Who the token belongs to."""
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": org} for org in call.user.orgs]
    return as_json({"type": "user", "name": call.user.name, "orgs": orgs, "auth": {"accessToken": {"role": call.user.role}}})


def create(hub: "LoopbackHub", call: Call) -> Answer:
    """A new repository, with its first commit."""
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    asked = call.json
    owner = asked.get("organization") or call.user.name
    kind: Kind = asked.get("type") or "model"
    name = f"{owner}/{asked['name']}"
    if not call.user.owns(owner) or call.user.role != "write":
        raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {owner}")
    url = f"{hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
    if (kind, name) in hub.repos:
        raise Refused(409, f"You already created this {kind} repo", url=url)
    hub.add_repo(name, kind=kind, private=asked.get("visibility") == "private", made_with=asked)
    return as_json({"url": url, "name": name})


def delete(hub: "LoopbackHub", call: Call) -> Answer:
    """Remove a repository."""
    asked = call.json
    owner = asked.get("organization") or (call.user.name if call.user else "")
    parts = {"kind": asked.get("type") or "model", "name": f"{owner}/{asked['name']}"}
    found = hub.repo(Call({}, {}, b"", call.user, parts), write=True)
    del hub.repos[found.kind, found.name]
    return Answer()


def checked_card(_hub: "LoopbackHub", call: Call) -> Answer:
    """The metadata of a README: a YAML mapping; licence, language, base model, relation and datasets of the documented form."""
    match = re.match(r"---\n(.*?)\n---\n", call.json["content"], re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        data = {"license": str(error)}
    listed = {name: each if isinstance(each, list) else [each] for name, each in data.items()}
    rules: dict[str, Callable[[str], object]] = {
        "license": LICENSES.__contains__,
        "language": re.compile(r"[a-z]{2,3}").fullmatch,
        "base_model": REPO_ID.fullmatch,
        "base_model_relation": RELATIONS.__contains__,
        "datasets": REPO_ID.fullmatch,
        "tags": re.compile(r".{1,100}").fullmatch,
    }
    wrong = [f'"{name}" must not be {value!r}' for name, rule in rules.items() for value in listed.get(name, []) if not rule(str(value))]
    if "other" in listed.get("license", []) and "license_name" not in data:
        wrong.append('"license_name" is required')
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return as_json({"errors": [{"message": each} for each in wrong], "warnings": warnings}, 400 if wrong else 200)


def info(hub: "LoopbackHub", call: Call) -> Answer:
    """What a repository is, with its files; with `blobs` also their sizes."""
    repo = hub.repo(call)
    commit = repo.at(call.parts.get("revision") or "main")
    files: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
    if "blobs" in call.query:
        files = [{"rfilename": path, "size": file.size, "blobId": file.oid} | file.lfs("sha256") for path, file in commit.files.items()]
    told = {"id": repo.name, "sha": commit.id, "private": repo.private, "gated": "manual" if repo.gated else False}
    return as_json(told | {"tags": [], "downloads": 0, "likes": 0, "siblings": files})


def tree(hub: "LoopbackHub", call: Call) -> Answer:
    """The files of a commit, folders inside out."""
    files = hub.repo(call).at(call.parts["revision"]).files
    return as_json([_entry(path, file) for path, file in files.items()])


def paths_info(hub: "LoopbackHub", call: Call) -> Answer:
    """Some files of a commit."""
    files = hub.repo(call).at(call.parts["revision"]).files
    paths = call.json["paths"] if call.body.startswith(b"{") else parse_qs(call.body.decode())["paths"]
    return as_json([_entry(path, files[path]) for path in paths if path in files])


def _entry(path: str, file: File) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": file.size, "oid": file.oid} | file.lfs("oid")


def refs(hub: "LoopbackHub", call: Call) -> Answer:
    """The one branch."""
    main = {"name": "main", "ref": "refs/heads/main", "targetCommit": hub.repo(call).at("main").id}
    return as_json({"branches": [main], "converts": [], "tags": []})


def resolve(hub: "LoopbackHub", call: Call) -> Answer:
    """A file's bytes, or those from `Range` on."""
    repo = hub.repo(call)
    commit = repo.at(call.parts["revision"])
    path = call.parts["path"]
    if repo.gated and not (call.user and (call.user.name in repo.granted or call.user.owns(repo.name.split("/")[0]))):
        raise Refused(403 if call.user else 401, f"Access to model {repo.name} is restricted.", "GatedRepo")
    if path not in commit.files:
        raise Refused(404, "Entry not found", "EntryNotFound")
    file = commit.files[path]
    content = hub.content(file)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'}
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("range", "")):
        start = int(match[1])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206, content[start:], headers)
    return Answer(200, content, headers)


def preupload(hub: "LoopbackHub", call: Call) -> Answer:
    """Which way each file is to be sent, and what lies there now."""
    files = hub.repo(call, write=True).at(call.parts["revision"]).files
    told = []
    for asked in call.json["files"]:
        path = asked["path"]
        known = {"oid": files[path].etag} if path in files else {}
        told.append({"path": path, "uploadMode": "lfs" if in_lfs(path, asked["size"]) else "regular", "shouldIgnore": False} | known)
    return as_json({"files": told})


def batch(hub: "LoopbackHub", call: Call) -> Answer:
    """Where LFS files are to be sent; nothing for those that are there already."""
    hub.repo(call, write=True)
    told = []
    for asked in call.json["objects"]:
        oid = asked["oid"]
        send = {"upload": {"href": f"{hub.url}/lfs/{oid}"}, "verify": {"href": f"{hub.url}/lfs/{oid}/verify"}}
        told.append({"oid": oid, "size": asked["size"]} | ({} if oid in hub.stored else {"actions": send}))
    return as_json({"transfer": "basic", "objects": told})


def store(hub: "LoopbackHub", call: Call) -> Answer:
    """Keep an LFS file, if it is what its name says."""
    if hashlib.sha256(call.body).hexdigest() != call.parts["oid"]:
        raise Refused(400, "The content does not match its hash")
    hub.stored[call.parts["oid"]] = call.body
    return Answer()


def verify(hub: "LoopbackHub", call: Call) -> Answer:
    """Whether an LFS file has arrived whole."""
    if len(hub.stored.get(call.json["oid"], b"")) != call.json["size"]:
        raise Refused(404, "The object is not there")
    return Answer()


def commit(hub: "LoopbackHub", call: Call) -> Answer:
    """A new state: files from the request, LFS files that have been sent before, and deletions."""
    repo = hub.repo(call, write=True)
    if hub.take("refuse_commit"):
        raise Refused(403, "Private repository storage limit reached")
    files = dict(repo.at(call.parts["revision"]).files)
    title = ""
    for line in call.body.splitlines():
        key, value = (asked := json.loads(line))["key"], asked["value"]
        if key == "header":
            title = value["summary"]
            if value.get("parentCommit") not in (None, repo.at("main").id):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
        elif key == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = File(len(content), git_oid(content), content=content)
        elif key == "lfsFile":
            if value["oid"] not in hub.stored:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = File(len(hub.stored[value["oid"]]), git_oid(value["oid"].encode()), value["oid"])
        else:
            gone = value["path"].rstrip("/")
            files = {path: file for path, file in files.items() if path != gone and not path.startswith(f"{gone}/")}
    made = repo.commit(title, files)
    prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
    return as_json({"success": True, "commitOid": made.id, "commitUrl": f"{hub.url}/{prefix}{repo.name}/commit/{made.id}"})


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_WEB = r"/(?P<kind>datasets/|spaces/|)(?P<name>[^/]+/[^/]+?)"
ROUTES: tuple[tuple[str, str, Callable[["LoopbackHub", Call], Answer]], ...] = (
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("DELETE", "/api/repos/delete", delete),
    ("POST", "/api/validate-yaml", checked_card),
    ("GET", _API, info),
    ("GET", _API + "/revision/(?P<revision>[^/]+)", info),
    ("GET", _API + "/tree/(?P<revision>[^/]+)", tree),
    ("POST", _API + "/paths-info/(?P<revision>[^/]+)", paths_info),
    ("GET", _API + "/refs", refs),
    ("POST", _API + "/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", _API + "/commit/(?P<revision>[^/]+)", commit),
    ("POST", _WEB + r"\.git/info/lfs/objects/batch", batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", store),
    ("POST", "/lfs/[0-9a-f]{64}/verify", verify),
    ("GET", _WEB + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
)
