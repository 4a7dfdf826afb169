"""Jobs through the real http process: in, queued, run, seen, ended."""

from __future__ import annotations

import base64
import io
import socket
import tarfile
import threading
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from fakes import FakeZygote, elsewhere

from sandrun.config import Config, RateLimit
from sandrun.http.app import MAX_RETURNS
from sandrun.job import ExitReason
from sandrun.messages import Keep, Kill, Resize, Spent, Want

MIB = 1024 * 1024


def hold(event: threading.Event) -> Callable[[FakeZygote], None]:
    """A job that starts, says so, and ends when the test lets it."""

    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.write(b"begun\n")

        def finish() -> None:
            if event.wait(20):  # else the test is over, and its pool gone
                zygote.pool.call(lambda: zygote.end() if not zygote.closed else None)

        threading.Thread(target=finish, daemon=True).start()

    return script


def test_run_answers_with_everything(node: Any) -> None:
    reply = node.run("print(1)", stdin="in")
    assert reply.status_code == 200
    body = reply.json()
    assert body["status"] == "completed"
    assert body["exit_reason"] == "exited"
    assert body["stdout"] == "hello\n"
    assert body["outputs"][0]["path"] == "result.txt"
    (zygote,) = node.pool.dispatched
    assert zygote.files == {"main.py": b"print(1)"}
    assert zygote.spec.stdin == b"in"
    assert zygote.spec.interpreter == "python3"


def test_inline_outputs(node: Any) -> None:
    reply = node.client.post("/run", params={"inline": "1"}, json={"code": "x"})
    (output,) = reply.json()["outputs"]
    assert base64.b64decode(output["data_base64"]) == b"42\n"


EVENTS = {"Accept": "text/event-stream"}


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each event; a record's has none."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            found.append((fields.get("event", ""), msgspec.json.decode(fields["data"])))
    return found


def test_run_as_an_event_stream_tells_everything_in_one_answer(node: Any) -> None:
    reply = node.client.post("/run", params={"inline": "1"}, json={"code": "x"}, headers=EVENTS)
    assert reply.headers["content-type"].startswith("text/event-stream")
    (_, job), (_, record), (_, end), (_, file) = events = events_of(reply.text)
    assert [name for name, _ in events] == ["job", "", "end", "output"]
    assert job["status"] == "queued"
    assert job["view_id"] == end["view_id"]
    assert record["data"] == "hello\n"
    assert end["cursor"] == record["seq"]
    assert "data_base64" not in end["outputs"][0]
    assert base64.b64decode(file["data_base64"]) == b"42\n"
    # What both have is the same, whenever one asks.
    status = node.client.get(f"/status/{job['job_id']}").json()
    assert status["status"] == "completed"
    assert {**end, "timeline": None} == {
        **status,
        "timeline": None,
        **{key: end[key] for key in ("view_id", "cursor", "outputs", "event")},
    }


def test_an_event_stream_ends_with_its_time_and_the_job_goes_on(
    start: Callable[..., Any],
) -> None:
    event = threading.Event()
    node = start(script=hold(event))
    reply = node.client.post("/run", params={"timeout": "0.2"}, json={"code": "x"}, headers=EVENTS)
    (_, job), *records = events_of(reply.text)
    event.set()
    since = records[-1][1]["seq"] if records else 0
    path = f"/logs/{job['job_id']}/stream"
    rest = events_of(node.client.get(path, params={"since": since}, headers=EVENTS).text)
    said = [data.get("data") or data["event"] for _, data in (*records, *rest)]
    assert said == ["begun\n", "end"]


def test_a_refused_run_is_no_event_stream(node: Any) -> None:
    reply = node.client.post("/run", json={"code": "x", "manifest": {"timeout": -1}}, headers=EVENTS)
    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/json"


