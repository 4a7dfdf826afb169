"""One coroutine per route: from an :class:`Exchange` to an answer. Runs as nobody.

I/O only through the exchange and the job's own descriptors. A handler decides what
a client may know and do (owner or viewer), nothing else: jobs live in ``app.py``.

==================  ==========================================================
``node.py``         the page, the node, this interface
``intake.py``       submit, validate, how far an upload has come
``run.py``          upload, wait, everything in one answer
``job.py``          status, cancel, delete
``logs.py``         the log: what there is, and as it grows
``outputs.py``      list, files, ranges, archives
==================  ==========================================================

``parameters.py`` reads what a request says; ``replies.py`` and ``log_replies.py``
write what several of them answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandrun.errors import RequestError
from sandrun.http.exchange import Exchange
from sandrun.http.handlers.intake import Intake
from sandrun.http.handlers.job import OneJob
from sandrun.http.handlers.logs import Logs
from sandrun.http.handlers.node import Node
from sandrun.http.handlers.outputs import Outputs
from sandrun.http.handlers.run import Run
from sandrun.http.origins import CORS, Origins
from sandrun.http.router import Match, Router

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandrun.http.app import App
    from sandrun.http.static import Static


class Handlers:
    """The public listener's handler. Callable as ``exchange.Handler``."""

    def __init__(self, app: App, static: Static, *, admin: bool = False) -> None:
        self.app = app
        self.router = Router(assets=tuple(static.assets), admin=admin)
        origins = Origins(app.config.http)
        node = Node(app, static, origins)
        intake = Intake(app, origins)
        job = OneJob(app, origins)
        logs = Logs(app, origins)
        outputs = Outputs(app)
        self._table: dict[str, Callable[[Exchange, Match], Awaitable[None]]] = {
            "index": node.index,
            "asset": node.asset,
            "options": node.options,
            "submit": intake.submit,
            "run": Run(app, intake).run,
            "upload": intake.upload,
            "validate": intake.validate,
            "status": job.status,
            "logs": logs.logs,
            "stream": logs.stream,
            "outputs": outputs.outputs,
            "download": outputs.download,
            "download_file": outputs.download_file,
            "delete": job.delete,
            "cancel": job.cancel,
            "stats": node.stats,
            "environments": node.environments,
            "health": node.health,
            "privacy": node.privacy,
            "openapi": node.openapi,
            "metrics": node.metrics,
        }

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        try:
            match = self.router.match(request.method, request.path)
            self.app.metrics.requests[match.name] += 1
            await self._table[match.name](exchange, match)
        except RequestError as error:
            self.app.metrics.refused(error.code)
            error.headers = (*error.headers, *CORS)
            raise
