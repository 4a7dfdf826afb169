"""What the answers of several routes have in common. Runs as nobody. I/O: the exchange only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandrun.http import api
from sandrun.http.exchange import Exchange, Response
from sandrun.http.origins import CORS
from sandrun.http.router import not_found

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.jobs import Job

NO_STORE: Final = (("Cache-Control", "no-store"), *CORS)


async def respond_json(exchange: Exchange, reply: object, status: int = 200) -> None:
    """One struct of ``api.py``, whole."""
    await exchange.respond(Response(status, api.encode(reply), headers=NO_STORE))


def find(app: App, secret: str) -> tuple[Job, bool]:
    """The job of this id, and whether the id is its owner's. Raises :class:`RequestError` 404."""
    found = app.registry.find(secret)
    if found is None:
        raise not_found()
    app.registry.on_read(found[0], app.clock())
    return found
