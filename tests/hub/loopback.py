"""A Hub on this machine, for the real clients.

Two ports: one plays the Hub, the other its storage (CDN), so that clients treat them as different origins. Endpoints
answer as the Hub does where huggingface_hub, transformers, datasets and evaluate look; whatever else they ask for under
/api is a quick 404. Faults come on demand (`fail`, `cut`, `delay`), and every request is in `requests`.

The file reads upwards from its smallest parts: contents of repositories, the Hub and its rules, one handler for each
endpoint. HTTP itself is in `wire.py`.
"""

import base64
import hashlib
import json
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from wire import Fault, HubError, Port, Reply, Request


DATE = "2026-01-02T03:04:05.000Z"
# What the Hub's first .gitattributes sends to LFS; larger files go there whatever their name.
LFS_NAMES = (".safetensors", ".bin", ".parquet", ".npy", ".png", ".pt", ".zip")
LFS_FROM_BYTES = 10 * 1024 * 1024
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


# -- What a repository holds ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """The content of one file, in git or in LFS."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        """Git's name of what git holds: the file itself, or the pointer to LFS."""
        content = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {self.size}", "")
        return "\n".join(lines).encode()

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


class Commit(NamedTuple):
    """All files at one moment."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """Commits, the branches and tags that name some of them, and who may see them."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects, by SHA-256, committed or not
    parts: dict[tuple[str, str], bytes] = field(default_factory=dict)  # of multipart uploads not yet completed

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a pull request or a full sha names."""
        for names in (self.branches, self.tags, self.pulls):
            if revision in names:
                return self.commits[names[revision]]
        if revision in self.commits:
            return self.commits[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, branch: str, files: dict[str, Blob], title: str, author: str, message: str = "") -> Commit:
        """Put a commit on top of a branch, or of a pull request."""
        names = self.pulls if branch.startswith("refs/pr/") else self.branches
        parent = names.get(branch)
        sha = hashlib.sha1(f"{self.kind} {self.name} {len(self.commits)} {parent}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, message, author, files)
        names[branch] = sha
        return self.commits[sha]

    def history(self, commit: Commit) -> Iterator[Commit]:
        yield commit
        while commit.parent:
            commit = self.commits[commit.parent]
            yield commit


# -- The Hub ----------------------------------------------------------------------------------------------------------

Handler = Callable[..., Reply]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
API = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
PLAIN = r"/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)"
REV, PATH = r"(?P<revision>[^/]+)", r"(?P<path>.+)"


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Enter a handler into the table; groups of the pattern become its arguments, unquoted."""

    def enter(handler: Handler) -> Handler:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return enter


