"""The report card: what an operator sees, and its exit status."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from sandrun.selftest import command, host, report
from sandrun.selftest.case import Call, Job, Outcome, judge
from sandrun.selftest.run import run_one
from sandrun.selftest.target import Target

CASE = Call(id="L1", title="a <b>title</b>", run=lambda _: None)


def outcomes():
    return [
        Outcome(case=CASE, state="held"),
        Outcome(
            case=Call(id="A1", title="x", run=CASE.run), state="broken", detail="\x1b[2J<script>"
        ),
        Outcome(case=Call(id="A2", title="y", run=CASE.run), state="unable", detail="no gcc"),
    ]


def test_the_text_goes_layer_by_layer_and_shows_what_did_not_hold():
    text = report.as_text(outcomes())
    assert text.index("A1") < text.index("no gcc") < text.index("HTTP")
    assert text.endswith("1 of 3 cases held, 1 BROKEN, 1 could not be run")
    assert "\x1b" not in text


def test_the_page_escapes_what_hostile_programs_printed():
    page = report.as_html(outcomes(), "http://<x>", "now")
    assert "<script" not in page
    assert "<b>title" not in page
    assert "http://&lt;x&gt;" in page


def test_the_json_has_every_case():
    data = json.loads(report.as_json(outcomes(), "u"))
    assert (data["held"], data["broken"], data["unable"]) == (1, 1, 1)
    assert [c["id"] for layer in data["layers"] for c in layer["cases"]] == ["A1", "A2", "L1"]


def test_an_answer_that_is_not_as_it_must_be_is_told():
    case = Job(id="A1", title="", code="", reason=("syscall_denied",))
    answer = {"exit_reason": "exited", "stdout": "escaped\n", "stderr": "", "evidence": []}
    assert "not syscall_denied" in judge(case, answer)
    assert "escaped" in judge(Job(id="A1", title="", code=""), answer)
    assert judge(Job(id="A1", title="", code="", stdout="escaped\n"), answer) == ""


def tried(status, body, headers=()):
    """One case against a small server that answers everything like this."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(status)
            for name, value in (("Content-Length", str(len(body))), *headers):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    target = Target(f"http://127.0.0.1:{server.server_port}")
    try:
        return run_one(Job(id="A1", title="", code="x"), target)
    finally:
        target.close()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_rate_limit_is_no_hole():
    outcome = tried(429, b'{"error": "20 jobs an hour"}', [("Retry-After", "9")])
    assert outcome.state == "unable"
    assert "20 jobs an hour" in outcome.detail


def test_a_server_that_lies_is_broken_not_a_crash():
    outcome = tried(200, b'{"surprise": []}')
    assert outcome.state == "broken"


def test_the_command_tries_a_server_that_runs(server, tmp_path, capsys):
    page = tmp_path / "card.html"
    argv = [server.url, "--only", "A17,J4,L22", "--json", "--html", str(page)]
    assert command.main(argv) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["held"], data["broken"]) == (3, 0)
    assert "A17" in page.read_text()


def test_the_command_starts_a_server_of_its_own(server, capsys):
    assert command.main(["--local", "--only", "A18,X"]) == 0
    assert "the host afterwards" in capsys.readouterr().out


def test_the_command_says_when_nothing_answers(capsys):
    assert command.main(["http://127.0.0.1:9"]) == 2
    with pytest.raises(SystemExit):
        command.main([])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mounts", "another"),
        ("ipc", {"sysvipc/shm": 9}),
        ("canaries", {"/etc/canary": (None,)}),
        ("listeners", frozenset({"tcp 0.0.0.0:31337"})),
        ("processes", {"in a sandbox": 9, "(zombie)": 1}),
        ("descriptors", {"supervisor": 900}),
        ("namespaces", {"net": 99}),
        ("shared_ids", (12345,)),
        ("rss_mib", {"supervisor": 900}),
    ],
)
def test_every_change_of_the_host_is_seen(field, value):
    plain = {
        "mounts": "m", "settings": {}, "ipc": {"sysvipc/shm": 1}, "canaries": {},
        "listeners": frozenset(), "groups": 0, "sandboxes": 1, "processes": {"in a sandbox": 2},
        "descriptors": {"supervisor": 40}, "namespaces": {"net": 3}, "shared_ids": (),
        "rss_mib": {"supervisor": 30},
    }  # fmt: skip
    before = host.Snapshot(**plain)
    assert host.differences(before, host.Snapshot(**plain)) == []
    assert host.differences(before, host.Snapshot(**{**plain, field: value}))


def test_progress_is_told_without_a_terminal_too(capsys):
    """`--local` said nothing for minutes."""
    progress = command._progress(25)
    for _ in range(25):
        progress(Outcome(case=CASE, state="held"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "sandrun selftest: 25 of 25 cases have ended"
