"""Nothing falls through to another route."""

from __future__ import annotations

import pytest

from sandrun.errors import RequestError
from sandrun.http.router import ROUTES, Router

public = Router(assets=("/app/main.js",), admin=False)
admin = Router(admin=True)


@pytest.mark.parametrize(
    ("method", "path", "name", "job_id", "rest"),
    [
        ("GET", "/", "index", "", ""),
        ("HEAD", "/", "index", "", ""),
        ("POST", "/run", "run", "", ""),
        ("GET", "/status/job_x", "status", "job_x", ""),
        ("GET", "/logs/job_x/stream", "stream", "job_x", ""),
        ("GET", "/ws/job_x", "stream", "job_x", ""),
        ("GET", "/stream/job_x", "stream", "job_x", ""),
        ("GET", "/outputs/job_x", "outputs", "job_x", ""),
        ("GET", "/outputs/job_x/a/b.txt", "download_file", "job_x", "a/b.txt"),
        ("GET", "/download/job_x/a b/\udcff", "download_file", "job_x", "a b/\udcff"),
        ("OPTIONS", "*", "options", "", ""),
        ("DELETE", "/jobs/job_x", "delete", "job_x", ""),
        ("POST", "/jobs/job_x/cancel", "cancel", "job_x", ""),
        ("GET", "/app/main.js", "asset", "", ""),
        ("OPTIONS", "/submit", "options", "", ""),
    ],
)
def test_routes(method: str, path: str, name: str, job_id: str, rest: str) -> None:
    match = public.match(method, path)
    assert (match.name, match.id) == (name, job_id)
    if name == "download_file":
        assert match.path == rest


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/status", "/status/", "/status/x/y", "/run/", "//", "/jobs/x/", "/logs/x/other",
     "/download/x/", "", "status/x", "/metrics", "/jobs/x/cancel/y", "/STATUS/x", "*"],
)  # fmt: skip
def test_unknown_paths_are_404(path: str) -> None:
    with pytest.raises(RequestError) as caught:
        public.match("GET", path)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/submit", "POST, OPTIONS"),
        ("POST", "/status/x", "GET, HEAD, OPTIONS"),
        ("GET", "/jobs/x", "DELETE, OPTIONS"),
        ("DELETE", "/", "GET, HEAD, OPTIONS"),
        ("HEAD", "/run", "POST, OPTIONS"),
        ("TRACE", "/run", "POST, OPTIONS"),
    ],
)
def test_a_wrong_method_is_405_and_says_what_is_allowed(method: str, path: str, allow: str) -> None:
    with pytest.raises(RequestError) as caught:
        public.match(method, path)
    assert caught.value.status == 405
    assert caught.value.headers == (("Allow", allow),)


def test_metrics_are_on_the_admin_listener_only() -> None:
    assert admin.match("GET", "/metrics").name == "metrics"
    with pytest.raises(RequestError):
        admin.match("POST", "/run")


def test_every_route_has_a_summary() -> None:
    assert all(route.summary for route in ROUTES)