def test_submit_status_logs_outputs_download(node: Any) -> None:
    ids = node.submit()
    assert ids["status"] == "queued"
    job, view = ids["job_id"], ids["view_id"]
    # The long-poll returns when there is something.
    assert node.client.get(f"/logs/{job}", params={"wait": "10"}).json()["stdout"] == "hello\n"
    node.client.get(f"/logs/{job}/stream")
    status = node.client.get(f"/status/{view}").json()
    assert status["status"] == "completed"
    assert status["job_id"] == view
    listing = node.client.get(f"/outputs/{job}").json()
    assert listing["total_files"] == 1
    url = listing["files"][0]["download_url"]
    assert node.client.get(url).content == b"42\n"
    assert node.client.get(f"/outputs/{view}/result.txt").content == b"42\n"


@pytest.mark.parametrize("kind", ["tar.gz", "tar"])
def test_a_delivered_archive_deletes_the_job(node: Any, kind: str) -> None:
    job = node.run().json()["job_id"]
    reply = node.client.get(f"/download/{job}", params={"format": kind})
    with tarfile.open(fileobj=io.BytesIO(reply.content)) as tar:
        assert tar.extractfile("result.txt").read() == b"42\n"  # type: ignore[union-attr]
    # The next request of the same connection is only read when delivery is settled.
    assert node.client.get(f"/status/{job}").status_code == 404


def test_a_view_keep_or_head_deletes_nothing(node: Any) -> None:
    ids = node.run().json()
    assert node.client.get(f"/download/{ids['view_id']}").status_code == 200
    assert node.client.get(f"/download/{ids['job_id']}?keep=1").status_code == 200
    assert node.client.head(f"/download/{ids['job_id']}").status_code == 200
    assert node.client.get(f"/status/{ids['job_id']}").status_code == 200


def test_a_view_id_neither_cancels_nor_deletes(node: Any) -> None:
    view = node.run().json()["view_id"]
    assert node.client.delete(f"/jobs/{view}").status_code == 403
    assert node.client.post(f"/jobs/{view}/cancel").json()["code"] == "view_only"


def test_delete_wipes_and_unknown_looks_the_same(node: Any) -> None:
    job = node.run().json()["job_id"]
    assert node.client.delete(f"/jobs/{job}").status_code == 204
    gone = node.client.get(f"/status/{job}")
    never = node.client.get("/status/job_AAAAAAAAAAAAAAAAAAAAAAAA")
    assert gone.status_code == never.status_code == 404
    assert gone.content == never.content


def test_cancel_keeps_the_logs(start: Callable[..., Any]) -> None:
    node = start(script=hold(threading.Event()))
    job = node.submit()["job_id"]
    assert node.client.get(f"/logs/{job}?wait=10").json()["stdout"] == "begun\n"
    status = node.client.post(f"/jobs/{job}/cancel").json()
    assert status["exit_reason"] == "cancelled"
    assert status["status"] == "failed"
    assert node.client.get(f"/logs/{job}").json()["stdout"] == "begun\n"


def test_a_cancel_that_nobody_obeys_becomes_a_kill(start: Callable[..., Any]) -> None:
    node = start(script=hold(threading.Event()))
    body = {"files": {"main.py": "x"}, "manifest": {"env": {"IGNORE_CANCEL": "1"}}}
    job = node.client.post("/submit", json=body).json()["job_id"]
    node.client.get(f"/logs/{job}?wait=10")
    status = node.client.post(f"/jobs/{job}/cancel").json()
    assert status["exit_reason"] == "cancelled"
    node.pool.wait(lambda: any(isinstance(m, Kill) for m in node.pool.received))


@pytest.mark.parametrize("deaths", [1, MAX_RETURNS])
def test_sandboxes_that_die_before_the_job_ran_are_replaced(
    start: Callable[..., Any], deaths: int
) -> None:
    """Whatever kills one that is ready often kills those beside it, too."""
    seen: list[FakeZygote] = []

    def script(zygote: FakeZygote) -> None:
        seen.append(zygote)
        if len(seen) <= deaths:
            zygote.die()
        else:
            zygote.start()
            zygote.end()

    node = start(script=script)
    assert node.run().json()["status"] == "completed"
    assert len(seen) == deaths + 1


