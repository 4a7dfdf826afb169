"""N: ids, browsers, fairness."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from sandrun.selftest.case import Call, Case, expect
from sandrun.selftest.target import Target


def _ids_are_random(target: Target) -> None:
    ids = [target.submit({"main.py": "print(1)"}) for _ in range(10)]
    for name, prefix in (("job_id", "job_"), ("view_id", "view_")):
        found = [job[name] for job in ids]
        expect(all(text.startswith(prefix) for text in found), f"{found[:2]}")
        # 128 bits in base64 take 22 characters.
        expect(all(len(text) - len(prefix) >= 22 for text in found), f"too short: {found[0]}")
        heads = {text[len(prefix) : len(prefix) + 6] for text in found}
        expect(len(heads) == len(found), f"ids share their beginning: {found}")
    for job in ids:
        target.wait(job["job_id"])


def _unknown_look_alike(target: Target) -> None:
    job = target.run({"main.py": "print(1)"})
    gone = job["job_id"]
    expect(target.request("DELETE", f"/jobs/{gone}").status in (200, 204), "DELETE")
    bodies = set()
    for name in (gone, job["view_id"], "job_" + secrets.token_urlsafe(18), "x", "job_"):
        reply = target.get(f"/status/{name}")
        expect(reply.status == 404, f"{name}: {reply.status}")
        bodies.add(reply.body)
    expect(len(bodies) == 1, f"404s differ: {bodies}")


def _views_are_not_jobs(target: Target) -> None:
    """The two ids of a job cannot be computed from each other or swapped."""
    job = target.run({"main.py": "print(1)"})
    secret = job["job_id"].partition("_")[2]
    view = job["view_id"].partition("_")[2]
    expect(secret != view, "both ids are one secret")
    for name in (f"view_{secret}", f"job_{view}", secret, view, job["job_id"].upper()):
        expect(target.get(f"/status/{name}").status == 404, f"{name[:9]}... is accepted")


def _cors(target: Target) -> None:
    for origin in ("https://evil.example", "null"):
        reply = target.request("GET", "/health", headers={"Origin": origin})
        allowed = reply.headers.get("access-control-allow-origin")
        expect(allowed in (None, "*"), f"the origin is reflected: {allowed}")
        expect("access-control-allow-credentials" not in reply.headers, "credentials are allowed")
    for path in ("/submit", "/status/x", "/jobs/x"):
        reply = target.request(
            "OPTIONS",
            path,
            headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
        )
        expect("access-control-allow-credentials" not in reply.headers, "credentials are allowed")
    expect("set-cookie" not in target.get("/").headers, "there is a cookie")


def _drive_by(target: Target) -> None:
    """A page on the web must not start jobs on somebody's own machine."""
    if target.host not in ("127.0.0.1", "localhost", "::1"):
        return
    body = b'{"code": "print(1)"}'
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {"Origin": f"http://{target.authority}.evil.example"}, {"Host": "evil.example", "Origin": "http://evil.example"},
    ):  # fmt: skip
        reply = target.request(
            "POST", "/run", body, {"Content-Type": "application/json", **headers}
        )
        expect(reply.status in (400, 403, 421), f"{headers}: {reply.status}")


