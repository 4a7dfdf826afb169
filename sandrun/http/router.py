"""Method and path → the name of a route and its parameters. Pure.

The table is the whole truth: ``openapi.py`` describes it and ``handlers/`` has
one coroutine per ``name``. Nothing falls through: an unknown path is 404, a known
path with another method is 405 with ``Allow``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sandrun.errors import RequestError


class Route(NamedTuple):
    """One row. ``{id}`` is one segment, ``{path}`` is the rest of the path."""

    method: str
    pattern: str
    name: str
    summary: str
    admin: bool = False  # served on the admin listener only


class Match(NamedTuple):
    """What was asked for. ``path`` holds surrogate escapes for bytes not UTF-8."""

    name: str
    id: str = ""
    path: str = ""
    allow: tuple[str, ...] = ()


ROUTES: Final = (
    Route("GET", "/", "index", "The web page, or service info as JSON"),
    Route("POST", "/submit", "submit", "Submit a job"),
    Route("POST", "/run", "run", "Submit a job and wait for its end"),
    Route("POST", "/validate", "validate", "Dry run of a manifest and a file list"),
    Route("GET", "/upload", "upload", "Progress of the upload that has this Idempotency-Key"),
    Route("GET", "/status/{id}", "status", "State, usage, verdict and outputs of a job"),
    Route("GET", "/logs/{id}", "logs", "Output so far; since and wait long-poll"),
    Route("GET", "/logs/{id}/stream", "stream", "Live output: WebSocket, SSE or chunked text"),
    Route("GET", "/stream/{id}", "stream", "Alias of /logs/{id}/stream"),
    Route("GET", "/ws/{id}", "stream", "Alias of /logs/{id}/stream"),
    Route("GET", "/outputs/{id}", "outputs", "List the output files"),
    Route("GET", "/outputs/{id}/{path}", "download_file", "Alias of /download/{id}/{path}"),
    Route("GET", "/download/{id}", "download", "One archive of the outputs"),
    Route("GET", "/download/{id}/{path}", "download_file", "One output file"),
    Route("DELETE", "/jobs/{id}", "delete", "Wipe a job now"),
    Route("POST", "/jobs/{id}/cancel", "cancel", "Stop a job and keep its logs"),
    Route("GET", "/stats", "stats", "Your quota and the state of the node"),
    Route("GET", "/environments", "environments", "Environments and their packages"),
    Route("GET", "/health", "health", "Ready, or the first cause why not"),
    Route("GET", "/privacy", "privacy", "Measured privacy facts of this node"),
    Route("GET", "/openapi.json", "openapi", "This interface as OpenAPI 3.1"),
    Route("GET", "/metrics", "metrics", "Prometheus text", admin=True),
    Route("GET", "/health", "health", "Ready, or the first cause why not", admin=True),
)


class Router:
    """Looks a path up. ``assets`` are extra exact paths served by ``asset``."""

    def __init__(
        self, routes: tuple[Route, ...] = ROUTES, assets: tuple[str, ...] = (), *, admin: bool
    ) -> None:
        self._exact: dict[str, dict[str, str]] = {}
        # (first segment, shape) where shape tells what follows the id
        self._by_id: dict[tuple[str, str], dict[str, str]] = {}
        for route in routes:
            if route.admin == admin:
                self._add(route)
        if not admin:
            for path in assets:
                self._exact[path] = {"GET": "asset"}

    def _add(self, route: Route) -> None:
        head, given, tail = route.pattern.partition("/{id}")
        if given:
            methods = self._by_id.setdefault((head, tail), {})
        else:
            methods = self._exact.setdefault(route.pattern, {})
        methods[route.method] = route.name

    def match(self, method: str, path: str) -> Match:
        """``path`` is percent-decoded; an escaped slash has been refused before.

        Raises :class:`RequestError` 404 and 405.
        """
        if path == "*" and method == "OPTIONS":
            return Match("options", allow=("GET", "HEAD", "POST", "DELETE", "OPTIONS"))
        methods = self._exact.get(path)
        if methods is not None:
            return Match(_choose(methods, method), path=path, allow=_allow(methods))
        first, _, rest = path[1:].partition("/")
        job_id, slash, tail = rest.partition("/")
        if not path.startswith("/") or not job_id or (slash and not tail):
            raise not_found()
        methods = self._by_id.get((f"/{first}", f"/{tail}" if slash else ""))
        if methods is not None:
            return Match(_choose(methods, method), job_id, "", _allow(methods))
        methods = self._by_id.get((f"/{first}", "/{path}")) if slash else None
        if methods is None:
            raise not_found()
        return Match(_choose(methods, method), job_id, tail, _allow(methods))


def _choose(methods: dict[str, str], method: str) -> str:
    name = methods.get("GET" if method == "HEAD" else method)
    if name is not None:
        return name
    if method == "OPTIONS":
        return "options"
    allow = ", ".join(_allow(methods))
    raise RequestError(
        405,
        "method_not_allowed",
        f"method {method} is not allowed here; allowed are {allow}",
        details={"method": method, "allowed": list(_allow(methods))},
        headers=(("Allow", allow),),
    )


def _allow(methods: dict[str, str]) -> tuple[str, ...]:
    return (*methods, *(("HEAD",) if "GET" in methods else ()), "OPTIONS")


def not_found() -> RequestError:
    """One 404 for everything: unknown path, unknown, expired and foreign job."""
    return RequestError(404, "not_found", "there is nothing here (or no longer)")
