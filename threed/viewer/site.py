"""The site behind the page: what it answers, and to whom.

It listens on 127.0.0.1 and reads alone. A request that does not name this machine as its host is refused, because a
web page elsewhere can make its own name point here (DNS rebinding); other sites may neither read nor embed an answer.
The page runs no script but its own, and nothing on it can call out. Of the shown folder only what `folders.located`
allows is sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import threading
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from threed.viewer import folders

PAGE = Path(__file__).parent / "page"
PARTS = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.is_file()}
CHUNK = 2**20  # bytes of a file that are in memory at a time
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}


class Site(ThreadingHTTPServer):
    """One run or mesh, or a gallery of them. Raises OSError where the port is taken."""

    daemon_threads = True
    allow_reuse_address = False  # on Windows it would let two programs share a port

    def __init__(self, root: Path, shown: Path, port: int = 0) -> None:
        """`shown` is in the folder `root`, or is it; nothing outside `root` is sent."""
        self.root, self.shown = root, shown
        super().__init__(("127.0.0.1", port), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def at(self) -> str:
        """What is shown, as a path in the folder."""
        return self.shown.relative_to(self.root).as_posix() if self.shown != self.root else ""

    def told(self, at: str) -> dict[str, Any] | None:
        """What the page is told of a path in the folder; None where nothing can be shown."""
        if at == "" and self.shown == self.root and not folders.is_run(self.root):
            return folders.gallery(self.root)
        path = folders.located(self.root, at)
        shown = path and (folders.is_run(path) if path.is_dir() else path.suffix.lower() in folders.MESHES)
        return folders.asset(self.root, self.root / at) if shown else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is nothing to tell of."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Answer(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "threed", ""
    timeout = 60  # seconds of silence after which a connection is given up

    def do_GET(self) -> None:
        if self.headers.get("Host", "").lower() not in self.hosts():
            self.refuse(HTTPStatus.MISDIRECTED_REQUEST, f"open {self.server.address} instead")
            return
        path, _, query = self.path.partition("?")
        path = unquote(path)
        kind, _, rest = path.lstrip("/").partition("/")
        if path == "/":
            self.send_file(PARTS["index.html"])
        elif kind == "page":
            self.send_file(PARTS.get(rest))
        elif kind == "files":
            self.send_file(folders.located(self.server.root, rest))
        elif kind == "glb":
            self.send_converted(folders.located(self.server.root, rest))
        elif path == "/told.json":
            self.send_told(parse_qs(query).get("at", [self.server.at])[0])
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "there is nothing of this name")

    do_HEAD = do_GET

    def hosts(self) -> set[str]:
        """The names that this site has."""
        port = self.server.server_port
        names = {f"127.0.0.1:{port}", f"localhost:{port}"}
        return names | {"127.0.0.1", "localhost"} if port == 80 else names

    def send_told(self, at: str) -> None:
        try:
            told = self.server.told(at)
        except OSError:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "it changed while it was being looked at")
            return
        if told is None:
            self.refuse(HTTPStatus.NOT_FOUND, "there is no run and no mesh of this name")
            return
        content = json.dumps(told | {"root": self.server.at, "here": str(self.server.shown)}, allow_nan=False).encode()
        self.send(HTTPStatus.OK, content, TYPES[".json"])

    def send_converted(self, path: Path | None) -> None:
        """The GLB that any mesh becomes."""
        if path is None or path.suffix.lower() not in folders.MESHES:
            self.refuse(HTTPStatus.NOT_FOUND, "there is no mesh of this name")
            return
        try:
            content = converted(path, path.stat().st_mtime_ns)
        except ValueError as error:
            self.refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
            return
        self.send(HTTPStatus.OK, content, TYPES[".glb"])

    def send_file(self, path: Path | None) -> None:
        try:
            if path is None:
                raise FileNotFoundError
            file = path.open("rb")
        except OSError:  # it went away, is a folder, or belongs to somebody else
            self.refuse(HTTPStatus.NOT_FOUND, "there is no file of this name")
            return
        with file:
            found = os.fstat(file.fileno())
            tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
            if self.headers.get("If-None-Match") == tag:
                self.begin(HTTPStatus.NOT_MODIFIED, None, 0, tag)
                return
            self.begin(HTTPStatus.OK, TYPES.get(path.suffix.lower(), "application/octet-stream"), found.st_size, tag)
            left = found.st_size if self.command == "GET" else 0
            while chunk := file.read(min(left, CHUNK)):  # no more than was announced, though the file may grow
                self.wfile.write(chunk)
                left -= len(chunk)

    def refuse(self, status: HTTPStatus, why: str) -> None:
        self.send(status, json.dumps({"problem": why}).encode(), TYPES[".json"])

    def send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.begin(status, kind, len(content))
        if self.command == "GET":
            self.wfile.write(content)

    def begin(self, status: HTTPStatus, kind: str | None, size: int, tag: str | None = None) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(size), "ETag": tag, "Content-Security-Policy": policy()}
        for name, value in (own | HEADERS).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody wants to read of every request."""


HEADERS = {
    "Cache-Control": "no-cache",  # ask each time; the tag says whether anything has changed
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@lru_cache(maxsize=1)
def policy() -> str:
    """The page's own files, pictures out of a GLB (blob and data), and the one script in the page: its import map."""
    inline = re.search(r'<script type="importmap">(.*?)</script>', PARTS["index.html"].read_text("utf-8"), re.DOTALL)
    assert inline
    digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_converting = threading.Lock()


@lru_cache(maxsize=4)
def _glb(path: Path, _age: int) -> bytes:
    from threed.exporters import glb
    from threed.renderers.read import colliders, read

    return glb.encode(read(path), colliders(path))


def converted(path: Path, age: int) -> bytes:
    """A mesh as a GLB, worked out once; `age` tells its versions apart. Raises ValueError for what cannot be read."""
    with _converting:
        return _glb(path, age)