def test_again_and_again_is_our_fault_and_the_quota_comes_back(start: Callable[..., Any]) -> None:
    node = start(Config(), script=FakeZygote.die)
    reply = node.run().json()
    assert reply["exit_reason"] == "server_fault"
    assert len(node.pool.dispatched) == 1 + MAX_RETURNS
    quota = node.client.get("/stats").json()["your_quota"]
    assert quota["active_jobs"] == 0
    assert quota["jobs_this_hour"] == 0


def test_a_sandbox_that_dies_while_the_job_runs_is_our_fault(start: Callable[..., Any]) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.die()

    node = start(script=script)
    assert node.run().json()["exit_reason"] == "server_fault"
    assert len(node.pool.dispatched) == 1


def test_job_json_in_an_archive_may_move_the_job_elsewhere(start: Callable[..., Any]) -> None:
    node = start(environments=("default", "science"), script=elsewhere("science"),
                 config=msgspec.structs.replace(
                     Config(), rate_limit=RateLimit(enabled=False),
                     environments={"default": Config().environments["default"],
                                   "science": Config().environments["default"]}))  # fmt: skip
    reply = node.client.post("/run", files={"files": ("p.tar.gz", b"bytes")})
    assert reply.json()["execution_metadata"]["environment"] == "science"
    assert [z.environment for z in node.pool.dispatched] == ["default", "science"]


def test_elsewhere_beyond_the_maxima_is_not_believed(start: Callable[..., Any]) -> None:
    from sandrun.messages import Elsewhere

    def script(zygote: FakeZygote) -> None:
        limits = msgspec.structs.replace(zygote.spec.limits, memory_bytes=1 << 40)
        zygote.send(Elsewhere(spec=msgspec.structs.replace(zygote.spec, limits=limits)))

    node = start(script=script)
    assert node.run().json()["exit_reason"] == "server_fault"


def test_the_manifest_reaches_the_sandbox_and_job_json_yields_to_it(node: Any) -> None:
    files = [
        ("files", ("pkg/main.py", b"print(1)")),
        ("files", ("job.json", b'{"entrypoint": "pkg/main.py", "timeout": 7, "memory_mb": 64}')),
        ("manifest", (None, b'{"memory_mb": 128, "args": ["a", "b"]}')),
    ]
    assert node.client.post("/run", files=files).status_code == 200
    spec = node.pool.dispatched[0].spec
    assert spec.entrypoint == "pkg/main.py"
    assert spec.limits.timeout_s == 7
    assert spec.limits.memory_bytes == 128 * MIB
    assert spec.args == ("a", "b")
    assert set(node.pool.dispatched[0].dispatch.manifest_given) == {"memory_mb", "args"}


def test_a_large_upload_arrives_byte_exact(node: Any) -> None:
    data = bytes(range(256)) * 4096 * 20
    files = [("files", ("p.tar", data)), ("files", ("small.txt", b"x"))]
    assert node.client.post("/run", files=files).status_code == 200
    assert node.pool.dispatched[0].files == {"p.tar": data, "small.txt": b"x"}
    kinds = {part.path: part.kind for part in node.pool.dispatched[0].parts}
    assert kinds == {"p.tar": "tar", "small.txt": "file"}


def test_another_storage_size_is_asked_for_before_the_dispatch(node: Any) -> None:
    body = {"files": {"main.py": "x"}, "manifest": {"storage_mb": 10}}
    assert node.client.post("/run", json=body).status_code == 200
    assert any(isinstance(m, Resize) for m in node.pool.received)
    assert node.pool.dispatched[0].storage_bytes == 10 * MIB