class LoopbackHub:
    """The Hub itself. Use as a context manager; `url` is what HF_ENDPOINT has to be."""

    def __init__(self) -> None:
        # Token -> name of a user, who writes in the namespace of that name and reads what is public.
        self.users = {"hf_owner": "owner", "hf_guest": "guest"}
        self.read_only: set[str] = set()  # tokens that may not write
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.bugs: list[str] = []  # tracebacks of this server's own failures
        self.page_size = 1000  # entries of a tree listing in one answer
        self.part_size: int | None = None  # larger LFS objects are uploaded in parts of so many bytes
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.ports = {name: Port(self, name) for name in ("hub", "cdn")}
        self.url, self.cdn_url = (f"http://127.0.0.1:{port.server_address[1]}" for port in self.ports.values())

    def __enter__(self) -> "LoopbackHub":
        for port in self.ports.values():
            threading.Thread(target=port.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for port in self.ports.values():
            port.shutdown()
            port.server_close()

    # What tests do to it and ask it.

    def fail(
        self,
        method: str | None,
        pattern: str,
        status: int = 503,
        times: int | None = 1,
        headers: dict[str, str] | None = None,
    ) -> Fault:
        """Answer with `status` instead of doing what was asked."""
        return self._trouble(Fault(pattern, method, times, status=status, headers=headers or {}))

    def cut(self, pattern: str, after_bytes: int, times: int | None = 1, method: str | None = None) -> Fault:
        """Drop the connection in the middle of a body: the client's if it sends one, else the answer's."""
        return self._trouble(Fault(pattern, method, times, cut_at=after_bytes))

    def delay(self, pattern: str, seconds: float, after_bytes: int = 0, times: int | None = None) -> Fault:
        """Pause before the answer, or in the middle of a body."""
        return self._trouble(Fault(pattern, None, times, seconds=seconds, pause_at=after_bytes))

    def _trouble(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def asked(self, method: str, pattern: str, port: str = "hub") -> list[Request]:
        """The requests so far with this method whose target matches."""
        return [r for r in self.requests if (r.port, r.method) == (port, method) and re.search(pattern, r.target)]

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path -> content at a revision."""
        return {path: blob.content for path, blob in self.repo(name, kind).find(revision).files.items()}

    def add_repo(self, name: str, files: dict[str, bytes] | None = None, kind: str = "model", **access: Any) -> Repo:
        """Create a repository from this side; `access` is private= or gated=."""
        repo = self.repos[kind, name] = Repo(kind, name, **access)
        repo.add("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")}, "initial commit", repo.owner)
        if files:
            self.add_commit(repo, files)
        return repo

    def add_commit(self, repo: Repo, files: dict[str, bytes], branch: str = "main") -> Commit:
        """Commit files from this side, on top of what the branch has."""
        blobs = {path: Blob(content, _is_lfs(path, len(content))) for path, content in files.items()}
        repo.stored |= {blob.sha256: blob.content for blob in blobs.values() if blob.lfs}
        return repo.add(branch, repo.find(branch).files | blobs, "from the other side", repo.owner)

    # Who may do what.

    def answer(self, request: Request) -> Reply:
        """The handler's answer, or the error it came to."""
        with self.lock:
            try:
                if request.token and request.token not in self.users and request.port == "hub":
                    raise HubError(401, "Invalid credentials in Authorization header")
                for method, pattern, handler in ROUTES:
                    match = pattern.fullmatch(f"{request.port}:{request.path}")
                    if match and method == request.method.replace("HEAD", "GET"):
                        groups = {key: unquote(value or "") for key, value in match.groupdict().items()}
                        return handler(self, request, **groups)
                raise HubError(404, f"nothing at {request.method} {request.path}")
            except HubError as error:
                return error.reply
            except Exception:
                self.bugs.append(traceback.format_exc())
                return Reply({"error": "bug in the loopback Hub"}, 500)

    def user(self, request: Request) -> str | None:
        return self.users.get(request.token or "")

    def writer(self, request: Request, namespace: str) -> str:
        """The user, if they may write there."""
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user != namespace or request.token in self.read_only:
            raise HubError(403, f"You don't have the rights to write under the namespace {namespace}")
        return user

    def visible(self, request: Request, kind: str, name: str) -> Repo:
        """The repository, unless it is missing or private: from outside the two look the same."""
        repo = self.repos.get((kind or "model", name))
        if repo is None or (repo.private and self.user(request) not in {repo.owner, *repo.granted}):
            raise HubError(404 if self.user(request) else 401, "Repository not found", "RepoNotFound")
        return repo

    def readable(self, request: Request, kind: str, name: str) -> Repo:
        """The repository, if its files may be read: a gated one shows its page to all, its files to the granted."""
        repo = self.visible(request, kind, name)
        if repo.gated and self.user(request) not in {repo.owner, *repo.granted}:
            message = f"Access to {kind or 'model'} {name} is restricted."
            raise HubError(403 if self.user(request) else 401, message, "GatedRepo")
        return repo

    def writable(self, request: Request, kind: str, name: str) -> Repo:
        """The repository, if it may be changed."""
        repo = self.visible(request, kind, name)
        self.writer(request, repo.owner)
        return repo

    def page(self, repo: Repo) -> str:
        """Address of a repository's page."""
        return f"{self.url}/{PREFIX[repo.kind]}{repo.name}"

    def storage(self, repo: Repo, oid: str) -> str:
        """Address of an LFS object on the other port."""
        return f"{self.cdn_url}/{repo.kind}/{repo.name}/{oid}"


def _is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_NAMES) or size > LFS_FROM_BYTES)


# -- Accounts and repositories ----------------------------------------------------------------------------------------


