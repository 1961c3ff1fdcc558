"""A small Hub on loopback that speaks huggingface_hub's own protocol: whoami, repositories, preupload, LFS, commits, trees,
downloads with ETag and ranges. Contents are files named by their hashes, which it checks. It can inject faults:

    with HubServer(folder, {"hf_secret": user("me")}) as server:
        server.fail("PUT", "/lfs/", times=2, status=500)
        server.fail("GET", ".safetensors", cut=1000)          # the connection breaks after 1,000 bytes
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import ModelCardData

LARGE = (".safetensors", ".parquet", ".png", ".tar")  # stored in LFS by the Hub's .gitattributes
API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
WEB = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)"
REVISION = r"/(?P<revision>[^/]+)"


def user(name: str, *orgs: str, role: str = "write", **token: Any) -> dict[str, Any]:
    """The answer of whoami for a token of this user."""
    auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role, **token}}
    return {"type": "user", "name": name, "orgs": [{"type": "org", "name": org} for org in orgs], "auth": auth}


class Refused(Exception):
    """An error response; `code` tells the client what is missing."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None, **body: str):
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class Content(NamedTuple):
    """A file in a commit: `oid` as git hashes it, `sha256` if it is an LFS object."""

    file: Path
    oid: str
    sha256: str | None
    size: int


class Commit(NamedTuple):
    """The whole tree after a commit."""

    sha: str
    message: str
    files: dict[str, Content]


@dataclass
class Fault:
    """A fault for the next `times` requests with this method, `part` in the path, and the first byte in `within`.

    status: respond with this status, `message` and `headers`. cut: break the connection after this many bytes of the uploaded
    or downloaded file. lose: handle the request, but break the connection before the response. flip: change the bytes that
    arrive. hang: wait until the server's `release` is set.
    """

    method: str
    part: str
    times: int = 1
    status: int | None = None
    message: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    lose: bool = False
    flip: bool = False
    hang: bool = False
    within: range | None = None

    def meets(self, method: str, path: str, asked_range: str) -> bool:
        """Whether the fault applies to this request."""
        first = re.match(r"bytes=(\d+)-", asked_range)
        there = self.within is None or (first is not None and int(first[1]) in self.within)
        return bool(self.times) and method == self.method and self.part in path and there