def test_jobs_wait_when_no_sandbox_is_ready_and_want_is_sent(start: Callable[..., Any]) -> None:
    node = start(ready=0)
    first, second = node.submit(), node.submit()
    assert first["position"] == 1
    assert second["position"] == 2
    node.pool.wait(lambda: any(isinstance(m, Want) and m.waiting == 2 for m in node.pool.received))
    assert node.client.get(f"/status/{second['job_id']}").json()["queue_position"] == 2
    node.pool.lease()
    node.client.get(f"/logs/{first['job_id']}/stream")
    node.client.get(f"/logs/{second['job_id']}/stream")
    assert node.client.get(f"/status/{second['job_id']}").json()["status"] == "completed"
    node.pool.wait(lambda: any(isinstance(m, Want) and not m.waiting for m in node.pool.received))


def test_a_queued_job_can_be_cancelled(start: Callable[..., Any]) -> None:
    node = start(ready=0)
    job = node.submit()["job_id"]
    assert node.client.post(f"/jobs/{job}/cancel").json()["exit_reason"] == "cancelled"
    assert not any(isinstance(m, Keep) and m.zygote for m in node.pool.received)


def test_a_ready_sandbox_that_is_withdrawn_is_not_used(start: Callable[..., Any]) -> None:
    node = start(ready=2)
    node.pool.withdraw(1)
    node.pool.withdraw(2)
    node.pool.lease()
    assert node.run().json()["status"] == "completed"
    assert node.pool.dispatched[0].id == 3


def test_run_with_a_timeout_gives_202_and_the_job_goes_on(start: Callable[..., Any]) -> None:
    go = threading.Event()
    node = start(script=hold(go))
    reply = node.client.post("/run?timeout=0.05", json={"code": "x"})
    assert reply.status_code == 202
    assert reply.json()["status"] == "running"
    go.set()
    job = reply.json()["job_id"]
    assert node.client.get(f"/logs/{job}/stream").text == "begun\n"
    assert node.client.get(f"/status/{job}").json()["status"] == "completed"


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_can_be_watched_by_its_key(node: Any, *, chunked: bool) -> None:
    body = b'{"code": "hello"}'
    key = {"Idempotency-Key": "upload-1"}
    first = body[:9]
    head = b"POST /submit HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Idempotency-Key: upload-1\r\nConnection: close\r\n"
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        pieces = [b"%x\r\n%b\r\n" % (len(part), part) for part in (first, body[9:])]
        pieces[1] += b"0\r\n\r\n"
    else:
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        pieces = [first, body[9:]]
    assert node.client.get("/upload", headers=key).status_code == 404
    with socket.create_connection(("127.0.0.1", httpx.URL(node.url).port)) as sock:
        sock.sendall(head + pieces[0])
        while True:
            reply = node.client.get("/upload", headers=key)
            if reply.status_code == 200 and reply.json()["received_bytes"]:
                break
        assert reply.json() == {
            "status": "receiving",
            "received_bytes": len(first),
            "total_bytes": None if chunked else len(body),
        }
        again = node.client.post("/submit", json={"code": "x"}, headers=key)
        assert again.json()["code"] == "idempotency_in_progress"
        sock.sendall(pieces[1])
        assert sock.recv(12) == b"HTTP/1.1 200"
        assert node.client.get("/upload", headers=key).json()["status"] == "accepted"
        while sock.recv(65536):
            pass
    assert node.client.get("/upload", headers={"Idempotency-Key": "other"}).status_code == 404
    assert node.client.get("/upload").json()["code"] == "no_idempotency_key"