@route("GET", "hub:/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request) -> Reply:
    user = hub.user(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    role = "read" if request.token in hub.read_only else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return Reply({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": auth})


@route("POST", "hub:/api/repos/create")
def create_repo(hub: LoopbackHub, request: Request) -> Reply:
    """409 carries the address too: that is how `exist_ok` learns it."""
    wish = request.json()
    kind = wish.get("type") or "model"
    name = f"{hub.writer(request, wish.get('organization') or hub.user(request) or '')}/{wish['name']}"
    if kind == "space" and not wish.get("sdk"):
        raise HubError(400, "a Space needs an sdk")
    exists = (kind, name) in hub.repos
    if not exists:
        hub.add_repo(name, kind=kind, private=wish.get("visibility") == "private" or bool(wish.get("private")))
    found = {"url": hub.page(hub.repos[kind, name]), "name": name}
    return Reply(found | {"error": f"You already created this {kind} repo"}, 409) if exists else Reply(found)


@route("DELETE", "hub:/api/repos/delete")
def delete_repo(hub: LoopbackHub, request: Request) -> Reply:
    wish = request.json()
    name = f"{wish.get('organization') or hub.user(request)}/{wish['name']}"
    repo = hub.writable(request, wish.get("type") or "model", name)
    del hub.repos[repo.kind, repo.name]
    return Reply({})


@route("PUT", f"hub:{API}/settings")
def change_settings(hub: LoopbackHub, request: Request, kind: str, name: str) -> Reply:
    repo, wish = hub.writable(request, kind, name), request.json()
    repo.private = wish.get("visibility", "private" if repo.private else "public") == "private"
    repo.gated = bool(wish.get("gated", repo.gated))
    return Reply({"visibility": "private" if repo.private else "public", "gated": repo.gated})


@route("GET", f"hub:{API}")
@route("GET", f"hub:{API}/revision/{REV}")
def repo_info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str = "main") -> Reply:
    """`blobs=true` adds sizes and names of contents; every other field comes always, asked for or not."""
    repo = hub.visible(request, kind, name)
    commit = repo.find(revision)
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    if request.query.get("blobs") in (["true"], ["True"]):
        for entry in siblings:
            blob = commit.files[entry["rfilename"]]
            pointer = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
            entry |= {"size": blob.size, "blobId": blob.git_oid} | ({"lfs": pointer} if blob.lfs else {})
    access = {"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False}
    about = {"id": name, "author": repo.owner, "sha": commit.sha, "lastModified": DATE, "createdAt": DATE}
    return Reply(about | access | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})


# -- Reading ----------------------------------------------------------------------------------------------------------


def _tree_entry(path: str, blob: Blob, commit: Commit | None) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.git_oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    if commit:
        entry["lastCommit"] = {"id": commit.sha, "title": commit.title, "date": DATE}
    return entry


@route("GET", f"hub:{API}/tree/{REV}")
@route("GET", f"hub:{API}/tree/{REV}/{PATH}")
def list_tree(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str, path: str = "") -> Reply:
    """Files and folders below `path`, by pages: the `Link` header leads to the next."""
    commit = hub.visible(request, kind, name).find(revision)
    prefix, asked = path and f"{path}/", request.query
    recursive, expand = (asked.get(key, [""])[0].lower() in ("true", "1") for key in ("recursive", "expand"))
    entries: dict[str, dict[str, Any]] = {}
    for file, blob in sorted(commit.files.items()):
        if not file.startswith(prefix):
            continue
        steps = file.removeprefix(prefix).split("/")
        for depth in range(1, len(steps) if recursive else min(len(steps), 2)):
            folder = prefix + "/".join(steps[:depth])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
        if recursive or len(steps) == 1:
            entries[file] = _tree_entry(file, blob, commit if expand else None)
    if path and not entries:
        raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
    start = int(asked.get("cursor", ["0"])[0])
    end = start + hub.page_size
    link = f"{hub.url}{request.path}?recursive={recursive}&expand={expand}&cursor={end}"
    more = {"Link": f'<{link}>; rel="next"'} if end < len(entries) else {}
    return Reply(list(entries.values())[start:end], headers=more)


@route("POST", f"hub:{API}/paths-info/{REV}")
def paths_info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    """The form's paths that exist; unknown ones are left out."""
    commit, form = hub.visible(request, kind, name).find(revision), parse_qs(request.body.decode())
    last = commit if form.get("expand", ["False"])[0].lower() == "true" else None
    paths = [path for path in form.get("paths", []) if path in commit.files]
    return Reply([_tree_entry(path, commit.files[path], last) for path in paths])


@route("GET", f"hub:{API}/refs")
def list_refs(hub: LoopbackHub, request: Request, kind: str, name: str) -> Reply:
    repo = hub.visible(request, kind, name)
    named = {"branches": ("refs/heads/", repo.branches), "tags": ("refs/tags/", repo.tags)}
    refs = {
        key: [{"name": ref, "ref": where + ref, "targetCommit": sha} for ref, sha in refs.items()]
        for key, (where, refs) in named.items()
    }
    return Reply(refs | {"converts": []})


@route("GET", f"hub:{API}/commits/{REV}")
def list_commits(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    """Newest first."""
    repo = hub.visible(request, kind, name)
    return Reply(
        [
            {"id": c.sha, "title": c.title, "message": c.message, "date": DATE, "authors": [{"user": c.author}]}
            for c in repo.history(repo.find(revision))
        ]
    )


@route("GET", f"hub:{PLAIN}/resolve/{REV}/{PATH}")
def resolve(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str, path: str) -> Reply:
    """A file, or for LFS the way to the other port. A missing file still tells the commit: clients remember it."""
    commit = hub.readable(request, kind, name).find(revision)
    if path not in commit.files:
        raise HubError(404, f"Entry not found: {path}", "EntryNotFound", X_Repo_Commit=commit.sha)
    blob = commit.files[path]
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.git_oid}"'}
    if not blob.lfs:
        return _part_of(blob.content, request, headers)
    linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
    location = hub.storage(hub.repos[kind or "model", name], blob.sha256)
    return Reply(b"", 302, headers | linked | {"Location": location})


def _part_of(content: bytes, request: Request, headers: dict[str, str]) -> Reply:
    """All of it, or the one range asked for (206)."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    headers = headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if not asked or asked.groups() == ("", ""):
        return Reply(content, headers=headers)
    first, last = asked.groups()
    start = int(first) if first else max(len(content) - int(last), 0)
    end = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= len(content) or start >= end:
        return Reply(b"", 416, headers | {"Content-Range": f"bytes */{len(content)}"})
    return Reply(content[start:end], 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})


# -- Writing ----------------------------------------------------------------------------------------------------------


@route("POST", "hub:/api/validate-yaml")
def validate_yaml(hub: LoopbackHub, request: Request) -> Reply:
    """Of the Hub's many checks one: metadata that begin have to end."""
    text = request.json()["content"]
    if text.startswith("---\n") and "\n---" not in text[3:]:
        return Reply({"errors": [{"message": "the metadata never end"}], "warnings": []}, 400)
    return Reply({"errors": [], "warnings": []})


@route("POST", f"hub:{API}/branch/{REV}")
def create_branch(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    repo = hub.writable(request, kind, name)
    return _name_commit(repo.branches, revision, repo.find(request.json().get("startingPoint") or "main"))


@route("POST", f"hub:{API}/tag/{REV}")
def create_tag(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    repo = hub.writable(request, kind, name)
    return _name_commit(repo.tags, request.json()["tag"], repo.find(revision))


def _name_commit(names: dict[str, str], name: str, commit: Commit) -> Reply:
    if name in names:
        raise HubError(409, f"Reference {name} exists already")
    names[name] = commit.sha
    return Reply({})


@route("DELETE", f"hub:{API}/branch/{REV}")
@route("DELETE", f"hub:{API}/(?P<tag>tag)/{REV}")
def delete_reference(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str, tag: str = "") -> Reply:
    repo = hub.writable(request, kind, name)
    names = repo.tags if tag else repo.branches
    if revision not in names:
        raise HubError(404, f"Reference {revision} does not exist", "RevisionNotFound")
    del names[revision]
    return Reply({})


@route("POST", f"hub:{API}/preupload/{REV}")
def preupload(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    """Which way each file has to go, and what is there under its name: clients leave out what is there already."""
    files = hub.writable(request, kind, name).find(revision).files
    return Reply(
        {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if _is_lfs(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": files[file["path"]].etag if file["path"] in files else None,
                }
                for file in request.json()["files"]
            ]
        }
    )


@route("POST", f"hub:{PLAIN}\\.git/info/lfs/objects/batch")
def lfs_batch(hub: LoopbackHub, request: Request, kind: str, name: str) -> Reply:
    """Where to put each object; an object that is there gets no actions."""
    repo, wish = hub.writable(request, kind, name), request.json()
    objects, used = [], "basic"
    for item in wish["objects"]:
        oid, size = item["oid"], item["size"]
        if oid in repo.stored:
            objects.append(item)
            continue
        where = f"{hub.url}/lfs/{repo.kind}/{repo.name}/{oid}"
        upload: dict[str, Any] = {"href": hub.storage(repo, oid)}
        if hub.part_size and size > hub.part_size and "multipart" in wish["transfers"]:
            used = "multipart"
            numbers = range(1, -(-size // hub.part_size) + 1)
            urls = {f"{number:05d}": f"{hub.storage(repo, oid)}?part={number:05d}" for number in numbers}
            upload = {"href": f"{where}/complete", "header": {"chunk_size": str(hub.part_size)} | urls}
        objects.append(item | {"actions": {"upload": upload, "verify": {"href": f"{where}/verify"}}})
    return Reply({"transfer": used, "objects": objects})


STORED = r"/(?P<kind>model|dataset|space)/(?P<name>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"


@route("PUT", f"cdn:{STORED}")
def store_object(hub: LoopbackHub, request: Request, kind: str, name: str, oid: str) -> Reply:
    """An object or a part of one. The address is the permission."""
    repo, part = hub.repos[kind, name], request.query.get("part")
    if part:
        repo.parts[oid, part[0]] = request.body
        return Reply(b"", headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
    return _keep(repo, oid, request.body)


@route("POST", f"hub:/lfs{STORED}/complete")
def complete_object(hub: LoopbackHub, request: Request, kind: str, name: str, oid: str) -> Reply:
    """Join the parts; each has to be the one that was stored."""
    repo, joined = hub.repos[kind, name], b""
    for part in request.json()["parts"]:
        content = repo.parts.get((oid, f"{part['partNumber']:05d}"), b"")
        if part["etag"].strip('"') != hashlib.md5(content).hexdigest():
            raise HubError(400, f"part {part['partNumber']} was never stored")
        joined += content
    return _keep(repo, oid, joined)


def _keep(repo: Repo, oid: str, content: bytes) -> Reply:
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "the content is not what its name says")
    repo.stored[oid] = content
    return Reply(b"")


@route("POST", f"hub:/lfs{STORED}/verify")
def verify_object(hub: LoopbackHub, request: Request, kind: str, name: str, oid: str) -> Reply:
    repo = hub.writable(request, kind, name)
    if len(repo.stored.get(oid, b"")) != request.json()["size"]:
        raise HubError(404, "the object is not here")
    return Reply({})


@route("GET", f"cdn:{STORED}")
def fetch_object(hub: LoopbackHub, request: Request, kind: str, name: str, oid: str) -> Reply:
    repo = hub.repos.get((kind, name))
    if repo is None or oid not in repo.stored:
        raise HubError(404, "no such object")
    return _part_of(repo.stored[oid], request, {"ETag": f'"{oid}"'})


@route("POST", f"hub:{API}/commit/{REV}")
def commit(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    """All changes or none: lines of JSON, first a header, then one line for each change."""
    repo = hub.visible(request, kind, name)
    user = hub.user(request) if "create_pr" in request.query else hub.writer(request, repo.owner)
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    header, changes = lines[0]["value"], lines[1:]
    head = repo.find(revision)
    if header.get("parentCommit") not in (None, head.sha):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    if revision not in repo.branches and revision not in repo.pulls:
        raise HubError(400, f"{revision} is no branch")
    files = _changed(repo, dict(head.files), changes)
    pull = {}
    if "create_pr" in request.query:
        number = len(repo.pulls) + 1
        revision = f"refs/pr/{number}"
        repo.pulls[revision] = head.sha
        pull = {"pullRequestUrl": f"{hub.page(repo)}/discussions/{number}"}
    new = repo.add(revision, files, header["summary"], user or "", header.get("description") or "")
    return Reply({"success": True, "commitOid": new.sha, "commitUrl": f"{hub.page(repo)}/commit/{new.sha}"} | pull)


def _changed(repo: Repo, files: dict[str, Blob], changes: list[dict[str, Any]]) -> dict[str, Blob]:
    for change in changes:
        key, value = change["key"], change["value"]
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in repo.stored:
                raise HubError(400, f"{path}: the LFS object {value['oid']} was never uploaded")
            files[path] = Blob(repo.stored[value["oid"]], lfs=True)
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFolder":
            files = {file: blob for file, blob in files.items() if not file.startswith(path.rstrip("/") + "/")}
        else:
            raise HubError(400, f"cannot do {key} {path}")
    return files
