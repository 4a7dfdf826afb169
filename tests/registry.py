"""A registry of node packages on a local port: an index for tests that need no network."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Registry:
    """Packages by name, one version each. ``asked``: paths of requests."""

    def __init__(self) -> None:
        self.tarballs: dict[str, bytes] = {}
        self.manifests: dict[str, dict] = {}
        self.asked: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def add(self, name, files, *, version="1.0.0", links=(), **manifest):
        """``files``: path → text. ``links``: (path, target) of symbolic links."""
        manifest = {"name": name, "version": version, **manifest}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path, text in {"package.json": json.dumps(manifest), **files}.items():
                info = tarfile.TarInfo(f"package/{path}")
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
            for path, target in links:
                info = tarfile.TarInfo(f"package/{path}")
                info.type, info.linkname = tarfile.SYMTYPE, target
                archive.addfile(info)
        self.manifests[name] = manifest
        self.tarballs[name] = buffer.getvalue()

    def integrity(self, name):
        return "sha512-" + base64.b64encode(hashlib.sha512(self.tarballs[name]).digest()).decode()

    def tarball_url(self, name):
        return f"{self.url}{name}/-/{name.rpartition('/')[2]}-{self.manifests[name]['version']}.tgz"

    def lock(self, *names, **overrides):
        """(package.json, package-lock.json) that ask for ``names``, as dicts."""
        wanted = {name: self.manifests[name]["version"] for name in names}
        entries = {"": {"name": "x", "version": "1.0.0", "dependencies": wanted}}
        todo = list(names)
        while todo:
            name = todo.pop()
            manifest = self.manifests[name]
            entries[f"node_modules/{name}"] = {
                "version": manifest["version"],
                "resolved": self.tarball_url(name),
                "integrity": self.integrity(name),
                **{key: manifest[key] for key in ("dependencies", "bin") if key in manifest},
                **overrides.get(name, {}),
            }
            todo += manifest.get("dependencies", {})
        package = {"name": "x", "version": "1.0.0", "dependencies": dict(wanted)}
        return package, {"name": "x", "lockfileVersion": 3, "requires": True, "packages": entries}

    def packument(self, name):
        manifest = self.manifests[name]
        dist = {"tarball": self.tarball_url(name), "integrity": self.integrity(name)}
        version = manifest["version"]
        return {
            "name": name,
            "dist-tags": {"latest": version},
            "versions": {version: {**manifest, "dist": dist}},
        }


@contextlib.contextmanager
def serving():
    """A :class:`Registry` that listens."""
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            registry.asked.append(self.path)
            name = unquote(self.path.split("?")[0].strip("/"))
            if "/-/" in name:
                body = registry.tarballs.get(name.partition("/-/")[0])
            else:
                known = name in registry.manifests
                body = json.dumps(registry.packument(name)).encode() if known else None
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