def _simple_form(target: Target) -> None:
    """What a form can send without a preflight does not submit."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        reply = target.request(
            "POST",
            "/run",
            b'{"code": "print(1)"}',
            {"Content-Type": kind, "Origin": "https://evil.example"},
        )
        expect(reply.status in (403, 415), f"{kind}: {reply.status}")


def _frames(target: Target) -> None:
    reply = target.request("GET", "/", headers={"Accept": "text/html"})
    policy = reply.headers.get("content-security-policy", "")
    expect("frame-ancestors 'none'" in policy, f"policy {policy!r}")
    expect("unsafe-inline" not in policy and "unsafe-eval" not in policy, f"policy {policy!r}")
    expect(reply.headers.get("referrer-policy") == "no-referrer", "referrers leave")


def _caching(target: Target) -> None:
    job = target.run({"main.py": "open('o', 'w').write('d')"})["job_id"]
    for path in (f"/status/{job}", f"/logs/{job}", f"/outputs/{job}"):
        value = target.get(path).headers.get("cache-control", "")
        expect(
            "no-store" in value or "private" in value or "no-cache" in value,
            f"{path.split('/')[1]}: Cache-Control {value!r}",
        )


def _idempotency(target: Target) -> None:
    for key in ("x" * 5000, "\x7f", ""):
        text = target.raw(
            target.head(
                "POST /submit HTTP/1.1",
                f"Idempotency-Key: {key}",
                "Content-Type: application/json",
                "Content-Length: 2",
                "Connection: close",
            )
            + b"{}"
        )
        expect(text[9:10] == b"4", f"{key[:5]!r}: {text[:60]!r}")
    body = b'{"code": "print(1)"}'
    key = secrets.token_hex(16)
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    first = target.request("POST", "/submit", body, headers)
    again = target.request("POST", "/submit", body, headers)
    expect(first.status == again.status == 200, f"{first.status} {again.status}")
    expect(first.json()["job_id"] == again.json()["job_id"], "the same key made two jobs")
    other = target.request("POST", "/submit", b'{"code": "print(2)"}', headers)
    expect(other.status in (200, 409, 422), f"{other.status}")


def _burst(target: Target) -> None:
    """Forty at once: every one is answered, each job once, and all end."""

    def one(number: int) -> tuple[int, str]:
        reply = target.post("/run", {"main.py": f"print({number})"}, {"timeout": 20})
        return reply.status, reply.json().get("stdout", "") if reply.status == 200 else ""

    with ThreadPoolExecutor(40) as pool:
        for number, (status, text) in enumerate(pool.map(one, range(40))):
            expect(status in (200, 429, 503), f"{number}: {status}")
            expect(status != 200 or text == f"{number}\n", f"{number}: {text!r}")


def _control_characters(target: Target) -> None:
    """Terminal sequences of a job arrive as data: escaped in JSON, plain in text."""
    code = "import sys\nsys.stdout.buffer.write(b'\\x1b]52;c;eA==\\x07\\x1b[2J\\xff\\xfe\\xe2\\x80\\xa8<script>')"
    job = target.run({"main.py": code})
    reply = target.get(f"/logs/{job['job_id']}")
    expect(b"\x1b" not in reply.body, "raw escape sequences in JSON")
    plain = target.get(f"/logs/{job['job_id']}", Accept="text/plain")
    expect(plain.headers.get("content-type", "").startswith("text/plain"), "type")
    expect(plain.headers.get("x-content-type-options") == "nosniff", "may be sniffed")


def _event_injection(target: Target) -> None:
    """Output cannot forge events of the stream."""
    forged = 'data: {"event": "end", "status": "completed", "exit_reason": "exited"}'
    code = f"print('a\\n\\n{forged}\\n\\nevent: end\\r\\rid: 99')\nimport sys; sys.exit(3)"
    job = target.run({"main.py": code})
    reply = target.get(f"/logs/{job['job_id']}/stream", Accept="text/event-stream")
    told = [line for line in reply.body.splitlines() if line.startswith(b"data:")]
    ends = [line for line in told if json.loads(line[5:]).get("event") == "end"]
    expect(len(ends) == 1 and b"nonzero_exit" in ends[0], f"ends: {ends}")


def _long_poll(target: Target) -> None:
    job = target.run({"main.py": "print(1)"})["job_id"]
    for query in (
        "since=-1",
        "since=1e9",
        "since=99999999999999999999",
        "wait=1e9",
        "wait=nan",
        "wait=-1",
        "since=x",
        "wait=inf",
        "since=0&since=5",
        "%00=1",
    ):
        reply = target.get(f"/logs/{job}?{query}")
        expect(reply.status in (200, 400), f"{query}: {reply.status}")


def call(id: str, title: str, run: Callable[[Target], None], **more: Any) -> Call:  # noqa: A002
    """Shorter."""
    return Call(id=id, title=title, run=run, **more)


CASES: Final[tuple[Case, ...]] = (
    call("N3", "forty submissions at the same moment", _burst, heavy=True),
    call("N7.idempotency", "idempotency keys with junk, and used twice", _idempotency),
    call("N8", "ids are long and random", _ids_are_random),
    call("N8.alike", "unknown, deleted and foreign jobs look the same", _unknown_look_alike),
    call("N8.view", "the two ids of a job cannot be swapped", _views_are_not_jobs),
    call("N9.cache", "answers about jobs are not cached by others", _caching),
    call("N10", "no origin is reflected, there are no cookies", _cors),
    call("N10.drive_by", "a page of another origin starts no job on a loopback server", _drive_by),
    call("N10.form", "a simple form starts no job", _simple_form),
    call("N11.events", "output cannot forge the end of its own log", _event_injection),
    call("N13", "terminal sequences in logs arrive as data", _control_characters),
    call("N15.poll", "cursors and waits with junk", _long_poll),
    call("N16", "the page cannot be framed and runs no inline script", _frames),
)
