"""The page, the node and this interface: what is asked without a job. Runs as nobody.

I/O: the exchange only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandrun import __version__
from sandrun.http import api, openapi, views
from sandrun.http.answer import accepts_gzip
from sandrun.http.exchange import Exchange, Response
from sandrun.http.handlers.parameters import prefers
from sandrun.http.handlers.replies import respond_json
from sandrun.http.origins import CORS, PREFLIGHT
from sandrun.http.ranges import none_match
from sandrun.http.router import Match

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.origins import Origins
    from sandrun.http.static import Static


class Node:
    """Routes about the node."""

    def __init__(self, app: App, static: Static, origins: Origins) -> None:
        self.app = app
        self.static = static
        self.origins = origins
        self._openapi = api.encode(openapi.document())

    async def index(self, exchange: Exchange, _: Match) -> None:
        """The page for a browser, JSON for everybody else."""
        info = views.service_info(self.app, __version__)
        page = self.static.page
        if page is not None and prefers(exchange.request, "text/html", "application/json"):
            client = self.app.quota.client(exchange.request.client, self.app.clock())
            answers = {
                "info": info,
                "environments": views.environments(self.app),
                "stats": views.stats(self.app, client),
            }
            headers = (
                ("Cache-Control", "no-store"),
                ("Content-Security-Policy", page.policy),
                ("Vary", "Accept, Accept-Encoding"),
            )
            body = self.static.page_with(api.encode(answers))
            await exchange.respond(Response(200, body, page.type, headers))
            return
        await exchange.respond(Response(200, api.encode(info), headers=(("Vary", "Accept"), *CORS)))

    async def asset(self, exchange: Exchange, match: Match) -> None:
        """A part of the page."""
        asset = self.static.assets[match.path]
        request = exchange.request
        # Another content would have another address: nobody need ask for this one again.
        lasting = request.query.get("v") == asset.version
        headers: tuple[tuple[str, str], ...] = (
            ("ETag", asset.etag),
            ("Cache-Control", "max-age=31536000, immutable" if lasting else "no-cache"),
            ("Content-Security-Policy", asset.policy),
            ("Vary", "Accept-Encoding"),
        )
        if none_match(request.headers.get("if-none-match"), asset.etag):
            await exchange.respond(Response(304, content_type="", headers=headers))
        elif asset.packed and accepts_gzip(request.headers.get("accept-encoding")):
            headers = (*headers, ("Content-Encoding", "gzip"))
            await exchange.respond(Response(200, asset.packed, asset.type, headers))
        else:
            await exchange.respond(Response(200, asset.body, asset.type, headers))

    async def options(self, exchange: Exchange, match: Match) -> None:
        """Also CORS preflights: a foreign page learns here already that it may not submit."""
        allow = ", ".join(match.allow)
        headers: tuple[tuple[str, str], ...] = (("Allow", allow),)
        asked = exchange.request.headers.get("access-control-request-method")
        if asked in {None, "GET", "HEAD"} or self.origins.may_submit(exchange.request):
            headers = (*headers, *CORS, ("Access-Control-Allow-Methods", allow), *PREFLIGHT)
        await exchange.respond(Response(204, content_type="", headers=headers))

    async def stats(self, exchange: Exchange, _: Match) -> None:
        """Your quota and the node."""
        client = self.app.quota.client(exchange.request.client, self.app.clock())
        await respond_json(exchange, views.stats(self.app, client))

    async def environments(self, exchange: Exchange, _: Match) -> None:
        """What a job can have."""
        await respond_json(exchange, views.environments(self.app))

    async def health(self, exchange: Exchange, _: Match) -> None:
        """200 while jobs can run, else 503."""
        health = views.health(self.app)
        await respond_json(exchange, health, 200 if health.status == "ready" else 503)

    async def privacy(self, exchange: Exchange, _: Match) -> None:
        """Measured facts."""
        await respond_json(exchange, views.privacy(self.app))

    async def openapi(self, exchange: Exchange, _: Match) -> None:
        """This interface."""
        await exchange.respond(Response(200, self._openapi, headers=CORS))

    async def metrics(self, exchange: Exchange, _: Match) -> None:
        """For Prometheus; on the admin listener only."""
        text = self.app.metrics.render(self.app.gauges(), self.app.totals())
        await exchange.respond(Response(200, text.encode(), "text/plain; version=0.0.4"))