class HubServer:
    """The contents of the Hub, and the thread that serves it.

    Attributes:
        url: the value for HF_ENDPOINT.
        requests: (method, path, range) of all requests, including faults.
        quota: maximum bytes of LFS objects.
        commits: by ("models" or "datasets", id); starts with an empty one, the newest is last.
        private: ids of private repositories.
    """

    def __init__(self, folder: Path, tokens: dict[str, dict[str, Any]]):
        self.blobs, self.tokens, self.quota = folder / "blobs", tokens, 10**9
        self.blobs.mkdir(parents=True)
        self.commits: dict[tuple[str, str], list[Commit]] = {}
        self.private: set[str] = set()
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str]] = []
        self.lock, self.release = threading.RLock(), threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    def fail(self, method: str, part: str, **how: Any) -> None:
        """See Fault."""
        self.faults.append(Fault(method, part, **how))

    def take_fault(self, method: str, path: str, asked_range: str) -> Fault:
        """The fault for a request, counted as used; a fault without effect if there is none."""
        with self.lock:
            self.requests.append((method, path, asked_range))
            for fault in self.faults:
                if fault.meets(method, path, asked_range):
                    fault.times -= 1
                    return fault
        return Fault(method, path)

    def count(self, method: str, part: str) -> int:
        """Number of matching requests."""
        return sum(asked == method and part in path for asked, path, _ in self.requests)

    def history(self, repo: str, kind: str = "models") -> list[str]:
        """The messages of the commits."""
        return [commit.message for commit in self.commits.get((kind, repo), [])[1:]]

    def files(self, repo: str, kind: str = "models") -> dict[str, bytes]:
        """The files of `main`."""
        return {path: content.file.read_bytes() for path, content in self.commits[kind, repo][-1].files.items()}

    # ---------------------------------------------------------------------------------------------------- the protocol

    def may_write(self, token: str | None, namespace: str) -> None:
        """Refuse requests without permission."""
        me = self.tokens.get(token)
        if me is None:
            raise Refused(401, "Invalid username or password.")
        if me["auth"]["accessToken"]["role"] == "read" or namespace not in [me["name"], *(org["name"] for org in me["orgs"])]:
            raise Refused(403, f"You don't have the rights to write under the namespace {namespace!r}")

    def find(self, kind: str | None, repo: str, revision: str = "main") -> Commit:
        """The commit that a branch or hash names."""
        commits = self.commits.get((kind or "models", repo))
        if commits is None:
            raise Refused(404, "Repository not found", "RepoNotFound")
        for commit in commits[::-1]:
            if revision in ("main", commit.sha):
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def whoami(self, request: "_Handler") -> Any:
        if request.token not in self.tokens:
            raise Refused(401, "Invalid username or password.")
        return self.tokens[request.token]

    def validate_yaml(self, request: "_Handler") -> Any:
        try:
            ModelCardData(**yaml.safe_load(request.json["content"].split("---\n")[1]))
        except Exception as error:
            raise Refused(400, f"README.md: {error!r}") from error
        return {"errors": [], "warnings": []}

    def create(self, request: "_Handler") -> Any:
        name, kind = f"{request.json['organization']}/{request.json['name']}", f"{request.json.get('type', 'model')}s"
        self.may_write(request.token, request.json["organization"])
        if (kind, name) in self.commits:
            raise Refused(409, "You already created this repo", url=f"{self.url}/{name}")
        self.commits[kind, name] = [Commit(hashlib.sha1(f"{self.url}{kind}{name}".encode()).hexdigest(), "initial commit", {})]
        if request.json.get("visibility") == "private":
            self.private.add(name)
        return {"url": f"{self.url}/{name}", "id": name}

    def preupload(self, request: "_Handler", kind: str, repo: str, revision: str) -> Any:
        files = self.find(kind, repo, revision).files
        self.may_write(request.token, repo.split("/")[0])

        def answer(path: str) -> dict[str, Any]:
            old, mode = files.get(path), "lfs" if path.endswith(LARGE) else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": old and (old.sha256 or old.oid)}

        return {"files": [answer(file["path"]) for file in request.json["files"]]}

    def batch(self, request: "_Handler", kind: str | None, repo: str) -> Any:
        self.find(kind, repo)
        self.may_write(request.token, repo.split("/")[0])
        asked = request.json["objects"]
        missing = [entry for entry in asked if not (self.blobs / entry["oid"]).exists()]
        if sum(file.stat().st_size for file in self.blobs.iterdir()) + sum(entry["size"] for entry in missing) > self.quota:
            raise Refused(403, "Private repository storage limit reached, please upgrade your plan")
        for entry in missing:
            entry["actions"] = {"upload": {"href": f"{self.url}/lfs/{entry['oid']}"}, "verify": {"href": f"{self.url}/verify"}}
        return {"transfer": "basic", "objects": asked}

    def put_lfs(self, request: "_Handler", oid: str) -> Any:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refused(400, f"BadDigest: the {len(request.body)} bytes that arrived are not those of sha256 {oid[:8]}")
        (self.blobs / oid).write_bytes(request.body)
        return {}

    def verify(self, request: "_Handler") -> Any:
        blob = self.blobs / request.json["oid"]
        if not blob.exists() or blob.stat().st_size != request.json["size"]:
            raise Refused(404, "LFS object is not there")
        return {}

    def commit(self, request: "_Handler", kind: str, repo: str, revision: str) -> Any:
        self.may_write(request.token, repo.split("/")[0])
        with self.lock:
            before, message = self.find(kind, repo, revision), ""
            files = dict(before.files)
            for line in map(json.loads, request.body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                elif line["key"] == "file":
                    data = base64.b64decode(value["content"])
                    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                    (self.blobs / oid).write_bytes(data)
                    files[value["path"]] = Content(self.blobs / oid, oid, None, len(data))
                else:
                    blob, oid = self.blobs / value["oid"], hashlib.sha1(value["oid"].encode()).hexdigest()
                    if not blob.exists():
                        raise Refused(400, f"the LFS object of {value['path']} was not uploaded")
                    files[value["path"]] = Content(blob, oid, value["oid"], value["size"])
            sha = hashlib.sha1(f"{before.sha}{message}{files}".encode()).hexdigest()
            self.commits[kind, repo].append(Commit(sha, message, files))
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo}/commit/{sha}"}

    def info(self, request: "_Handler", kind: str, repo: str, revision: str = "main") -> Any:
        commit = self.find(kind, repo, revision)
        return {"id": repo, "sha": commit.sha, "siblings": [{"rfilename": path} for path in commit.files]}

    def tree(self, request: "_Handler", kind: str, repo: str, revision: str, path: str = "") -> Any:
        prefix = f"{path}/" if path else ""
        inside = {name: file for name, file in self.find(kind, repo, revision).files.items() if name.startswith(prefix)}
        if path and not inside:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        folders = {str(folder) for name in inside for folder in Path(name).parents if str(folder).startswith(prefix)}
        entries = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders - {".", path}]
        for name, file in inside.items():
            lfs = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}} if file.sha256 else {}
            entries.append({"type": "file", "path": name, "oid": file.oid, "size": file.size, **lfs})
        deep = request.query.get("recursive", [""])[0].lower() in ("true", "1")
        return [entry for entry in entries if deep or "/" not in entry["path"].removeprefix(prefix)]

    def resolve(self, request: "_Handler", kind: str | None, repo: str, revision: str, path: str) -> Any:
        commit = self.find(kind, repo, revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.sha})
        return commit.files[path], commit.sha