def test_an_idempotency_key_gives_the_same_job(node: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    one = node.client.post("/submit", json={"code": "x"}, headers=headers).json()
    two = node.client.post("/submit", json={"code": "x"}, headers=headers).json()
    assert one["job_id"] == two["job_id"]
    node.client.get(f"/logs/{one['job_id']}/stream")
    assert len(node.pool.dispatched) == 1
    bad = node.client.post("/submit", json={"code": "x"}, headers={"Idempotency-Key": "a b"})
    assert bad.json()["code"] == "bad_idempotency_key"


def test_a_damaged_index_is_our_fault_and_no_500(start: Callable[..., Any]) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.write(b"out")
        zygote.end(outputs={"../etc/passwd": b"x"})

    node = start(script=script)
    reply = node.run()
    assert reply.status_code == 200
    assert reply.json()["exit_reason"] == "server_fault"
    assert reply.json()["stdout"] == "out"


def test_a_zygote_that_talks_out_of_turn_is_killed(start: Callable[..., Any]) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.channel.socket.send(b"junk")

    node = start(script=script)
    assert node.run().json()["exit_reason"] == "server_fault"
    node.pool.wait(lambda: sum(isinstance(m, Kill) for m in node.pool.received) == 1 + MAX_RETURNS)


def test_the_quota_refuses_with_everything_a_client_needs(start: Callable[..., Any]) -> None:
    node = start(Config(), script=hold(threading.Event()))
    assert "ratelimit" in node.client.post("/submit", json={"code": "x"}).headers
    node.submit()
    reply = node.client.post("/submit", json={"code": "x"})
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 1
    assert "ratelimit-policy" in reply.headers
    body = reply.json()
    assert body["code"] == "quota_exceeded"
    assert body["details"]["reason"] == "concurrent_jobs"
    assert body["retry_after"] >= 1
    quota = node.client.get("/stats").json()["your_quota"]
    assert quota["active_jobs"] == 2
    assert not quota["can_submit"]


def test_a_refused_upload_costs_no_quota(start: Callable[..., Any]) -> None:
    node = start(Config())
    for _ in range(5):
        assert node.client.post("/submit", json={"code": 5}).status_code == 400
    quota = node.client.get("/stats").json()["your_quota"]
    assert (quota["active_jobs"], quota["jobs_this_hour"]) == (0, 0)


def test_used_cpu_is_charged(start: Callable[..., Any]) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.end(cpu_seconds=60.0)

    node = start(Config(), script=script)
    assert node.run().status_code == 200
    refused = node.run()
    assert refused.status_code == 429
    assert refused.json()["details"]["reason"] == "cpu_seconds"


def spend(event: threading.Event, *said: float, total: float) -> Callable[[FakeZygote], None]:
    """A job that tells what it has used, and ends when the test lets it."""

    def script(zygote: FakeZygote) -> None:
        zygote.start()
        for seconds in said:
            zygote.send(Spent(cpu_seconds=seconds))
        zygote.write(b"told\n")

        def finish() -> None:
            event.wait(20)
            zygote.pool.call(lambda: zygote.end(cpu_seconds=total))

        threading.Thread(target=finish, daemon=True).start()

    return script


def test_a_running_job_is_charged_and_its_debt_keeps_the_next_one_out(
    start: Callable[..., Any],
) -> None:
    event = threading.Event()
    node = start(Config(), script=spend(event, 4.0, 30.0, total=30.5))
    first = node.submit()["job_id"]
    assert node.client.get(f"/logs/{first}", params={"wait": 20}).json()["stdout"] == "told\n"
    reply = node.client.post("/submit", json={"code": "x"})  # there is a place, but no budget
    assert reply.status_code == 429
    assert reply.json()["details"]["reason"] == "cpu_seconds"
    used = node.client.get("/stats").json()["your_quota"]["used"]
    assert 25.0 < used < 30.1  # a little comes back meanwhile
    event.set()
    assert node.client.get(f"/logs/{first}/stream").status_code == 200  # to its end
    assert node.client.get("/stats").json()["your_quota"]["used"] < 30.6  # the rest, not all again


def test_what_a_job_is_charged_while_it_runs_comes_back_if_its_sandbox_dies(
    start: Callable[..., Any],
) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.send(Spent(cpu_seconds=8.0))
        zygote.die()

    node = start(Config(), script=script)
    assert node.run().json()["exit_reason"] == "server_fault"
    assert node.client.get("/stats").json()["your_quota"]["used"] == 0


@pytest.mark.parametrize("lie", [float("nan"), float("-inf"), -1e9])
def test_a_sandbox_that_was_taken_over_cannot_fill_its_owners_account(
    start: Callable[..., Any], lie: float
) -> None:
    """Found by review: NaN in the usage made a balance that is never below zero."""

    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.send(Spent(cpu_seconds=lie))
        zygote.end(cpu_seconds=lie)

    node = start(Config(), script=script)
    assert node.run().json()["exit_reason"] == "exited"
    assert node.client.get("/stats").json()["your_quota"]["available"] == 10.0
    node.pool.script = spend(threading.Event(), 60.0, total=60.0)
    job = node.submit()["job_id"]
    node.client.get(f"/logs/{job}", params={"wait": 20})
    assert node.client.post("/submit", json={"code": "x"}).status_code == 429


def test_drain_finishes_what_runs_and_refuses_the_rest(start: Callable[..., Any]) -> None:
    go = threading.Event()
    node = start(script=hold(go))
    job = node.submit()["job_id"]
    node.client.get(f"/logs/{job}?wait=10")
    with httpx.stream("GET", f"{node.url}/logs/{job}/stream", timeout=20) as reply:
        node.pool.drain(grace_s=20)
        lines = reply.iter_lines()
        assert next(lines) == "begun"
        while node.client.get("/health").json()["status"] != "draining":
            pass
        assert node.client.post("/submit", json={"code": "x"}).json()["code"] == "draining"
        go.set()
        assert list(lines) == []
    node.client.close()
    assert node.process.wait(20) == 0
    assert node.pool.drained.wait(10)


def test_drain_cancels_at_the_end_of_its_grace(start: Callable[..., Any]) -> None:
    node = start(script=hold(threading.Event()))
    job = node.submit()["job_id"]
    node.client.get(f"/logs/{job}?wait=10")
    node.client.close()
    node.pool.drain(grace_s=0)
    assert node.process.wait(20) == 0
    assert node.pool.dispatched[0].cancelled.is_set()


def test_http_ends_with_its_supervisor(start: Callable[..., Any]) -> None:
    node = start()
    node.pool.call(lambda: node.pool.control.shutdown(2))
    assert node.process.wait(20) == 0


def test_no_descriptor_is_left_of_wiped_jobs(start: Callable[..., Any]) -> None:
    import os

    node = start(ready=1)

    def count() -> int:
        return len(os.listdir(f"/proc/{node.process.pid}/fd"))

    for _ in range(3):
        node.client.delete(f"/jobs/{node.run().json()['job_id']}")
    before = count()
    big = {"files": ("p.tar", bytes(100_000))}
    for _ in range(20):
        node.client.delete(f"/jobs/{node.run().json()['job_id']}")
        node.client.delete(f"/jobs/{node.client.post('/run', files=big).json()['job_id']}")
    assert abs(count() - before) <= 3  # a lease may be on its way


def test_failed_jobs_say_why(start: Callable[..., Any]) -> None:
    def script(zygote: FakeZygote) -> None:
        zygote.start()
        zygote.end(
            ExitReason.OUT_OF_MEMORY,
            exit_code=None,
            evidence=("memory.events oom_kill=1",),
            remedy="memory_mb: 1024",
        )

    node = start(script=script)
    body = node.run().json()
    assert body["status"] == "failed"
    assert body["evidence"] == ["memory.events oom_kill=1"]
    assert body["remedy"] == "memory_mb: 1024"


def test_a_job_that_does_not_fit_into_memory_waits_until_another_has_ended(
    start: Callable[..., Any],
) -> None:
    from sandrun.messages import PoolState

    go = threading.Event()
    node = start(script=hold(go))
    first = node.submit()["job_id"]
    node.client.get(f"/logs/{first}?wait=10")
    little = PoolState(warm=4, booting=0, busy=1, capacity=64, memory_available_bytes=MIB)
    node.pool.call(lambda: node.pool.channel.send(little))
    while node.client.get("/stats").json()["system"]["active_jobs"] != 1:
        pass
    second = node.submit()
    while second["position"] == 0:  # it was there before the news from the pool
        second = node.submit()
    go.set()
    assert node.client.get(f"/logs/{second['job_id']}/stream").text == "begun\n"


def test_a_host_without_memory_takes_no_new_job_and_disturbs_none(
    start: Callable[..., Any],
) -> None:
    from sandrun.messages import PoolState

    def say(pressure: str, missing_bytes: int = 0) -> None:
        state = PoolState(
            warm=4,
            booting=0,
            busy=1,
            capacity=64,
            pressure=pressure,
            memory_missing_bytes=missing_bytes,
        )
        node.pool.call(lambda: node.pool.channel.send(state))
        while node.client.get("/health").json()["reason"] != (pressure or None):
            pass

    go = threading.Event()
    node = start(script=hold(go))
    finished = node.submit()["job_id"]
    go.set()
    node.client.get(f"/logs/{finished}/stream")
    go.clear()
    running = node.submit()["job_id"]
    node.client.get(f"/logs/{running}?wait=10")
    say("the host has 3 MiB of memory left", 500 * MIB)
    refused = node.client.post("/submit", json={"code": "1"})
    assert (refused.status_code, refused.json()["code"]) == (503, "host_pressure")
    assert refused.headers["retry-after"] == "5"
    assert "\nsandrun_host_pressure 1\n" in httpx.get(f"{node.admin_url}/metrics").text
    # It would make no room to speak of: it was wiped, with everybody's, within a second.
    assert node.client.get(f"/status/{finished}").json()["status"] == "completed"
    assert node.client.get(f"/status/{running}").json()["status"] == "running"
    go.set()
    assert node.client.get(f"/logs/{running}/stream").text == "begun\n"
    say("")
    assert node.submit()["status"] == "queued"


def test_an_upload_that_ends_after_the_drain_began_leaves_nothing(
    start: Callable[..., Any],
) -> None:
    node = start(script=hold(threading.Event()))
    job = node.submit()["job_id"]
    node.client.get(f"/logs/{job}?wait=10")

    def body() -> Any:
        yield b'{"files": {"main.py": "'
        node.pool.drain(grace_s=20)
        with httpx.Client(base_url=node.url) as other:
            while other.get("/health").json()["status"] != "draining":
                pass
        yield b'x"}}'

    reply = node.client.post(
        "/submit", content=body(), headers={"Content-Type": "application/json"}
    )
    assert reply.json()["code"] == "draining"
    assert node.client.get("/stats").json()["your_quota"]["active_jobs"] == 1


def test_an_upload_that_took_long_is_refused_if_the_queue_has_grown_meanwhile(
    start: Callable[..., Any],
) -> None:
    """Only the beginning of an upload was looked at: all that were under way came in at once."""
    from sandrun.messages import PoolState

    node = start(
        script=hold(threading.Event()),
        config=msgspec.structs.replace(
            Config(), rate_limit=RateLimit(enabled=False, queue_seconds=0.1)
        ),
    )
    first = node.submit()["job_id"]
    node.client.get(f"/logs/{first}?wait=10")
    full = PoolState(warm=4, booting=0, busy=1, capacity=1, memory_available_bytes=MIB)
    node.pool.call(lambda: node.pool.channel.send(full))
    while node.client.get("/stats").json()["system"]["capacity"] != 1:
        pass

    def body() -> Any:
        yield b'{"files": {"main.py": "'
        with httpx.Client(base_url=node.url, timeout=20) as other:
            waiting = other.post("/submit", json={"code": "1"}).json()["job_id"]
            other.get(f"/logs/{waiting}?wait=0.5")  # nothing comes: a long upload
        yield b'x"}}'

    reply = node.client.post(
        "/submit", content=body(), headers={"Content-Type": "application/json"}
    )
    assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
    assert reply.headers["retry-after"]
    assert node.client.get("/stats").json()["your_quota"]["active_jobs"] == 2
