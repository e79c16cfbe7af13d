"""A Hugging Face Hub on loopback for tests: model repositories with branches, tags, LFS and atomic commits, and faults to order.

Standard library only; the requests are those of the real ``huggingface_hub`` client with ``HF_HUB_DISABLE_XET=1``.

    with LocalHub() as hub:
        hub.fail("PUT", "/lfs/", 500, times=2)
        subprocess.run(..., env=os.environ | hub.environment(cache))
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
WRITE, READ = "hf_local_write", "hf_local_read"


@dataclass
class Stored:
    """A file of a commit: its content, and whether it is kept as LFS."""

    data: bytes
    lfs: bool

    @property
    def oid(self):
        """sha256 of an LFS file, git's blob hash of another, as the client computes them."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repo:
    """One model repository: branches and tags point at commits, commits hold files."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    history: list[tuple[str, str, str]] = field(default_factory=list)  # sha, branch, title

    def commit(self, branch, files, title):
        content = json.dumps(sorted((name, stored.oid) for name, stored in files.items()))
        sha = hashlib.sha1(f"{branch}{title}{content}{len(self.history)}".encode()).hexdigest()
        self.commits[sha] = files
        self.history.append((sha, branch, title))
        self.branches[branch] = sha  # the one assignment that makes it visible
        return sha

    def resolve(self, revision):
        revision = unquote(revision or "main")
        sha = self.branches.get(revision) or self.tags.get(revision)
        return sha or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What happens to the next ``times`` requests that match: an HTTP status, or

    ``"drop"``: the connection is closed unanswered; ``"half"``: after half of the body; ``"lost"``: after the request was carried
    out; ``"hold"``: nothing, until the client goes away.
    """

    method: str
    path: str
    action: int | str
    times: int
    headers: dict[str, str]


