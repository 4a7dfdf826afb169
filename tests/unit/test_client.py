"""What the command line's client and the announcement say to who tries them."""

import http.server
import socketserver
import threading

import pytest

from sandrun.__main__ import Announcer
from sandrun.client import Client, ServerError


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status": "running"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def test_the_client_speaks_over_a_unix_socket(tmp_path):
    path = tmp_path / "s.sock"
    with socketserver.UnixStreamServer(str(path), Answers) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert Client(f"unix:{path}").status("job_x") == {"status": "running"}
        thread.join()


def test_where_nothing_listens_the_cure_is_told(tmp_path):
    with pytest.raises(ServerError, match="nothing listens there: start `python -m sandrun`"):
        Client(f"unix:{tmp_path}/none.sock").status("job_x")


def test_an_address_that_is_none_names_those_that_are():
    with pytest.raises(ServerError, match="unix:/PATH"):
        Client("localhost:8000")


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("http://127.0.0.1:8000", "curl -s http://127.0.0.1:8000/run "),
        ("unix:/run/s.sock", "curl -s --unix-socket /run/s.sock http://localhost/run "),
    ],
)
def test_the_command_that_is_announced_works_as_it_stands(capsys, url, command):
    """For a Unix socket it was ``curl unix:/run/s.sock/run``, which curl cannot read."""
    Announcer(sample=False)((url,))
    assert f"try: {command}" in capsys.readouterr().out
