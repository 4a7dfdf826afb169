"""One job, for whoever has an id of it: its state, its end. Runs as nobody.

I/O: the exchange only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandrun.errors import RequestError
from sandrun.http import follow, views
from sandrun.http.exchange import Exchange, Response
from sandrun.http.handlers.replies import NO_STORE, find, respond_json
from sandrun.http.router import Match

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.jobs import Job
    from sandrun.http.origins import Origins

CANCEL_WAIT_S: Final = 3.0  # the answer to a cancel shows the end, if it comes soon


class OneJob:
    """Routes that tell of a job, stop it and wipe it."""

    def __init__(self, app: App, origins: Origins) -> None:
        self.app = app
        self.origins = origins

    async def status(self, exchange: Exchange, match: Match) -> None:
        """Where it is, what it used, how it ended."""
        job, _ = find(self.app, match.id)
        await respond_json(exchange, views.status(self.app, job, match.id))

    async def cancel(self, exchange: Exchange, match: Match) -> None:
        """Stop it and keep the logs."""
        self.origins.check(exchange.request)
        job = _owned(self.app, match.id)
        self.app.cancel(job)
        await follow.wait_ended(job, CANCEL_WAIT_S)
        await respond_json(exchange, views.status(self.app, job, match.id))

    async def delete(self, exchange: Exchange, match: Match) -> None:
        """Wipe it."""
        self.origins.check(exchange.request)
        self.app.delete(_owned(self.app, match.id))
        await exchange.respond(Response(204, content_type="", headers=NO_STORE))


def _owned(app: App, secret: str) -> Job:
    job, owner = find(app, secret)
    if not owner:
        raise RequestError(403, "view_only", "a view id reads; it can neither cancel nor delete")
    return job