class Answer(Exception):
    """The answer to a request."""

    def __init__(self, status, body=b"", headers=None, code=None, length=None):
        self.status, self.headers, self.length = status, dict(headers or {}), length
        if code is not None:
            body = {"error": code}
            self.headers |= {"X-Error-Code": code, "X-Error-Message": code}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class LocalHub:
    """The server; its state is there to be looked at."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}  # uploaded LFS content by sha256
        self.log: list[str] = []
        self.faults: list[Fault] = []
        self.held = threading.Event()  # a request is being held
        self.closed = False
        self.lock = threading.RLock()

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed = True  # connections that are open hang up
        self.server.shutdown()
        self.server.server_close()

    def environment(self, cache, token=WRITE):
        """Variables under which a process talks to this hub, with its own caches."""
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
        variables |= {
            "HF_MODULES_CACHE": f"{cache}/modules",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return variables | {"HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1"}

    def fail(self, method, path, action, times=1, **headers):
        """Order a fault; ``path`` is a regular expression searched for."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, action, times, fields))

    def files(self, repo_id, revision="main"):
        """Name -> content at ``revision``."""
        repo = self.repos[repo_id]
        return {name: stored.data for name, stored in repo.commits[repo.resolve(revision)].items()}

    def titles(self, repo_id):
        """Titles of the commits, oldest first."""
        return [title for _, _, title in self.repos[repo_id].history]

    def take_fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def answer(self):
        hub, path = self.hub, urlsplit(self.path).path
        with hub.lock:
            hub.log.append(f"{self.command} {path}")
        if hub.closed:
            return self.hang_up()
        fault = hub.take_fault(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.action in ("drop", "half", "hold"):
            self.rfile.read(length // 2 if fault.action == "half" else 0)
            if fault.action == "hold":
                hub.held.set()
                self.rfile.read(length)
                self.rfile.read(1)  # returns when the client has gone
            return self.hang_up()
        data = self.read_body(length)
        if fault and isinstance(fault.action, int):
            return self.send(Answer(fault.action, {"error": "ordered by the test"}, fault.headers))
        try:
            with hub.lock:
                self.route(path, data)
            answer = Answer(404, code="NotFound")
        except Answer as found:
            answer = found
        if fault and fault.action == "lost":
            return self.hang_up()
        return self.send(answer)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    def read_body(self, length):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, answer):
        self.send_response(answer.status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    # --------------------------------------------------------------------------------------------------- requests

    def route(self, path, data):
        if path == "/api/validate-yaml":
            raise Answer(200, {"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            self.need(READ)
            raise Answer(200, {"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        if path.startswith("/api/repos/"):
            self.create_or_delete(path.rsplit("/", 1)[1], json.loads(data))
        if path.startswith("/lfs/") and self.command == "PUT":
            self.store(path.removeprefix("/lfs/"), data)
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.lfs_batch(json.loads(data))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.download(self.repo(found[1]), found[2], unquote(found[3]))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?", path):
            repo, action, rest = self.repo(found[1]), found[2], found[3] or ""
            if self.command in ("POST", "PUT", "DELETE") and action != "paths-info":
                self.need(WRITE)
            handler = getattr(self, f"on_{(action or 'revision').replace('-', '_')}", None)
            if handler is not None:
                handler(repo, found[1], rest, data)

    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def need(self, role):
        if self.token() not in (WRITE, READ):
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        if role == WRITE and self.token() != WRITE:
            raise Answer(403, {"error": "You don't have the rights to do this"})

    def repo(self, repo_id) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.token() not in (WRITE, READ)):
            raise Answer(404 if self.token() else 401, code="RepoNotFound")
        return repo

    def sha(self, repo, revision):
        sha = repo.resolve(revision)
        if sha is None:
            raise Answer(404, code="RevisionNotFound")
        return sha

    def create_or_delete(self, action, wanted):
        self.need(WRITE)
        repo_id = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if not repo_id.startswith("user/"):
            raise Answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        if action == "delete":
            self.hub.repos.pop(repo_id)
            raise Answer(200, {})
        if repo_id in self.hub.repos:
            raise Answer(409, {"error": "You already created this model repo", "url": url})
        repo = self.hub.repos[repo_id] = Repo(
            private=bool(wanted.get("private") or wanted.get("visibility") == "private")
        )
        repo.commit("main", {".gitattributes": Stored(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        raise Answer(200, {"url": url, "name": repo_id})

    def lfs_batch(self, wanted):
        self.need(WRITE)
        objects = []
        for entry in wanted["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}}
            known = entry["oid"] in self.hub.blobs
            objects.append({"oid": entry["oid"], "size": entry["size"], **({} if known else {"actions": actions})})
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid, data):
        if hashlib.sha256(data).hexdigest() != oid:
            raise Answer(400, {"error": "content does not match its sha256"})
        self.hub.blobs[oid] = data
        raise Answer(200, {})

    def download(self, repo, revision, name):
        sha = self.sha(repo, revision)
        stored = repo.commits[sha].get(name)
        if stored is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            raise Answer(404, {"error": "Entry not found"}, missing)
        fields = {"X-Repo-Commit": sha, "ETag": f'"{stored.oid}"', "Accept-Ranges": "bytes"}
        fields["Content-Type"] = "application/octet-stream"
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), int(found[2] or len(stored.data) - 1)
            fields["Content-Range"] = f"bytes {first}-{last}/{len(stored.data)}"
            raise Answer(206, stored.data[first : last + 1], fields)
        raise Answer(200, stored.data, fields)

    # ------------------------------------------------------------------------------------- /api/models/{id}/{action}

    def on_preupload(self, repo, repo_id, revision, data):
        files = repo.commits[self.sha(repo, revision)]
        answers = []
        for wanted in json.loads(data)["files"]:
            lfs = wanted["path"].endswith(LFS_ENDINGS) or wanted["size"] > 10_000_000
            there = files.get(wanted["path"])
            oid = there.oid if there is not None and there.lfs == lfs else None
            answers.append(
                {"path": wanted["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        raise Answer(200, {"files": answers})

    def on_commit(self, repo, repo_id, branch, data):
        branch = unquote(branch)
        if branch not in repo.branches:
            raise Answer(404, code="RevisionNotFound")
        files, title = dict(repo.commits[repo.branches[branch]]), ""
        for line in data.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, repo.branches[branch]):
                    raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                continue
            name = value["path"]
            if name.startswith("/") or ".." in name.split("/"):
                raise Answer(400, {"error": f"invalid path {name}"})
            if kind == "file":
                files[name] = Stored(base64.b64decode(value["content"]), False)
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Answer(400, {"error": f"{name} was not uploaded"})
                files[name] = Stored(self.hub.blobs[value["oid"]], True)
            elif kind == "deletedFile":
                if files.pop(name, None) is None:
                    raise Answer(
                        404, {"error": "A file with this name doesn't exist"}, {"X-Error-Code": "EntryNotFound"}
                    )
            elif kind == "deletedFolder":
                files = {path: file for path, file in files.items() if not path.startswith(name.rstrip("/") + "/")}
        sha = repo.commit(branch, files, title)
        raise Answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True})

    def on_branch(self, repo, repo_id, branch, data):
        wanted, branch = json.loads(data or b"{}"), unquote(branch)
        if branch in repo.branches:
            raise Answer(409, {"error": "Reference already exists"})
        repo.branches[branch] = self.sha(repo, wanted.get("startingPoint"))
        raise Answer(200, {})

    def on_tag(self, repo, repo_id, revision, data):
        repo.tags[json.loads(data)["tag"]] = self.sha(repo, revision)
        raise Answer(200, {})

    def on_refs(self, repo, repo_id, rest, data):
        listed = [
            [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]
            for kind, refs in (("heads", repo.branches), ("tags", repo.tags))
        ]
        raise Answer(200, {"branches": listed[0], "tags": listed[1], "converts": []})

    def on_commits(self, repo, repo_id, revision, data):
        sha = self.sha(repo, revision)
        branch = next(branch for known, branch, _ in repo.history if known == sha)
        when = {"authors": [{"user": "user"}], "date": "2026-01-01T00:00:00.000Z", "message": ""}
        commits = [
            {"id": known, "title": title, **when} for known, made_on, title in repo.history if made_on == branch
        ]
        raise Answer(200, commits[::-1])

    def on_revision(self, repo, repo_id, revision, data):
        sha = self.sha(repo, revision)
        about = {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "private": repo.private,
        }
        about |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "sha": sha}
        about |= {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
        raise Answer(200, {**about, "siblings": [{"rfilename": name} for name in sorted(repo.commits[sha])]})

    def on_tree(self, repo, repo_id, rest, data):
        revision, _, folder = rest.partition("/")
        folder = unquote(folder)
        sha = self.sha(repo, revision)
        names = [name for name in sorted(repo.commits[sha]) if name.startswith(f"{folder}/" if folder else "")]
        if folder and not names:
            raise Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        raise Answer(200, [self.entry(repo.commits[sha], name) for name in names])

    def on_paths_info(self, repo, repo_id, revision, data):
        files = repo.commits[self.sha(repo, revision)]
        if "json" in self.headers.get("Content-Type", ""):
            names = json.loads(data)["paths"]
        else:
            names = parse_qs(data.decode()).get("paths", [])
        raise Answer(200, [self.entry(files, name) for name in names if name in files])

    @staticmethod
    def entry(files, name):
        stored = files[name]
        about = {"type": "file", "path": name, "oid": stored.oid, "size": len(stored.data)}
        pointer = {"oid": stored.oid, "size": len(stored.data), "pointerSize": 130}
        return about | ({"lfs": pointer} if stored.lfs else {})


__all__ = ["READ", "WRITE", "LocalHub", "Repo"]
