"""Logs, downloads, refusals and descriptions, as api.md has them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
import websockets
from fakes import FakeZygote
from websockets.asyncio.client import connect

from sandrun.config import Config, Http, RateLimit
from sandrun.http import metrics
from sandrun.http.router import ROUTES
from sandrun.job import SkippedOutput
from sandrun.logs import STDERR, STDOUT


def chatty(zygote: FakeZygote) -> None:
    """Both streams, a character split between two records, and a byte that is no UTF-8."""
    zygote.start()
    zygote.write("grü".encode()[:-1])
    zygote.write("grü".encode()[-1:] + b"n\n")
    zygote.write(b"bad \xff\n", STDERR)
    zygote.write(b"last\n")
    zygote.end()


@pytest.fixture(name="talk")
def make_talk(start: Callable[..., Any]) -> tuple[Any, str]:
    node = start(script=chatty)
    return node, node.run().json()["job_id"]


# ── logs ────────────────────────────────────────────────────────────────────


def test_logs_as_json_and_as_exact_text(talk: tuple[Any, str]) -> None:
    node, job = talk
    body = node.client.get(f"/logs/{job}").json()
    assert body["stdout"] == "grün\nlast\n"
    assert body["stderr"] == "bad \ufffd\n"
    text = node.client.get(f"/logs/{job}", headers={"Accept": "text/plain"})
    assert text.content == "grün\n".encode() + b"bad \xff\nlast\n"
    assert text.headers["log-cursor"] == str(body["cursor"])
    only = node.client.get(f"/logs/{job}?stream=stderr", headers={"Accept": "text/plain"})
    assert only.content == b"bad \xff\n"


def test_every_cursor_resumes_without_loss(talk: tuple[Any, str]) -> None:
    node, job = talk
    records = node.client.get(f"/logs/{job}?records=1").json()["records"]
    assert [record["stream"] for record in records] == ["stdout", "stdout", "stderr", "stdout"]
    assert "".join(r["data"] for r in records if r["stream"] == "stdout") == "grün\nlast\n"
    whole = node.client.get(f"/logs/{job}", headers={"Accept": "text/plain"}).content
    seen = 0
    for record in records:
        rest = node.client.get(
            f"/logs/{job}?since={record['seq']}", headers={"Accept": "text/plain"}
        ).content
        assert whole.endswith(rest)
        assert len(rest) < len(whole) - seen
        seen = len(whole) - len(rest)
    assert rest == b""


@pytest.mark.parametrize("since", ["7", "-1", "x", "99999999", "1e3", "٣"])
def test_a_cursor_we_never_gave_is_400(talk: tuple[Any, str], since: str) -> None:
    node, job = talk
    for path in ("", "/stream"):
        reply = node.client.get(f"/logs/{job}{path}", params={"since": since})
        assert reply.status_code == 400
        assert reply.json()["code"] == "bad_cursor"


def test_an_event_stream_resumes_from_last_event_id(talk: tuple[Any, str]) -> None:
    node, job = talk
    accept = {"Accept": "text/event-stream"}
    reply = node.client.get(f"/logs/{job}/stream", headers=accept)
    assert reply.headers["content-type"].startswith("text/event-stream")
    ids = re.findall(r"^id: (\d+)$", reply.text, re.M)
    assert len(ids) == 4
    end = json.loads(reply.text.rsplit("data: ", 1)[1])
    assert end == {"event": "end", "status": "completed", "exit_reason": "exited"}
    again = node.client.get(f"/stream/{job}", headers={**accept, "Last-Event-ID": ids[2]})
    assert re.findall(r"^id: (\d+)$", again.text, re.M) == ids[3:]


def test_a_websocket_gives_records_and_the_end(talk: tuple[Any, str]) -> None:
    node, job = talk

    async def go() -> list[dict[str, Any]]:
        url = node.url.replace("http", "ws")
        async with connect(f"{url}/ws/{job}") as socket:
            return [json.loads(message) async for message in socket]

    messages = asyncio.run(go())
    assert [m.get("data") for m in messages] == ["gr", "ün\n", "bad \ufffd\n", "last\n", None]
    assert messages[-1]["event"] == "end"
    assert messages[0]["seq"] > 0


def test_all_three_follow_a_running_job_live(start: Callable[..., Any]) -> None:
    steps: list[FakeZygote] = []

    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.write(b"one\n")
        steps.append(zygote)

    node = start(script=script)
    job = node.submit()["job_id"]

    async def go() -> tuple[list[str], list[str], list[str]]:
        url = node.url.replace("http", "ws")
        heard = asyncio.Event()

        async def by_socket() -> list[str]:
            found = []
            async with connect(f"{url}/logs/{job}/stream") as stream:
                async for message in stream:
                    found.append(json.loads(message).get("data"))
                    heard.set()
            return found

        async def by(accept: str) -> list[str]:
            async with (
                httpx.AsyncClient(base_url=node.url, timeout=20) as client,
                client.stream("GET", f"/logs/{job}/stream", headers={"Accept": accept}) as reply,
            ):
                return [line async for line in reply.aiter_lines()]

        followers = [
            asyncio.create_task(by_socket()),
            asyncio.create_task(by("text/event-stream")),
            asyncio.create_task(by("*/*")),
        ]
        await heard.wait()
        node.pool.call(lambda: steps[0].write(b"two\n"))
        node.pool.call(lambda: steps[0].end())
        return tuple(await asyncio.gather(*followers))  # type: ignore[return-value]

    ws, sse, text = asyncio.run(go())
    assert ws == ["one\n", "two\n", None]
    assert [json.loads(line[6:]).get("data") for line in sse if line.startswith("data")] == ws
    assert text == ["one", "two"]


def test_a_follower_that_leaves_is_forgotten(start: Callable[..., Any]) -> None:
    node = start(script=lambda zygote: (zygote.start(), zygote.write(b"x\n")))
    job = node.submit()["job_id"]
    for _ in range(3):
        with httpx.stream("GET", f"{node.url}/logs/{job}/stream", timeout=20) as reply:
            assert next(reply.iter_lines()) == "x"
    assert node.client.delete(f"/jobs/{job}").status_code == 204


def test_a_wiped_job_ends_its_followers(start: Callable[..., Any]) -> None:
    node = start(script=lambda zygote: (zygote.start(), zygote.write(b"x\n")))
    job = node.submit()["job_id"]
    with httpx.stream("GET", f"{node.url}/logs/{job}/stream", timeout=20) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "x"
        node.client.delete(f"/jobs/{job}")
        assert list(lines) == []


def test_a_log_over_its_cap_tells_the_gap(start: Callable[..., Any]) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.start()
        for number in range(60):
            zygote.write(b"%05d " % number * 10_000)
        zygote.end()

    node = start(script=script)
    body = node.run().json()
    assert body["dropped_bytes"] > 0
    job = body["job_id"]
    records = node.client.get(f"/logs/{job}?records=1").json()["records"]
    (gap,) = [record for record in records if record["stream"] == "gap"]
    assert gap["dropped_bytes"] == body["dropped_bytes"]
    assert "output dropped" in node.client.get(f"/logs/{job}/stream").text


# ── downloads ───────────────────────────────────────────────────────────────

DATA = bytes(range(256)) * 1000


def leave_files(zygote: FakeZygote) -> None:
    zygote.start()
    zygote.end(
        outputs={
            "data.bin": DATA,
            "page.html": b"<script>",
            "dir/bad\udcff\n.txt": b"odd",
            "e": b"",
        },
        skipped=(SkippedOutput(path="link", reason="symlink"),),
    )


@pytest.fixture(name="files")
def make_files(start: Callable[..., Any]) -> tuple[Any, str]:
    node = start(script=leave_files)
    return node, node.run().json()["job_id"]


def test_ranges(files: tuple[Any, str]) -> None:
    node, job = files
    url = f"/download/{job}/data.bin"
    whole = node.client.get(url)
    assert whole.content == DATA
    etag = whole.headers["etag"]
    assert etag == f'"{hashlib.sha256(DATA).hexdigest()}"'
    part = node.client.get(url, headers={"Range": "bytes=1000-1999"})
    assert part.status_code == 206
    assert part.content == DATA[1000:2000]
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(DATA)}"
    assert node.client.get(url, headers={"Range": "bytes=-10"}).content == DATA[-10:]
    old = node.client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"old"'})
    assert (old.status_code, len(old.content)) == (200, len(DATA))
    assert node.client.get(url, headers={"If-None-Match": etag}).status_code == 304
    none = node.client.get(url, headers={"Range": f"bytes={len(DATA)}-"})
    assert none.status_code == 416
    assert none.headers["content-range"] == f"bytes */{len(DATA)}"
    head = node.client.head(url)
    assert (head.headers["content-length"], head.content) == (str(len(DATA)), b"")


def test_several_ranges(files: tuple[Any, str]) -> None:
    node, job = files
    reply = node.client.get(f"/download/{job}/data.bin", headers={"Range": "bytes=0-4,1000-1004"})
    assert reply.status_code == 206
    boundary = reply.headers["content-type"].partition("boundary=")[2].encode()
    parts = reply.content.split(b"--" + boundary)
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    assert parts[1].partition(b"\r\n\r\n")[2] == DATA[0:5] + b"\r\n"
    assert parts[2].partition(b"\r\n\r\n")[2] == DATA[1000:1005] + b"\r\n"


def test_downloads_cannot_become_pages(files: tuple[Any, str]) -> None:
    node, job = files
    reply = node.client.get(f"/download/{job}/page.html")
    assert reply.headers["content-disposition"].startswith("attachment")
    assert reply.headers["content-security-policy"].startswith("sandbox")
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_odd_names_are_reachable_and_harmless(files: tuple[Any, str]) -> None:
    node, job = files
    listing = node.client.get(f"/outputs/{job}").json()["files"]
    (odd,) = [entry for entry in listing if entry["path"].startswith("dir/")]
    assert odd["download_url"].endswith("/dir/bad%FF%0A.txt")
    reply = node.client.get(odd["download_url"])
    assert reply.content == b"odd"
    assert "\n" not in reply.headers["content-disposition"]
    assert node.client.get(f"/download/{job}/e").content == b""
    assert node.client.get(f"/status/{job}").json()["skipped_outputs"] == {"link": "symlink"}


@pytest.mark.parametrize("path", ["nothing", "..%2f..%2fetc/passwd", "%2e%2e/x", "dir", "dir/"])
def test_nothing_else_is_served(files: tuple[Any, str], path: str) -> None:
    node, job = files
    raw = socket.create_connection(node.url.removeprefix("http://").split(":"))
    raw.sendall(f"GET /download/{job}/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert raw.recv(65536).split()[1] in {b"404", b"400"}
    raw.close()


def test_a_download_that_breaks_deletes_nothing(start: Callable[..., Any]) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.end(outputs={"big": bytes(20_000_000)})

    node = start(script=script)
    job = node.run().json()["job_id"]
    with httpx.stream("GET", f"{node.url}/download/{job}?format=tar", timeout=20) as reply:
        next(reply.iter_raw())
    assert node.client.get(f"/status/{job}").status_code == 200


def test_outputs_of_a_job_that_runs_are_409(start: Callable[..., Any]) -> None:
    node = start(script=FakeZygote.start)
    job = node.submit()["job_id"]
    assert node.client.get(f"/download/{job}").json()["code"] == "not_finished"
    assert node.client.get(f"/outputs/{job}").json()["total_files"] == 0
    assert node.client.get("/download/x?format=rar").status_code == 404
    assert node.client.get(f"/download/{job}?format=rar").json()["code"] == "bad_format"


# ── refusals ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"[]", "bad_request"),
        (b'{"code": 1}', "bad_request"),
        (b'{"kode": "x"}', "bad_request"),
        (b"{}", "no_files"),
        (b'{"code": "x", "files": {"a": "b"}}', "bad_request"),
        (b'{"code": "x", "interpreter": "cobol"}', "invalid_field"),
        (b'{"files": {"../x": "y"}}', "bad_path"),
        (b'{"files": {"/x": "y"}}', "bad_path"),
        (b'{"files": {"a": "x", "a/b": "y"}, "manifest": {"entrypoint": "a"}}', "path_conflict"),
        (b'{"files": {"x.unknown": "y"}}', "no_interpreter"),
        (b'{"files": {"a.py": "1", "b.py": "2"}}', "no_entrypoint"),
        (b'{"code": "x", "manifest": {"timeout": 99999}}', "over_maximum"),
        (b'{"code": "x", "manifest": {"gpu": true}}', "no_gpu"),
        (b'{"code": "x", "manifest": {"a": 1}}', "unknown_field"),
        (b'{"code": "x", "manifest": {"timeout": 1, "timeout": 2}}', "invalid_manifest"),
        (b'{"code": "x", "manifest": {"env": {"LD_PRELOAD": "x"}}}', "forbidden_variable"),
        (b'{"code": "x", "stdin": "' + b"y" * 100_000 + b'"}', "manifest_too_large"),
        (b'{"code": "\\ud800"}', "bad_json"),
        (b'{"manifest": ' + b'{"a":' * 30_000, "bad_json"),
    ],
)
def test_bad_json_bodies(node: Any, body: bytes, code: str) -> None:
    reply = node.client.post("/submit", content=body, headers={"Content-Type": "application/json"})
    assert (reply.json()["code"], reply.status_code // 100) == (code, 4), reply.text
    assert reply.json()["error"]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([("manifest", (None, b"{}"))], "no_files"),
        ([("files", (None, b"x"))], "no_file_name"),
        ([("file", ("a.py", b"x"))], "unknown_part"),
        ([("files", ("a.py", b"x")), ("files", ("a.py", b"x"))], "duplicate_file"),
        ([("files", ("a.tar.zst", b"x"))], "unsupported_archive"),
        ([("files", ("a.py", b"x")), ("manifest", (None, b"{"))], "invalid_manifest"),
        ([("files", ("a.py", b"x")), ("manifest", (None, b"x" * 70_000))], "manifest_too_large"),
        ([("files", ("a.py", b"x")), ("files", ("job.json", b"[1]"))], "invalid_manifest"),
    ],
)
def test_bad_forms(node: Any, parts: list[Any], code: str) -> None:
    reply = node.client.post("/submit", files=parts)
    assert reply.json()["code"] == code, reply.text
    assert node.client.get("/stats").json()["your_quota"]["active_jobs"] == 0


def test_media_types_methods_and_paths(node: Any) -> None:
    assert node.client.post("/submit", content=b"x").status_code == 415
    text = node.client.post("/run", content=b"x", headers={"Content-Type": "text/plain"})
    assert text.json()["code"] == "unsupported_media_type"
    wrong = node.client.get("/submit")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    assert node.client.get("/nothing").json()["code"] == "not_found"
    assert node.client.get("/metrics").status_code == 404
    assert node.client.options("/status/x").headers["allow"] == "GET, HEAD, OPTIONS"
    assert node.client.request("OPTIONS", "/run").status_code == 204


def test_too_large_is_refused_before_it_is_sent(start: Callable[..., Any]) -> None:
    node = start(msgspec.structs.replace(
        Config(), http=Http(max_upload_mb=1), rate_limit=RateLimit(enabled=False)))  # fmt: skip
    reply = node.client.post("/submit", files={"files": ("a.tar", bytes(3_000_000))})
    assert reply.status_code == 413


def test_past_the_bound_of_all_uploads_new_ones_wait(start: Callable[..., Any]) -> None:
    node = start(
        msgspec.structs.replace(
            Config(), http=Http(max_uploads_total_mb=1), rate_limit=RateLimit(enabled=False)
        ),
        ready=0,
    )
    half = {"files": ("a.tar", bytes(700_000))}
    assert node.client.post("/submit", files=half).status_code == 200
    reply = node.client.post("/submit", files=half)
    assert reply.status_code == 503
    assert reply.json()["code"] == "uploads_full"
    assert reply.headers["retry-after"]


@pytest.mark.parametrize("path", ["/submit", "/validate"])
def test_json_counts_as_upload_while_it_comes(start: Callable[..., Any], path: str) -> None:
    """Slow JSON bodies, of 8 MiB each, were bounded by the number of clients alone."""
    node = start(
        msgspec.structs.replace(
            Config(), http=Http(max_uploads_total_mb=1), rate_limit=RateLimit(enabled=False)
        )
    )
    part = b'{"code": "' + b"x" * 600_000
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        "Content-Length: 700000\r\n\r\n"
    ).encode()
    port = httpx.URL(node.url).port
    with socket.create_connection(("127.0.0.1", port), 20) as first:
        first.sendall(head + part)

        def held() -> int:
            text = httpx.get(f"{node.admin_url}/metrics").text
            return int(text.partition("\nsandrun_upload_bytes ")[2].split()[0])

        while held() != len(part):
            pass
        with socket.create_connection(("127.0.0.1", port), 20) as second:
            second.sendall(head + part)
            assert second.recv(12) == b"HTTP/1.1 503"
        assert held() == len(part)
    while held():
        pass
    assert node.run().status_code == 200


def test_json_of_nothing_but_tiny_files_is_refused_before_it_is_decoded(node: Any) -> None:
    names = (f'"{number:x}":""' for number in range(600_000))
    body = ('{"files":{' + ",".join(names) + "}}").encode()
    reply = node.client.post("/submit", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["code"]) == (413, "too_many_files")


def test_json_may_hold_any_number_of_quotes_and_all_the_files_there_may_be(node: Any) -> None:
    quotes = {"main.py": '"' * 200_000, "b": "\\" * 100_001}
    assert node.client.post("/run", json={"files": quotes}).status_code == 200
    files = {f"d/{number}": "" for number in range(9_999)} | {"main.py": '"'}
    assert node.client.post("/run", json={"files": files}).status_code == 200


def test_a_dry_run_is_paid_for_by_who_asks(start: Callable[..., Any]) -> None:
    """18 KB of patterns and paths cost half a second of http, as often as anybody liked."""
    node = start(Config())
    body = {
        "manifest": {"outputs": [f"*{number}*x" for number in range(60)]},
        "files": ["main.py", *(f"{number}{'a' * 40}" for number in range(1000))],
    }
    for _ in range(60):
        reply = node.client.post("/validate", json=body)
        assert reply.status_code == 200
        if not any(match["complete"] for match in reply.json()["outputs"]):
            break
    else:
        pytest.fail("it never ends")
    assert reply.json()["quota"]["reason"] == "cpu_seconds"
    assert node.client.post("/run", json={"code": "x"}).status_code == 429


# ── origins ─────────────────────────────────────────────────────────────────


def test_a_foreign_page_reads_but_starts_nothing(node: Any) -> None:
    evil = {"Origin": "https://evil.example"}
    job = node.run().json()["job_id"]
    assert node.client.get(f"/status/{job}", headers=evil).headers[
        "access-control-allow-origin"
    ] == "*"  # fmt: skip
    for method, path in (
        ("POST", "/run"),
        ("POST", f"/jobs/{job}/cancel"),
        ("DELETE", f"/jobs/{job}"),
    ):
        reply = node.client.request(method, path, json={"code": "x"}, headers=evil)
        assert reply.json()["code"] == "foreign_origin", path
    preflight = node.client.options(
        "/run", headers={**evil, "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in preflight.headers
    own = {"Origin": node.url}
    assert node.client.post("/run", json={"code": "x"}, headers=own).status_code == 200


def test_dns_rebinding_does_not_make_a_page_ours(node: Any) -> None:
    headers = {"Origin": "http://evil.example:80", "Host": "evil.example:80"}
    assert node.client.post("/run", json={"code": "x"}, headers=headers).status_code == 403


def test_a_foreign_websocket_is_refused(talk: tuple[Any, str]) -> None:
    node, job = talk

    async def go() -> None:
        url = node.url.replace("http", "ws")
        async with connect(f"{url}/ws/{job}", origin="https://evil.example"):  # type: ignore[arg-type]
            pass

    with pytest.raises(websockets.InvalidStatus) as caught:
        asyncio.run(go())
    assert caught.value.response.status_code == 403


def test_a_configured_origin_may_submit(start: Callable[..., Any]) -> None:
    http = Http(allowed_origins=("https://ide.example",))
    node = start(msgspec.structs.replace(Config(), http=http, rate_limit=RateLimit(enabled=False)))
    headers = {"Origin": "https://ide.example"}
    assert node.client.post("/run", json={"code": "x"}, headers=headers).status_code == 200
    preflight = node.client.options(
        "/run", headers={**headers, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.headers["access-control-allow-methods"] == "POST, OPTIONS"


# ── about the node ──────────────────────────────────────────────────────────


def test_service_info_and_its_neighbours(node: Any) -> None:
    info = node.client.get("/", headers={"Accept": "application/json"}).json()
    for key in ("service", "version", "status", "description", "privacy", "limits"):
        assert key in info
    assert node.client.get("/health").json()["status"] == "ready"
    environments = node.client.get("/environments").json()
    assert environments["environments"][0]["packages"] == {"numpy": "2.0"}
    assert environments["templates"] == ["default"]
    assert node.client.get("/privacy").json()["isolation"]["seccomp"] == "on"
    assert node.client.get("/stats").json()["system"]["capacity"] == 64


def test_metrics_on_the_admin_listener_name_nobody(node: Any) -> None:
    job = node.run().json()["job_id"]
    node.client.get("/nothing")
    text = httpx.get(f"{node.admin_url}/metrics").text
    assert 'sandrun_jobs_total{exit_reason="exited"} 1' in text
    assert 'sandrun_refusals_total{code="not_found"} 1' in text
    assert 'sandrun_job_phase_seconds_count{phase="total"} 1' in text
    assert 'sandrun_job_phase_seconds_count{phase="upload"} 1' in text
    assert "\nsandrun_connections 1\n" in text
    assert "\nsandrun_jobs_accepted_total 1\n" in text
    assert "\nsandrun_job_cpu_seconds_total 0.010000\n" in text
    assert float(text.partition("\nsandrun_http_resident_bytes ")[2].split()[0]) > 1e6
    assert job not in text
    assert "127.0.0.1" not in text
    assert httpx.post(f"{node.admin_url}/run", json={}).status_code == 404


def test_metrics_count_what_no_handler_saw(node: Any) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(node.url).port)) as sock:
        sock.sendall(b"GET /stats HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 400"
    text = httpx.get(f"{node.admin_url}/metrics").text
    assert 'sandrun_refusals_total{code="bad_framing"} 1' in text


def test_metrics_are_well_formed_and_whole(node: Any) -> None:
    """Each sample under its HELP and TYPE; each gauge and counter of the table is there."""
    text = httpx.get(f"{node.admin_url}/metrics").text
    typed: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            _, kind, name, rest = line.split(" ", 3)
            if kind == "TYPE":
                assert name not in typed
                typed[name] = rest
            continue
        found = re.fullmatch(r'([a-z_]+)(\{[a-z_]+="[^"]+"(,le="[^"]+")?\})? (\S+)', line)
        assert found, line
        assert re.sub("_(bucket|sum|count)$", "", found[1]) in typed
        assert float(found[4]) >= 0
    assert {f"sandrun_{name}" for name in metrics.GAUGES} <= typed.keys()
    assert {f"sandrun_{name}_total" for name in metrics.TOTALS} <= typed.keys()


def thirds(zygote: FakeZygote) -> None:
    """One character in three records."""
    zygote.start()
    for piece in (b"a\xe2", b"\x82", b"\xac\n"):
        zygote.write(piece)
    zygote.end()


def test_who_comes_back_in_the_middle_of_a_character_sees_it_once(start: Callable[..., Any]) -> None:
    """By an event stream, a WebSocket or a question: its rest came as U+FFFD."""
    node = start(script=thirds)
    job = node.run().json()["job_id"]

    def events(since: str) -> list[tuple[str, str]]:
        reply = node.client.get(
            f"/stream/{job}", headers={"Accept": "text/event-stream", "Last-Event-ID": since}
        )
        found = re.findall(r"^id: (\d+)\ndata: (.*)$", reply.text, re.M)
        return [(seq, json.loads(text)["data"]) for seq, text in found]

    async def by_websocket(since: str) -> str:
        url = node.url.replace("http", "ws")
        async with connect(f"{url}/ws/{job}?since={since}") as ws:
            return "".join([json.loads(text).get("data", "") async for text in ws])

    whole = events("0")
    assert [text for _, text in whole] == ["a", "", "\u20ac\n"]
    for seq, _ in whole[:2]:
        assert "".join(text for _, text in events(seq)) == "\u20ac\n"
        assert asyncio.run(by_websocket(seq)) == "\u20ac\n"
        logs = node.client.get(f"/logs/{job}?since={seq}&records=1").json()
        assert logs["stdout"] == "".join(one["data"] for one in logs["records"]) == "\u20ac\n"


def flood(zygote: FakeZygote) -> None:
    """0.9 MiB of log: a character split between all records, NULs, both streams."""
    zygote.start()
    for number in range(28):
        zygote.write(b"\xbc" * bool(number) + b"\0" * 16_000 + b"\xc3")
        zygote.write(b"e" * 16_000, STDERR)
    zygote.end()


def test_a_large_log_is_given_whole_and_in_pieces(start: Callable[..., Any]) -> None:
    """Any number of clients could have 49 MB of JSON made for them and not read it."""
    node = start(script=flood)
    ran = node.run().json()
    job = ran["job_id"]
    out = ("\xfc" + "\0" * 16_000) * 28
    out = out[1:] + "\ufffd"
    logs = node.client.get(f"/logs/{job}")
    assert logs.headers["transfer-encoding"] == "chunked"
    assert (logs.json()["stdout"], logs.json()["stderr"]) == (out, "e" * 16_000 * 28)
    assert (ran["stdout"], ran["stderr"], ran["cursor"]) == (
        out,
        "e" * 16_000 * 28,
        logs.json()["cursor"],
    )
    text = node.client.get(f"/logs/{job}?stream=stdout", headers={"Accept": "text/plain"})
    assert text.content.decode("utf-8", "replace") == out
    assert text.headers["log-cursor"] == str(logs.json()["cursor"])
    records = node.client.get(f"/logs/{job}?records=1").json()["records"]
    assert "".join(one["data"] for one in records if one["stream"] == "stdout") == out[:-1]
    assert records[-1]["seq"] == logs.json()["cursor"]
    assert node.client.get(f"/logs/{job}?since={logs.json()['cursor']}").json()["stdout"] == ""


def test_clients_that_do_not_read_a_large_log_cost_little(start: Callable[..., Any]) -> None:
    node = start(script=flood)
    job = node.run().json()["job_id"]

    def resident() -> int:
        text = httpx.get(f"{node.admin_url}/metrics").text
        return int(text.partition("\nsandrun_http_resident_bytes ")[2].split()[0])

    before = resident()
    request = f"GET /logs/{job} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            address = ("127.0.0.1", httpx.URL(node.url).port)
            sock = stack.enter_context(socket.create_connection(address, 20))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(request)
            assert sock.recv(12) == b"HTTP/1.1 200"
        for _ in range(20):
            node.client.get("/stats")
        assert resident() - before < 50 * 1024 * 1024  # 2.7 MB of JSON each, otherwise


@pytest.mark.parametrize("path", ["logs/{}?wait=60", "logs/{}?wait=60&since=0"])
def test_a_long_poll_ends_when_its_client_sends_no_more(
    start: Callable[..., Any], path: str
) -> None:
    """A FIN is what a client that went away sends: it was noticed with the next write only."""
    node = start(script=lambda zygote: zygote.start())
    target = f"GET /{path.format(node.submit()['job_id'])} HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(node.url).port), 20) as sock:
        sock.sendall(target.encode())
        sock.shutdown(socket.SHUT_WR)  # who only half-closes still gets a whole answer
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"stdout":""' in answer


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_follower_that_closes_is_gone_at_once(start: Callable[..., Any], accept: str) -> None:
    node = start(script=lambda zygote: zygote.start())
    job = node.submit()["job_id"]
    path = f"/logs/{job}/stream" if "event" in accept else f"/logs/{job}?wait=60"
    head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n".encode()

    def connections() -> int:
        text = httpx.get(f"{node.admin_url}/metrics").text
        return int(text.partition("\nsandrun_connections ")[2].split()[0])

    before = connections()
    with socket.create_connection(("127.0.0.1", httpx.URL(node.url).port), 20) as sock:
        sock.sendall(head)
        while connections() == before:
            pass
    until = time.monotonic() + 10  # a tenth of a second, but the machine may be busy
    while connections() != before:
        assert time.monotonic() < until


def test_validate_says_what_would_happen(node: Any) -> None:
    body = {
        "manifest": {"outputs": ["*.csv", "plots/"], "timeout": 7},
        "files": ["main.py", "a.csv", {"path": "plots/x.png", "size": 10}],
    }
    reply = node.client.post("/validate", json=body).json()
    assert reply["valid"]
    assert (reply["entrypoint"], reply["interpreter"]) == ("main.py", "python3")
    assert reply["limits"]["timeout"] == 7
    assert reply["why"]["timeout"] == "manifest"
    assert [match["files"] for match in reply["outputs"]] == [["a.csv"], ["plots/x.png"]]
    bad = node.client.post("/validate", json={"manifest": {"timeout": 0}})
    assert bad.json()["details"]["field"] == "timeout"


def test_validate_takes_the_body_of_submit(node: Any) -> None:
    """Its ``files`` were a list only, and an object was a type error that told no cure."""
    files = {"tool": "#!/usr/bin/env python3\nprint(1)", "job.json": '{"entrypoint": "tool"}'}
    reply = node.client.post("/validate", json={"manifest": {"timeout": 7}, "files": files}).json()
    assert (reply["entrypoint"], reply["interpreter"]) == ("tool", "python3")
    assert reply["why"]["entrypoint"] == reply["why"]["timeout"] == "manifest"
    files["job.json"] = '{"timeout": 0}'
    bad = node.client.post("/validate", json={"files": files})
    assert (bad.status_code, bad.json()["details"]["field"]) == (400, "timeout")
    nothing = node.client.post("/validate", json={}).json()
    assert nothing["entrypoint"] is None
    assert nothing["why"]["entrypoint"] == "no files were named"


def test_openapi_lists_every_public_route(node: Any) -> None:
    document = node.client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    paths = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert paths == {(route.method, route.pattern) for route in ROUTES if not route.admin}
    raw = json.dumps(document)
    for reference in set(re.findall(r'"#/components/schemas/(\w+)"', raw)):
        assert reference in document["components"]["schemas"]


def test_no_id_or_content_reaches_the_log(
    start: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    node = start(script=chatty)
    job = node.run("secret-code").json()["job_id"]
    node.client.get(f"/download/{job}/nothing")
    node.client.close()
    node.pool.drain()
    assert node.process.wait(20) == 0
    text = "".join(capfd.readouterr())
    assert job not in text
    assert "secret-code" not in text


def test_two_requests_at_once_do_not_wait_for_each_other(start: Callable[..., Any]) -> None:
    go = threading.Event()

    def script(zygote: FakeZygote) -> None:
        zygote.start()
        if zygote.files["main.py"] != b"wait":
            zygote.write(b"quick", STDOUT)
            zygote.end()
            go.set()
        else:
            threading.Thread(
                target=lambda: (go.wait(20), zygote.pool.call(zygote.end)), daemon=True
            ).start()

    node = start(script=script)
    waiting: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: waiting.append(
            httpx.post(f"{node.url}/run", json={"code": "wait"}, timeout=20)
        )
    )
    thread.start()
    assert node.run("quick").json()["stdout"] == "quick"
    thread.join(20)
    assert waiting[0].status_code == 200
