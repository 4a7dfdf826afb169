"""/validate: what would a manifest and a list of files give? Pure but for the body."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sandrun import globs, manifest
from sandrun.errors import RequestError
from sandrun.http import api, views
from sandrun.http.spool import JOB_JSON, archive_kind
from sandrun.http.submission import (
    api_decode,
    media_type,
    read_json,
    safe_path,
    unsupported,
    utf8,
)
from sandrun.job import MIB

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.exchange import Exchange
    from sandrun.job import JobSpec

MAX_BODY: Final = MIB
STEPS_PER_TURN: Final = 20_000  # characters matched before others have their turn: about 10 ms
MAX_STEPS: Final = 1_000_000  # then the answer says that it is not complete
STEP_S: Final = 0.5e-6  # of CPU time, which the client pays like a job's


async def validate(exchange: Exchange, app: App) -> api.Validated:
    """Raises :class:`RequestError` 400 with the field that is wrong, as /submit would."""
    kind = media_type(exchange)
    if kind != "application/json":
        raise unsupported(kind, "application/json")
    body = api_decode(api.decode_validate, await read_json(exchange, app.budget, MAX_BODY))
    given = manifest.Manifest()
    if body.manifest:
        given = manifest.parse(bytes(body.manifest), app.rules)
    texts = body.files if isinstance(body.files, dict) else {}
    if JOB_JSON in texts:
        job_json = manifest.parse(utf8(texts[JOB_JSON], "files"), app.rules, JOB_JSON)
        given = manifest.merge(given, job_json)
    paths = [safe_path(one if isinstance(one, str) else one.path) for one in body.files]
    if len(paths) > app.config.limits.files:
        raise RequestError(
            413,
            "too_many_files",
            f"files: {len(paths)}; {app.config.limits.files} are allowed",
            details={"limit": app.config.limits.files},
        )
    spec = manifest.draft(given, app.defaults)
    plain = [path for path in paths if archive_kind(path) == "file"]
    if paths and len(plain) == len(paths):
        spec = manifest.complete(
            spec,
            [(path, True) for path in plain],
            lambda path: texts.get(path, "").partition("\n")[0].encode(errors="replace"),
            app.rules.interpreters,
        )
    client = app.quota.client(exchange.request.client, app.clock())
    # Half a second of our time for 18 KB of request: it is the client's, and who has
    # none left gets an answer that says it is not complete.
    standing = app.quota.standing(client, app.clock())
    outputs, steps = await _match(spec, plain, 0 if standing.reason == "cpu_seconds" else MAX_STEPS)
    app.quota.charge(client, steps * STEP_S, app.clock())
    position = len(app.queue) + 1 if app.queue else 0
    return api.Validated(
        valid=True,
        entrypoint=spec.entrypoint,
        interpreter=spec.interpreter,
        environment=spec.environment,
        profile=spec.profile,
        limits=views.limit_column(spec.limits),
        why=_why(given, paths, has_archive=len(plain) != len(paths)),
        outputs=outputs,
        warm=app.leases.has_warm(*app.kind(spec)),
        position=position,
        eta_s=app.eta_s(position),
        quota_cost_cpu_seconds=spec.limits.cpu_seconds,
        quota=views.your_quota(app, client),
    )


def _why(given: manifest.Manifest, paths: list[str], *, has_archive: bool) -> dict[str, str]:
    """Where each value comes from."""
    found = "found in the files" if paths else "no files were named"
    if has_archive:
        found = "job.json or the files in the archive decide"
    detected = ("entrypoint", "interpreter")
    return {
        name: "manifest" if name in given.given else found if name in detected else "default"
        for name in (*detected, "environment", "outputs", "timeout", "cpu_seconds", "memory_mb",
                     "storage_mb", "processes", "open_files")
    }  # fmt: skip


async def _match(spec: JobSpec, paths: list[str], most: int) -> tuple[list[api.PatternMatch], int]:
    """Which of the uploaded files each pattern fits (unchanged inputs are no outputs), and
    the steps that it took: ``most`` or a little more.
    """
    found = []
    steps = turn = 0
    for pattern in spec.outputs:
        matcher = globs.compile((pattern.removeprefix("!"),))
        files: list[str] = []
        complete = True
        for path in paths:
            steps += len(path)
            turn += len(path)
            if steps > most:
                complete = False
                break
            if turn > STEPS_PER_TURN:
                turn = 0
                await asyncio.sleep(0)
            if matcher.match(path):
                files.append(path)
        found.append(api.PatternMatch(pattern=pattern, files=files, complete=complete))
    return found, min(steps, most)
