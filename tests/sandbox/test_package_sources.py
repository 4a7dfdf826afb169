"""Where packages come from: pip's own settings, mirrors, directories; and where they may not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wheels

from sandrun import config
from sandrun.errors import HostError
from sandrun.messages import Install, Installed, InstallFailed
from sandrun.pool import environments, installer, installs, package_index, seccomp
from sandrun.pool.workshop import PackageError, Workshop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building a sandbox needs root")
OPEN = 'private_hosts = ["127.0.0.1"]\n'


@pytest.fixture(autouse=True)
def _uv():
    try:
        installer.find_uv()
    except HostError as error:
        pytest.skip(str(error))


class Quiet(SimpleHTTPRequestHandler):
    """A directory as an index: its listings are pages with links."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


class Stalling(Quiet):
    """Takes the request and never answers."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.rfile.read(1)  # until the other end goes


class Leading(Quiet):
    """Redirects everything to ``server.target``, or links to it."""

    def do_GET(self):
        self.server.asked.append(self.path)
        target = self.server.target
        body = f'<a href="{target}/alpha-1.0-py3-none-any.whl">alpha-1.0-py3-none-any.whl</a>'
        self.send_response(302 if self.server.redirects else 200)
        if self.server.redirects:
            self.send_header("Location", target + self.path)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@contextlib.contextmanager
def serving(handler, **attributes):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked, server.daemon_threads = [], True
    server.block_on_close = False
    for name, value in attributes.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def index(tmp_path):
    """A simple index with one wheel: (server, its URL)."""
    wheels.make(tmp_path / "site/simple/alpha", "alpha", "1.0")
    with serving(functools.partial(Quiet, directory=str(tmp_path / "site"))) as (server, url):
        yield server, f"{url}/simple"


class Pool:
    async def add_environment(self, name, environment, directory):
        pass

    def remove_environment(self, name):
        pass

    def is_idle(self, name):
        return True


def cache_of(tmp_path: Path, toml: str, environ: dict[str, str]) -> installs.Installs:
    settings = config.parse(f"[packages]\n{toml}")
    found = package_index.discover(settings.packages, environ)
    make = installs.installer_factory(settings, found, seccomp.job_program())
    (tmp_path / "cache").mkdir(exist_ok=True)
    return installs.Installs(settings, Pool(), tmp_path / "cache", make, found)


def install(cache, *lines):
    return asyncio.run(cache.install(Install(request=1, environment="default", lines=lines)))


def test_pips_environment_variable_is_enough(tmp_path, index):
    server, url = index
    answer = install(cache_of(tmp_path, OPEN, {"PIP_INDEX_URL": url}), "alpha")
    assert isinstance(answer, Installed), answer
    assert any(path.endswith(".whl") for path in server.asked)


def test_pips_configuration_file_is_enough(tmp_path, index):
    server, url = index
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {url}\n")
    environ = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "HOME": str(tmp_path)}
    answer = install(cache_of(tmp_path, OPEN, environ), "alpha")
    assert isinstance(answer, Installed), answer
    assert server.asked


def test_the_operators_mirror_wins_over_pips_settings(tmp_path, index):
    server, url = index
    environ = {"PIP_INDEX_URL": "http://other.test/simple"}
    answer = install(cache_of(tmp_path, f'index_url = "{url}"\n{OPEN}', environ), "alpha")
    assert isinstance(answer, Installed), answer
    assert server.asked


def test_a_mirror_on_a_private_address_must_be_named(tmp_path, index):
    server, url = index
    answer = install(cache_of(tmp_path, f'index_url = "{url}"\n', {}), "alpha")
    assert isinstance(answer, InstallFailed)
    assert "private network" in answer.reason
    assert server.asked == []


@pytest.mark.parametrize("redirects", [True, False])
def test_an_index_leads_to_no_port_and_no_host_that_is_not_its_own(tmp_path, redirects):
    """A file on another port of this host, by a link or by a redirect: it is not asked."""
    with serving(Quiet) as (secret, target):
        leading = serving(Leading, target=target, redirects=redirects)
        with leading as (server, url):
            answer = install(cache_of(tmp_path, f'index_url = "{url}"\n{OPEN}', {}), "alpha")
            assert server.asked
        assert isinstance(answer, InstallFailed)
        assert secret.asked == []


def test_a_link_to_a_metadata_service_is_refused(tmp_path):
    leading = serving(Leading, target="https://169.254.169.254", redirects=False)
    with leading as (_, url):
        answer = install(cache_of(tmp_path, f'index_url = "{url}"\n{OPEN}', {}), "alpha")
    assert isinstance(answer, InstallFailed)
    assert "169.254.169.254" in answer.reason


def test_an_index_that_stalls_is_cut_and_the_next_build_works(tmp_path, index):
    with serving(Stalling) as (server, url):
        toml = f'index_url = "{url}"\ninstall_timeout_s = 3.0\n{OPEN}'
        answer = install(cache_of(tmp_path, toml, {}), "alpha")
        assert server.asked
    assert isinstance(answer, InstallFailed)
    assert "longer than 3 s" in answer.reason
    assert list((tmp_path / "cache").iterdir()) == []
    after = install(cache_of(tmp_path, f'index_url = "{index[1]}"\n{OPEN}', {}), "alpha")
    assert isinstance(after, Installed), after


def digest(directory: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        found.update(str(path.relative_to(directory)).encode())
        found.update(path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
    return found.hexdigest()


def test_a_build_that_was_taken_over_reaches_no_other_installation(tmp_path, index):
    """As if the installer were the attacker's program: other results and other builds."""
    cache = cache_of(tmp_path, f'index_url = "{index[1]}"\n{OPEN}', {})
    answer = install(cache, "alpha")
    assert isinstance(answer, Installed), answer
    result = tmp_path / "cache" / answer.environment
    before = digest(result)
    one = cache._make_installer()
    with (
        Workshop(tmp_path / "cache", one.uid) as theirs,
        Workshop(tmp_path / "cache", one.uid) as workshop,
    ):
        theirs.give("lock.txt", "alpha==1.0\n")
        script = (
            f"for p in {result}/pyvenv.cfg {theirs.work}/lock.txt {tmp_path}/cache; do\n"
            "  if test -e $p; then echo SEEN $p; fi; echo x > $p && echo WRITTEN; done\n"
            f"find / -name {answer.environment} -exec echo SEEN ';' 2>/dev/null\n"
            "ls -A /opt/env | grep . && echo SEEN; kill -9 -1; exit 0\n"
        )
        try:
            said = one.run(workshop, (("/bin/sh", "-c", script),))
        except PackageError as error:
            said = str(error)
        assert (theirs.work / "lock.txt").read_text() == "alpha==1.0\n"
    assert "SEEN" not in said
    assert "WRITTEN" not in said
    assert digest(result) == before


def test_an_installer_that_is_taken_over_cannot_move_what_the_next_step_stands_on(tmp_path, index):
    """It puts links to the host where root, or its own next sandbox, would go through them."""
    cache = cache_of(tmp_path, f'index_url = "{index[1]}"\n{OPEN}', {})
    one = cache._make_installer()
    away = tmp_path / "away"
    away.mkdir()
    away.chmod(0o777)
    python = environments.find_python("python3")
    with Workshop(tmp_path / "cache", one.uid) as workshop:
        script = (
            "cd /build; rm -rf /dev/shm env shm tmp lock.txt.given\n"
            f"for n in env shm tmp lock.txt.given; do ln -s {away} $n; done\n"
            "ln -s /build /opt/env/lib; exit 0\n"
        )
        one.run(workshop, (("/bin/sh", "-c", script),))
        environments.install(one, workshop, python, "")
        said = one.run(workshop, (("/bin/sh", "-c", "ls -lA /dev/shm /opt; echo DONE"),))
        assert "DONE" in said
        assert not workshop.env.is_symlink()
        assert (workshop.env / "pyvenv.cfg").is_file()
    assert list(away.iterdir()) == []
    assert os.stat(away).st_uid == 0