ROUTES = [
    ("GET", r"/api/whoami-v2", HubServer.whoami),
    ("POST", r"/api/validate-yaml", HubServer.validate_yaml),
    ("POST", r"/api/repos/create", HubServer.create),
    ("POST", API + "/preupload" + REVISION, HubServer.preupload),
    ("POST", WEB + r"\.git/info/lfs/objects/batch", HubServer.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", HubServer.put_lfs),
    ("POST", r"/verify", HubServer.verify),
    ("POST", API + "/commit" + REVISION, HubServer.commit),
    ("GET", API + f"(?:/revision{REVISION})?", HubServer.info),
    ("GET", API + "/tree" + REVISION + r"(?:/(?P<path>.+))?", HubServer.tree),
    ("GET", WEB + "/resolve" + REVISION + r"/(?P<path>.+)", HubServer.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    """HTTP around the protocol: bodies, ranges, faults."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def answer(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        fault = self.hub.take_fault(self.command, path, self.headers.get("Range", ""))
        if fault.hang:
            self.hub.release.wait()
        if fault.cut is not None and self.command in ("PUT", "POST"):
            self.rfile.read(fault.cut)
            return self.break_off()
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault.flip:
            self.body = bytes([self.body[0] ^ 1]) + self.body[1:]
        try:
            if fault.status:
                raise Refused(fault.status, fault.message, headers=fault.headers)
            response = self.route("GET" if self.command == "HEAD" else self.command, path)
        except Refused as error:
            self.send(error.status, error.headers, json.dumps(error.body).encode())
        else:
            if fault.lose:
                self.break_off()
            elif isinstance(response, tuple):
                self.send_file(*response, fault.cut)
            else:
                self.send(200, {}, json.dumps(response).encode(), fault.cut)

    do_GET = do_HEAD = do_PUT = do_POST = answer

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def route(self, method: str, path: str) -> Any:
        for asked, pattern, function in ROUTES:
            if asked == method and (match := re.fullmatch(pattern, path)):
                given = {key: value for key, value in match.groupdict().items() if value is not None or key == "kind"}
                return function(self.hub, self, **given)
        raise Refused(404, f"this Hub does not know {method} {path}")

    def send_file(self, content: Content, sha: str, cut: int | None) -> None:
        first, last, status = 0, content.size - 1, 200
        headers = {"ETag": f'"{content.sha256 or content.oid}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{content.size}"
        with content.file.open("rb") as file:
            file.seek(first)
            self.send(status, headers, file.read(last - first + 1), cut)

    def send(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.break_off()

    def break_off(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Tests look at `requests`."""
