"""The web page and its parts, read into memory once at start. I/O at import of the page only.

http opens no file after its filter is loaded, so everything under ``frontend/`` is
held here, compressed once. The page as it is served asks for two files more: its style and
its modules, which come as one (``bundle.py``). Each address carries the hash of what it
stands for, so that a second visit asks for nothing but the page itself. What must run
before anything is painted stands inside the page, allowed by its hash: the policy needs no
``unsafe-inline``. So does what the page would ask for first (``page_with``).

gzip and not brotli: that would save 14 of 116 KB once per version of the page (12 %, at
quality 11, 0.5 s of CPU at every start of http) and a fifth of a large JSON answer, for
a parser-sized piece of native code in the process that faces the internet.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from base64 import b64encode
from pathlib import Path
from typing import Final, NamedTuple

from sandrun.http.bundle import bundle

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
_INLINE: Final = re.compile(rb"<(script|style)(?:\s[^>]*)?>(.*?)</\1>", re.DOTALL | re.IGNORECASE)

MODULES: Final = b'<script type="module" src="app/main.js"></script>'
BUNDLE: Final = "/app/bundle.js"
EARLY: Final = b'<script src="app/early.js"></script>'
# For a static server; ours sends a header, which says more and allows less.
_META_POLICY: Final = re.compile(rb'<meta http-equiv="Content-Security-Policy"[^>]*>\n?')
_BODY_END: Final = b"</body>"
_OWN_FILE: Final = re.compile(rb'(?<=\s)(href|src)="(app[./][\w./-]+)"')

API_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"


class Asset(NamedTuple):
    """One file of the page. ``packed`` is b"" where gzip does not pay."""

    body: bytes
    packed: bytes
    type: str
    etag: str
    policy: str

    @property
    def version(self) -> str:
        """What an address says after ``?v=`` that means exactly this content."""
        return self.etag.strip('"')


class Static:
    """``page`` is what GET / gives to a browser; ``assets`` are exact paths."""

    def __init__(self, folder: Path | None) -> None:
        self.assets: dict[str, Asset] = {}
        self.page: Asset | None = None
        if folder is not None:
            for path in sorted(folder.rglob("*")):
                if path.suffix in TYPES and path.is_file():
                    self._read(folder, path)
            self.page = self._joined(self.assets.get("/index.html"))

    def _read(self, folder: Path, path: Path) -> None:
        body = path.read_bytes()
        if len(body) <= MAX_FILE_BYTES:
            name = "/" + path.relative_to(folder).as_posix()
            self.assets[name] = make_asset(body, TYPES[path.suffix])

    def _joined(self, index: Asset | None) -> Asset | None:
        """The page for a browser: one script, and addresses that may be kept for ever."""
        if index is None:
            return None
        body = index.body
        if MODULES in body:
            modules = {
                name[1:]: asset.body.decode()
                for name, asset in self.assets.items()
                if name.endswith(".js")
            }
            script = bundle(modules, "app/main.js").encode()
            self.assets[BUNDLE] = make_asset(script, TYPES[".js"])
            # Without the word a module waits until the body is there.
            body = body.replace(
                MODULES, b'<script type="module" src="app/bundle.js" fetchpriority="high"></script>'
            )
        if EARLY in body:
            early = self.assets["/app/early.js"].body
            body = body.replace(EARLY, b"<script>\n%b</script>" % early)
        body = _META_POLICY.sub(b"", body)
        return make_asset(_OWN_FILE.sub(self._versioned, body), index.type)

    def page_with(self, answers: bytes) -> bytes:
        """The page, and in it this JSON: answers to what it would ask for at its start."""
        if self.page is None:
            return b""
        before, end, after = self.page.body.rpartition(_BODY_END)
        # No "<": nothing in a string of it can end the element.
        block = b'<script type="application/json" id="given">%b</script>\n' % answers.replace(
            b"<", b"\\u003c"
        )
        return b"".join((before, block, end, after))

    def _versioned(self, found: re.Match[bytes]) -> bytes:
        asset = self.assets.get("/" + found[2].decode())
        if asset is None:
            return found[0]
        return b'%b="%b?v=%b"' % (found[1], found[2], asset.version.encode())


def make_asset(body: bytes, kind: str) -> Asset:
    """Compress, hash, and derive the policy of one file."""
    packed = gzip.compress(body, 9, mtime=0)
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    policy = page_policy(body) if kind.startswith("text/html") else API_POLICY
    return Asset(body, packed if len(packed) < 0.9 * len(body) else b"", kind, etag, policy)


def page_policy(page: bytes) -> str:
    """Content-Security-Policy of a page: its own files, and what stands inside it by hash."""
    allowed: dict[bytes, list[str]] = {b"script": ["'self'"], b"style": ["'self'"]}
    for tag, content in _INLINE.findall(page):
        if content.strip():
            digest = b64encode(hashlib.sha256(content).digest()).decode()
            allowed[tag.lower()].append(f"'sha256-{digest}'")
    return (
        "default-src 'none'; "
        f"script-src {' '.join(allowed[b'script'])}; "
        f"style-src {' '.join(allowed[b'style'])}; "
        "connect-src 'self'; img-src 'self' data: blob:; media-src blob:; font-src 'self'; "
        "object-src 'none'; frame-src blob:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


def find_frontend() -> Path | None:
    """Installed as ``sandrun/frontend``, or ``frontend`` beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "frontend", package.parent / "frontend"):
        if (folder / "index.html").is_file():
            return folder
    return None
