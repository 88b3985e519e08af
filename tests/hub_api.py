"""What a Hugging Face Hub answers to `huggingface_hub`: models, commits, tags, branches and pull requests."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests import hub_store as store
from tests.hub_store import Commit, Hub, RefusalError, Repo

NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
MODEL = f"/api/models/{NAME}"
LFS = rf"/{NAME}\.git/info/lfs"


@dataclass(frozen=True)
class Request:
    """What was asked, and by whom: None for nobody."""

    user: str | None
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def create_pr(self) -> bool:
        return "create_pr" in self.query


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    is_file: bool = False


Answer = Callable[..., Reply]
ROUTES: list[tuple[re.Pattern[str], Answer]] = []


def reply(hub: Hub, method: str, path: str, headers: Message, body: bytes) -> Reply:
    """The answer to a request."""
    token, url = headers.get("Authorization", "").removeprefix("Bearer "), urlsplit(path)
    if token and token not in hub.users:
        return _refusal(RefusalError(401, "Invalid credentials in Authorization header"))
    request = Request(hub.users.get(token), parse_qs(url.query), headers, body)
    for pattern, answer in ROUTES:
        if found := pattern.fullmatch(f"{method} {url.path}"):
            named = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
            try:
                return answer(hub, request, **named)
            except RefusalError as error:
                return _refusal(error)
    return _refusal(RefusalError(404, f"Sorry, {method} {url.path} is no part of this Hub."))


def failure(status: int, retry_after: int | None) -> Reply:
    """A refusal out of the blue."""
    said = {401: "Invalid username or password.", 412: "A commit has happened since. Please refresh and try again."}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 429 and retry_after is not None:
        headers |= {"RateLimit": f'"api";r=0;t={retry_after}', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    return _refusal(RefusalError(status, said.get(status, "Something went wrong."), headers=headers))


def _refusal(error: RefusalError) -> Reply:
    code = {"X-Error-Code": error.code} if error.code else {}
    said = error.message.encode("ascii", "replace").decode()
    return in_json({"error": error.message}, error.status, {"X-Error-Message": said, **code, **error.headers})


def in_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})


def route(pattern: str) -> Callable[[Answer], Answer]:
    """Answer requests whose "METHOD /path" matches; named groups are arguments."""

    def keep(answer: Answer) -> Answer:
        ROUTES.append((re.compile(pattern), answer))
        return answer

    return keep


@route("GET /api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Reply:
    if request.user is None:
        raise RefusalError(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name} for name, members in hub.organisations.items() if request.user in members]
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return in_json({"type": "user", "name": request.user, "fullname": request.user, "orgs": orgs, "auth": token})


@route("GET /api/agent-harnesses")
def harnesses(hub: Hub, request: Request) -> Reply:
    return in_json({"standardEnvVars": [], "harnesses": {}})


@route("POST /api/repos/create")
def create_repo(hub: Hub, request: Request) -> Reply:
    asked = request.json
    name = f"{asked.get('organization') or request.user}/{asked['name']}"
    if request.user is None:
        raise RefusalError(401, "Invalid username or password.")
    if not hub.may_write(name, request.user):
        owner = name.partition("/")[0]
        raise RefusalError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    url = f"{hub.url}/{name}"
    with hub.lock:
        if name in hub.repos:
            return in_json({"error": "You already created this model repo", "url": url}, 409)
        hub.repos[name] = Repo(name, asked.get("visibility") == "private" or bool(asked.get("private")))
    return in_json({"url": url, "name": name})


@route("POST /api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Reply:
    errors, warnings = store.card_errors(request.json["content"])
    status = 400 if errors else 200
    if request.headers.get("Accept") == "text/plain":
        lines = [*(f"- Error: {line}" for line in errors), *(f"- Warning: {line}" for line in warnings)]
        return Reply("\n".join(lines).encode(), status, {"Content-Type": "text/plain"})
    listed = {"errors": [{"message": line} for line in errors], "warnings": [{"message": line} for line in warnings]}
    return in_json(listed, status)


@route("GET /api/models")
def list_models(hub: Hub, request: Request) -> Reply:
    query = request.query
    found = [_described(repo, repo.head, query) for repo in hub.repos.values() if _matches(hub, repo, request)]
    key = query.get("sort", ["trendingScore"])[0]
    found.sort(key=lambda model: model.get(key) or 0, reverse=True)
    always = {"id", "modelId", "likes", "private", "downloads", "tags", "pipeline_tag", "library_name", "createdAt"}
    if "full" in query:
        always |= {"author", "sha", "lastModified", "gated", "disabled", "siblings"}
    if "cardData" in query:
        always.add("cardData")
    wanted = {"id", *query["expand"]} if "expand" in query else {*always, key}
    limit = int(query.get("limit", ["1000"])[0])
    return in_json([{key: model[key] for key in model if key in wanted} for model in found[:limit]])


def _matches(hub: Hub, repo: Repo, request: Request) -> bool:
    tags, owner = store.tags_of(store.card_of(repo.head)), repo.name.partition("/")[0]
    return (
        (not repo.private or hub.may_write(repo.name, request.user))
        and set(request.query.get("filter", [])) <= set(tags)
        and owner in request.query.get("author", [owner])
        and request.query.get("search", [""])[0].lower() in repo.name.lower()
    )


def _described(repo: Repo, commit: Commit, query: Mapping[str, list[str]]) -> dict[str, Any]:
    card = store.card_of(commit)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    if "blobs" in query:
        siblings = [_sibling(path, content) for path, content in sorted(commit.files.items())]
    return {
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.name.partition("/")[0],
        "sha": commit.sha,
        "lastModified": _time(commit),
        "createdAt": _time(repo.commits[0]),
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "tags": store.tags_of(card),
        "cardData": card,
        "siblings": siblings,
        **{key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card},
    }


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    entry = store.entry(path, content)
    described = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        described["lfs"] = {**entry["lfs"], "sha256": entry["lfs"]["oid"]}
    return described


def _time(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@route(f"GET {MODEL}(/revision/{REVISION})?")
def model_info(hub: Hub, request: Request, name: str, revision: str | None = None) -> Reply:
    repo = hub.readable(name, request.user)
    described = _described(repo, repo.find(revision or "main"), request.query)
    wanted = {"id", *request.query.get("expand", described)}
    return in_json({key: described[key] for key in described if key in wanted})


@route(f"GET {MODEL}/auth-check(?P<write>/write)?")
def auth_check(hub: Hub, request: Request, name: str, write: str | None = None) -> Reply:
    return in_json({"ok": bool(hub.writable(name, request.user) if write else hub.readable(name, request.user))})


@route(f"GET {MODEL}/tree/{REVISION}(/(?P<folder>.+))?")
def tree(hub: Hub, request: Request, name: str, revision: str, folder: str | None = None) -> Reply:
    commit = hub.readable(name, request.user).find(revision)
    start = f"{folder}/" if folder else ""
    inside = {path: content for path, content in commit.files.items() if path.startswith(start)}
    if folder and not inside:
        raise RefusalError(404, f"{folder} does not exist", "EntryNotFound")
    parts = [path.split("/")[:depth] for path in inside for depth in range(1, path.count("/") + 1)]
    folders = {"/".join(part) for part in parts} - {folder}
    entries = [{"type": "directory", "path": path, "size": 0, "oid": store.git_hash(path.encode())} for path in folders]
    entries += [store.entry(path, content) for path, content in inside.items()]
    if request.query.get("recursive") != ["true"]:
        entries = [entry for entry in entries if "/" not in str(entry["path"])[len(start) :]]
    return in_json(sorted(entries, key=lambda entry: str(entry["path"])))


@route(f"POST {MODEL}/paths-info/{REVISION}")
def paths_info(hub: Hub, request: Request, name: str, revision: str) -> Reply:
    files = hub.readable(name, request.user).find(revision).files
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return in_json([store.entry(path, files[path]) for path in wanted if path in files])


@route(f"GET {MODEL}/refs")
def refs(hub: Hub, request: Request, name: str) -> Reply:
    repo = hub.readable(name, request.user)

    def listed(kind: str, targets: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": ref, "ref": kind + ref, "targetCommit": sha} for ref, sha in targets.items()]

    found = {"branches": listed("refs/heads/", repo.branches), "tags": listed("refs/tags/", repo.tags), "converts": []}
    return in_json({**found, "pullRequests": listed("", repo.pulls)} if "include_prs" in request.query else found)


@route(f"POST {MODEL}/tag/{REVISION}")
def create_tag(hub: Hub, request: Request, name: str, revision: str) -> Reply:
    repo, tag = hub.writable(name, request.user), request.json["tag"]
    if tag in repo.tags:
        raise RefusalError(409, f"Tag {tag} already exists")
    repo.tags[tag] = repo.find(revision).sha
    return in_json({})


@route(f"POST {MODEL}/branch/(?P<branch>[^/]+)")
def create_branch(hub: Hub, request: Request, name: str, branch: str) -> Reply:
    repo = hub.writable(name, request.user)
    if branch.startswith("refs/"):
        raise RefusalError(400, f"Invalid branch name: {branch}")
    if branch in repo.branches:
        raise RefusalError(409, f"Reference already exists: {branch}")
    repo.branches[branch] = repo.find(request.json.get("startingPoint", "main")).sha
    return in_json({})


# What is uploaded


@route(f"POST {MODEL}/preupload/{REVISION}")
def preupload(hub: Hub, request: Request, name: str, revision: str) -> Reply:
    commit = hub.writable(name, request.user, create_pr=request.create_pr).find(revision)
    files = []
    for file in request.json["files"]:
        path = file["path"]
        large = store.is_large(path, base64.b64decode(file["sample"]), file["size"])
        there = store.announced_hash(path, commit.files[path]) if path in commit.files else None
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": there})
    return in_json({"files": files, "commitOid": commit.sha})


@route(f"POST {LFS}/objects/batch")
def lfs_batch(hub: Hub, request: Request, name: str) -> Reply:
    # The client names no branch where it opens a pull request.
    repo = hub.writable(name, request.user, create_pr="ref" not in request.json)
    asked = [(wanted["oid"], wanted["size"]) for wanted in request.json["objects"]]
    objects = [{"oid": oid, "size": size, **_to_do(hub, repo, oid, size)} for oid, size in asked]
    return in_json({"transfer": "basic", "objects": objects})


def _to_do(hub: Hub, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    """How to upload a large file; nothing if it is there."""
    if oid in repo.objects:
        return {}
    lfs, place = f"{hub.url}/{repo.name}.git/info/lfs", f"{hub.cdn}/upload/{repo.name}/{oid}"
    upload: dict[str, Any] = {"href": place}
    if size > hub.part_size:
        parts = {str(number + 1): f"{place}.{number + 1}" for number in range(math.ceil(size / hub.part_size))}
        upload = {"href": f"{lfs}/complete", "header": {"chunk_size": str(hub.part_size), **parts}}
    return {"actions": {"upload": upload, "verify": {"href": f"{lfs}/objects/verify"}}}


@route(rf"PUT /upload/{NAME}/(?P<oid>[0-9a-f]+)(?P<part>\.[0-9]+)?")
def upload(hub: Hub, request: Request, name: str, oid: str, part: str | None = None) -> Reply:
    if part is None:
        _keep(hub.repos[name], oid, request.body)
    else:
        hub.repos[name].objects[oid + part] = request.body
    return Reply(headers={"ETag": f'"{store.sha256(request.body)}"'})


@route(f"POST {LFS}/complete")
def complete(hub: Hub, request: Request, name: str) -> Reply:
    objects, oid = hub.repos[name].objects, request.json["oid"]
    parts = [objects.pop(f"{oid}.{part['partNumber']}") for part in request.json["parts"]]
    _keep(hub.repos[name], oid, b"".join(parts))
    return in_json({})


def _keep(repo: Repo, oid: str, content: bytes) -> None:
    if store.sha256(content) != oid:
        raise RefusalError(400, "BadDigest: the content does not have the SHA-256 that was promised")
    repo.objects[oid] = content


@route(f"POST {LFS}/objects/verify")
def verify(hub: Hub, request: Request, name: str) -> Reply:
    content = hub.readable(name, request.user).objects.get(request.json["oid"])
    if content is None or len(content) != request.json["size"]:
        raise RefusalError(404, "Object does not exist")
    return in_json({})


@route(f"POST {MODEL}/commit/{REVISION}")
def commit(hub: Hub, request: Request, name: str, revision: str) -> Reply:
    hook, hub.before_commit = hub.before_commit, None
    if hook:
        hook(name)
    repo = hub.writable(name, request.user, create_pr=request.create_pr)
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    changes = {line["value"]["path"]: _content(repo, line["key"], line["value"]) for line in lines[1:]}
    with hub.lock:
        if request.create_pr:
            pull = repo.open_pull(changes, header["summary"], str(request.user), header.get("parentCommit", revision))
            sha, number = repo.pulls[pull], pull.rpartition("/")[2]
        else:
            sha = repo.commit(changes, header["summary"], str(request.user), revision, header.get("parentCommit"))
            number = None
    pull_url = number and f"{hub.url}/{name}/discussions/{number}"
    return in_json({"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": pull_url})


def _content(repo: Repo, key: str, value: Mapping[str, str]) -> bytes | None:
    if key == "file":
        return base64.b64decode(value["content"])
    if key == "lfsFile" and value["oid"] not in repo.objects:
        raise RefusalError(400, "Your push was rejected because an LFS pointer pointed to a file that does not exist.")
    return repo.objects[value["oid"]] if key == "lfsFile" else None


# What is downloaded


@route(f"(GET|HEAD) /{NAME}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub: Hub, request: Request, name: str, revision: str, path: str) -> Reply:
    commit = hub.readable(name, request.user).find(revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if path not in commit.files:
        raise RefusalError(404, "Entry not found", "EntryNotFound", headers)
    content = commit.files[path]
    etag = f'"{store.announced_hash(path, content)}"'
    if not store.kept_large(path, content):
        return _sent(request, content, {**headers, "ETag": etag})
    headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
    where = f"{hub.cdn}/cdn/{name}/{commit.sha}/{quote(path)}"
    return Reply(b"Found", 302, {**headers, "Location": where})


@route(f"(GET|HEAD) /cdn/{NAME}/{REVISION}/(?P<path>.+)")
def cdn(hub: Hub, request: Request, name: str, revision: str, path: str) -> Reply:
    if "Authorization" in request.headers:
        raise RefusalError(400, "InvalidArgument: a token was sent to where no token belongs")
    content = hub.repos[name].find(revision).files[path]
    return _sent(request, content, {"Accept-Ranges": "bytes", "ETag": f'"{store.sha256(content)}"'})


def _sent(request: Request, content: bytes, headers: Mapping[str, str]) -> Reply:
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted:
        return Reply(content, 200, headers, is_file=True)
    start, end = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
    if start >= len(content):
        return Reply(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    return Reply(content[start:end], 206, headers, is_file=True)
