"""Which web pages may start jobs, and the CORS fields that say so. Pure.

There are no cookies and no ambient authority, so any page may *read* with an id.
Starting jobs is different on a developer's own machine: a page that he happens to
visit could run code there. So when the server listens on loopback only, a browser
may submit from our own page or from a configured origin, and from nowhere else.
A page cannot leave ``Origin`` out, so a request without it is no page's.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from sandrun.config import is_local, listen_address
from sandrun.errors import RequestError

if TYPE_CHECKING:
    from sandrun.config import Http
    from sandrun.http.exchange import Request

EXPOSED: Final = (
    "ETag, Content-Disposition, Content-Range, Log-Cursor, RateLimit, RateLimit-Policy, Retry-After"
)
CORS: Final = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", EXPOSED),
)
PREFLIGHT: Final = (
    ("Access-Control-Allow-Headers", "Content-Type, Idempotency-Key, If-None-Match, If-Range, Last-Event-ID, Range"),
    ("Access-Control-Max-Age", "600"),
)  # fmt: skip


class Origins:
    """The rule, from ``[http]``."""

    def __init__(self, config: Http) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in config.allowed_origins)
        self._loopback_only = is_local(listen_address(config.listen, "http.listen"))

    def may_submit(self, request: Request) -> bool:
        """Whether the page behind this request (if it is one) may start jobs."""
        origin = request.headers.get("origin")
        if origin is None:
            return request.headers.get("sec-fetch-site", "none") in {"none", "same-origin"}
        origin = origin.strip().lower()
        if origin in self._allowed:
            return True
        if not self._loopback_only or request.via_proxy:
            return True
        # Our own page. The name must be this machine's too: with DNS rebinding a
        # foreign name points to 127.0.0.1 and its page looks like our own.
        host = (request.headers.get("host") or "").strip().lower()
        parts = urlsplit(origin)
        return parts.netloc == host and _is_this_machine(parts.hostname)

    def check(self, request: Request) -> None:
        """Raises :class:`RequestError` 403."""
        if not self.may_submit(request):
            raise RequestError(
                403,
                "foreign_origin",
                "a web page of another origin may not do this here; "
                "the operator can name it in [http] allowed_origins",
                details={"origin": request.headers.get("origin", "")},
            )


def _is_this_machine(host: str | None) -> bool:
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
