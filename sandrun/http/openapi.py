"""OpenAPI 3.1 out of the route table and the types of ``api.py``. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from sandrun import __version__
from sandrun.http import api
from sandrun.http.archive import FORMATS
from sandrun.http.problems import PROBLEMS
from sandrun.http.router import ROUTES, Route
from sandrun.manifest import Manifest


class Doc(NamedTuple):
    """What the types cannot say about a route."""

    reply: type[msgspec.Struct] | None = None  # JSON
    others: tuple[str, ...] = ()  # further media types of a 200
    body: type[msgspec.Struct] | None = None
    form: bool = False  # multipart too
    query: tuple[tuple[str, dict[str, Any], str], ...] = ()
    key: bool | None = None  # takes an Idempotency-Key; True: must have it
    statuses: tuple[int, ...] = ()  # beside 200


_FORM: Final = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "manifest": {"type": "string", "contentMediaType": "application/json"},
    },
}
_INTAKE: Final = (400, 404, 409, 411, 413, 415, 422, 429, 503)
_SECONDS: Final = {"type": "number", "minimum": 0, "maximum": 3600}
_FLAG: Final = {"type": "string", "enum": ["0", "1"]}
_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "yours to choose, hard to guess; the same key and client is the same job",
}
_SINCE: Final = ("since", {"type": "integer", "minimum": 0}, "cursor to go on from")

DOCS: Final[dict[str, Doc]] = {
    "index": Doc(api.ServiceInfo, ("text/html",)),
    "submit": Doc(api.Submitted, body=api.SubmitBody, form=True, key=False, statuses=_INTAKE),
    "upload": Doc(api.UploadProgress, key=True, statuses=(400, 404)),
    "run": Doc(
        api.RunReply,
        # "job" (Submitted), LogRecords, "end" (RunEnd), then "output" (InlineOutput); without
        # an "end" if the time was over first: the log goes on at /logs/{id}/stream.
        ("text/event-stream",),
        body=api.SubmitBody,
        form=True,
        key=False,
        query=(
            ("timeout", _SECONDS, "longest wait in seconds; then 202 and the job goes on"),
            ("inline", _FLAG, "1: small outputs are in the reply, base64 (or follow as events)"),
        ),
        statuses=(202, *_INTAKE),
    ),
    "validate": Doc(api.Validated, body=api.ValidateBody, statuses=(400, 411, 413, 415, 503)),
    "status": Doc(api.Status, statuses=(404,)),
    "logs": Doc(
        api.Logs,
        ("text/plain",),
        query=(_SINCE, ("wait", _SECONDS, "long-poll: wait so long for something new"),
               ("records", _FLAG, "1: records with time and stream")),
        statuses=(400, 404),
    ),
    "stream": Doc(None, ("text/plain", "text/event-stream"), query=(_SINCE,), statuses=(400, 404)),
    "outputs": Doc(api.Outputs, statuses=(404,)),
    "download": Doc(
        None,
        tuple(FORMATS.values()),
        query=(
            ("format", {"type": "string", "enum": list(FORMATS)}, "tar.gz by default"),
            ("keep", _FLAG, "1: the job is not deleted after delivery"),
        ),
        statuses=(400, 404, 409),
    ),
    "download_file": Doc(None, ("*/*",), statuses=(206, 304, 404, 416)),
    "delete": Doc(statuses=(204, 403, 404)),
    "cancel": Doc(api.Status, statuses=(403, 404)),
    "stats": Doc(api.Stats),
    "environments": Doc(api.Environments),
    "health": Doc(api.Health, statuses=(503,)),
    "privacy": Doc(api.Privacy),
    "openapi": Doc(None, ("application/json",)),
}  # fmt: skip

_EXAMPLES: Final[dict[str, Any]] = {
    "submit": {"files": {"main.py": "print(6 * 7)"}, "manifest": {"memory_mb": 64}},
    "run": {"code": "print(6 * 7)", "interpreter": "python3"},
    "validate": {"files": ["main.py", {"path": "data/in.csv", "size": 1000}]},
}

# What can be done with the ids in an answer, as OpenAPI links.
_LINKED: Final = (
    "/status/{id}",
    "/logs/{id}",
    "/logs/{id}/stream",
    "/outputs/{id}",
    "/download/{id}",
    "/jobs/{id}",
    "/jobs/{id}/cancel",
)

_TEXTS: Final = {
    202: "The job goes on; see /status",
    204: "Done",
    206: "Part of the file",
    304: "Not modified",
    400: "A field is wrong",
    403: "A view id cannot do this",
    404: "Unknown, expired or not yours",
    409: "Not in this state",
    411: "Length required",
    413: "Over a limit",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Unprocessable",
    429: "Quota used up",
    503: "Not now",
}


def document() -> dict[str, Any]:
    """The whole description. A dict in JSON's types."""
    used = [kind for doc in DOCS.values() for kind in (doc.reply, doc.body) if kind is not None]
    extra: list[type[msgspec.Struct]] = [
        api.Problem,
        api.LogRecord,
        api.LogEnd,
        api.RunEnd,
        Manifest,
    ]
    known = sorted({*used, *extra}, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(
        known, ref_template="#/components/schemas/{name}"
    )
    refs = dict(zip(known, schemas, strict=True))
    for body in (api.SubmitBody, api.ValidateBody):
        # The types hold its bytes, which ``sandrun.manifest`` reads.
        components[body.__name__]["properties"]["manifest"] = refs[Manifest]
    components["Problem"]["properties"]["code"] |= {
        "enum": sorted(PROBLEMS),
        "description": "\n".join(f"- `{code}`: {said}" for code, said in PROBLEMS.items()),
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        if not route.admin:
            paths.setdefault(route.pattern, {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sandrun",
            "version": __version__,
            "description": "A job id is a secret: it is all that protects a job.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: Route, refs: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    doc = DOCS[route.name]
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "responses": _responses(route, doc, refs),
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("id", "path")
        if f"{{{name}}}" in route.pattern
    ] + [
        {"name": name, "in": "query", "schema": schema, "description": text}
        for name, schema, text in doc.query
    ]
    if doc.key is not None:
        parameters.append(_KEY | {"required": doc.key})
    if parameters:
        found["parameters"] = parameters
    if doc.body is not None:
        content: dict[str, Any] = {
            "application/json": {"schema": refs[doc.body], "example": _EXAMPLES[route.name]}
        }
        if doc.form:
            content["multipart/form-data"] = {"schema": _FORM}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _operation_id(route: Route) -> str:
    words = [word.strip("{}").replace(".", "_") for word in route.pattern.split("/") if word]
    return "_".join((route.method.lower(), *words)) if words else "index"


def _responses(route: Route, doc: Doc, refs: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    content: dict[str, Any] = {}
    if doc.reply is not None:
        content["application/json"] = {"schema": refs[doc.reply]}
    for kind in doc.others:
        content.setdefault(kind, {})
    if 204 not in doc.statuses:
        found["200"] = {"description": "Fine", "content": content}
        if route.name in {"submit", "run"}:
            found["200"]["links"] = _links()
    for status in doc.statuses:
        found[str(status)] = {"description": _TEXTS[status], **_body(route, status, content, refs)}
    return found


def _links() -> dict[str, Any]:
    """From a job that was accepted to everything that its id opens."""
    return {
        _operation_id(route): {
            "operationId": _operation_id(route),
            "parameters": {"id": "$response.body#/job_id"},
        }
        for route in ROUTES
        if route.pattern in _LINKED
    }


def _body(
    route: Route, status: int, content: dict[str, Any], refs: dict[type[msgspec.Struct], Any]
) -> dict[str, Any]:
    if status in {204, 304}:
        return {}
    if status in {202, 206} or (route.name == "health" and status == 503):
        return {"content": content}
    return {"content": {"application/json": {"schema": refs[api.Problem]}}}
