"""A Hub on loopback: enough of its HTTP API for the real client to create, push, list and load; and to fail on demand.

`Hub.fail(method, path, status)` makes requests fail, with status `CUT` by closing the connection in the middle of what
the client sends. Who may write is told by the token: `TOKEN` owns the namespace `alice`, `READER` may only read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, READER, OWNER, CUT = "hf_test_writer", "hf_test_reader", "alice", 0
TEXT = (".json", ".md", ".yaml", ".py", ".txt", ".gitattributes", ".jsonl")
REPO = r"/api/(models|datasets)/([\w.-]+/[\w.-]+)"


def oid(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repo:
    """Commits are whole trees {path: content}; `refs` names some of them."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: dict[str, str] = {}
        self.refs: dict[str, str] = {}
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial commit")

    def commit(self, ref: str, tree: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {ref} {message}".encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.refs[ref] = tree, message, sha
        return sha

    def tree(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.refs.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub:
    """The server; a context manager."""

    def __init__(self, port: int = 0):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[tuple[str, str, int, int]] = []
        self.log: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads, self.server.hub = True, self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, status: int, times: int = 100) -> None:
        """The next `times` requests of a method whose path has the regular expression in it fail."""
        self.faults.append((method, path, status, times))

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a repository holds, but for what it was made with."""
        repo = self.repos.get((kind, repo_id))
        tree = repo.tree(revision)[1] if repo else {}
        return {name: content for name, content in tree.items() if name != ".gitattributes"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *arguments) -> None:
        pass

    def do(self) -> None:
        parts = urlsplit(self.path)
        # a revision may come quoted, with a slash in it
        path, self.query = parts.path, parse_qs(parts.query)
        self.hub.log.append((self.command, path))
        fault = next((f for f in self.hub.faults if f[0] == self.command and f[3] > 0 and re.search(f[1], path)), None)
        if fault is not None:
            self.hub.faults[self.hub.faults.index(fault)] = (*fault[:3], fault[3] - 1)
            if fault[2] == CUT:
                return self.cut()
        self.body = self.read()
        if fault is not None:
            return self.answer(fault[2], {"error": f"injected {fault[2]}"})
        for method, pattern, action in ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                return action(self, *(unquote(part or "") for part in found.groups()))
        self.answer(404, {"error": f"no such page: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = do

    def cut(self) -> None:
        """Take some of the request and hang up without a word."""
        self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 100))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content=b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, repo_id: str) -> bool:
        """Whether the token may; answers where it may not."""
        if self.token() not in (TOKEN, READER):
            self.answer(401, {"error": "Invalid user token."})
        elif self.token() == READER or repo_id.split("/")[0] != OWNER:
            self.answer(403, {"error": "Forbidden"}, X_Error_Message="You have no right to write here")
        else:
            return True
        return False

    def found(self, kind: str, repo_id: str) -> Repo | None:
        """The repository, as far as the token may see it; answers where it may not."""
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and self.token() != TOKEN):
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return repo

    def found_tree(self, kind: str, repo_id: str, revision: str):
        """Commit and tree; answers where there is none."""
        repo = self.found(kind, repo_id)
        tree = repo.tree(revision) if repo else None
        if repo and tree is None:
            self.answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return tree

    # what can be asked

    def whoami(self) -> None:
        if self.token() not in (TOKEN, READER):
            return self.answer(401, {"error": "Invalid user token."}, X_Error_Message="Invalid user token.")
        self.answer(200, {"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or OWNER}/{asked['name']}"
        key = (f"{asked.get('type') or 'model'}s", repo_id)
        if not self.may_write(repo_id):
            return
        url = f"{self.hub.url}/{'datasets/' if key[0] == 'datasets' else ''}{repo_id}"
        if key in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.repos[key] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(200, {"url": url, "name": repo_id})

    def validate_yaml(self) -> None:
        text = json.loads(self.body)["content"]
        errors = [] if text.startswith("---\n") else [{"message": "no metadata"}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def branch(self, kind: str, repo_id: str, name: str) -> None:
        if self.may_write(repo_id) and (repo := self.found(kind, repo_id)):
            if name in repo.refs:
                return self.answer(409, {"error": "Reference already exists"})
            repo.refs[name] = repo.refs["main"]
            self.answer(200, {})

    def refs(self, kind: str, repo_id: str) -> None:
        if repo := self.found(kind, repo_id):
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.refs.items()]
            self.answer(200, {"branches": branches, "converts": [], "tags": []})

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        if not ("create_pr" in self.query or self.may_write(repo_id)) or not (
            tree := self.found_tree(kind, repo_id, revision)
        ):
            return
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "regular" if file["path"].endswith(TEXT) else "lfs"
            known = {"oid": oid(tree[1][file["path"]])} if file["path"] in tree[1] and mode == "regular" else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.answer(200, {"files": files})

    def batch(self, repo_id: str) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/lfs/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(asked if asked["oid"] in self.hub.large else {**asked, "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, name: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != name:
            return self.answer(400, {"error": "not the file that was announced"})
        self.hub.large[name] = self.body
        self.answer(200)

    def verify(self, name: str) -> None:
        self.answer(200 if name in self.hub.large else 404, {})

    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        wants_pr = "create_pr" in self.query
        if not (wants_pr or self.may_write(repo_id)) or not (found := self.found_tree(kind, repo_id, revision)):
            return
        repo, tree, message = self.hub.repos[kind, repo_id], dict(found[1]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                tree[value["path"]] = self.hub.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        sha = repo.commit(f"refs/pr/{number}" if wants_pr else revision, tree, message)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}
        if wants_pr:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        self.answer(200, answer)

    def info(self, kind: str, repo_id: str, revision: str | None = None) -> None:
        if found := self.found_tree(kind, repo_id, revision or "main"):
            sha, tree = found
            about = {"id": repo_id, "sha": sha, "private": self.hub.repos[kind, repo_id].private, "tags": []}
            self.answer(200, {**about, "siblings": [{"rfilename": name} for name in tree], "gated": False})

    def list_tree(self, kind: str, repo_id: str, revision: str, folder: str = "") -> None:
        if not (found := self.found_tree(kind, repo_id, revision)):
            return
        folder = folder.strip("/")
        inside = {n: c for n, c in found[1].items() if not folder or n.startswith(f"{folder}/")}
        if folder and not inside:
            return self.answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        self.answer(200, self.entries(inside, folder, "true" in [v.lower() for v in self.query.get("recursive", [])]))

    def entries(self, files: dict[str, bytes], folder: str = "", deep: bool = True) -> list[dict]:
        entries, folders = [], set()
        for name, content in files.items():
            parts = name[len(folder) + 1 if folder else 0 :].split("/")
            for depth in range(1, len(parts)):
                if deep or depth == 1:
                    folders.add("/".join(([folder] if folder else []) + parts[:depth]))
            if deep or len(parts) == 1:
                lfs = {} if name.endswith(TEXT) else {"lfs": {"oid": hashlib.sha256(content).hexdigest()}}
                lfs = {"lfs": {**lfs["lfs"], "size": len(content), "pointerSize": 134}} if lfs else {}
                entries.append({"type": "file", "path": name, "size": len(content), "oid": oid(content), **lfs})
        return [{"type": "directory", "path": f, "size": 0, "oid": oid(f.encode())} for f in sorted(folders)] + entries

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        if found := self.found_tree(kind, repo_id, revision):
            body = self.body.decode()
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            everything = self.entries(found[1])
            self.answer(200, [entry for entry in everything if entry["path"] in asked])

    def resolve(self, prefix: str, repo_id: str, revision: str, name: str) -> None:
        if not (found := self.found_tree("datasets" if prefix else "models", repo_id, revision)):
            return
        sha, tree = found
        if name not in tree:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        content = tree[name]
        tag = oid(content) if name.endswith(TEXT) else hashlib.sha256(content).hexdigest()
        headers = {"X_Repo_Commit": sha, "ETag": f'"{tag}"', "Accept_Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            part = content[start : end + 1]
            headers["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            return self.answer(206, part, **headers)
        self.answer(200, content, **headers)


ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", REPO + r"/branch/([^/]+)", Handler.branch),
    ("GET", REPO + r"/refs", Handler.refs),
    ("POST", REPO + r"/preupload/([^/]+)", Handler.preupload),
    ("POST", REPO + r"/commit/([^/]+)", Handler.commit),
    ("POST", REPO + r"/paths-info/([^/]+)", Handler.paths_info),
    ("GET", REPO, Handler.info),
    ("GET", REPO + r"/revision/([^/]+)", Handler.info),
    ("GET", REPO + r"/tree/([^/]+)(/.*)?", Handler.list_tree),
    ("POST", r"/(?:datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.put),
    ("POST", r"/lfs/(\w+)/verify", Handler.verify),
    ("GETHEAD", r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]
