"""What is asked for, from where, and through which way out."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun import config, requirements
from sandrun.config import Packages
from sandrun.messages import Package
from sandrun.pool import environments, package_index, proxy
from sandrun.pool import workshop as workshops
from sandrun.pool.environments import Python, Record
from sandrun.pool.package_index import Index
from sandrun.pool.workshop import PackageError, Workshop
from sandrun.requirements import RequirementsError

# ── requirement lines ────────────────────────────────────────────────────────


def test_lines_come_out_normalised_sorted_and_once():
    text = "\ufeffnumpy >= 2 # fast\n\n# nothing\npandas[excel]\\\n ==3.0; python_version>'3.8'\nnumpy>=2\n"
    assert requirements.parse(text) == (
        "numpy>=2",
        'pandas[excel]==3.0; python_version > "3.8"',
    )


@pytest.mark.parametrize(
    "line",
    [
        "-r /etc/passwd",
        "--index-url https://example.org/simple",
        "numpy --hash=sha256:00",
        "-e .",
        "--find-links=/",
        "pkg @ file:///etc/passwd",
        "pkg@https://example.org/pkg.whl",
        "git+https://example.org/x",
        "./local",
        "/abs/pkg-1-py3-none-any.whl",
        "../up",
        "~/x",
        "pkg-1-py3-none-any.whl",
        "numpy==",
        "numpy 2",
        "${HOME}",
        "a" * 600,
        "numpy; python_version",
        "numpy===1\\\\",  # a backslash that would continue the line for the installer
        "numpy===${UV_DEFAULT_INDEX}",
        "numpy; os_name == 'a\t--hash=sha256:00'",
    ],
)
def test_what_is_not_a_plain_requirement_is_refused_with_its_line(line):
    with pytest.raises(RequirementsError) as caught:
        requirements.parse(f"six\n\n{line}\n")
    assert caught.value.line == 3
    assert str(caught.value).startswith("line 3: ")


def test_too_much_is_refused():
    with pytest.raises(RequirementsError):
        requirements.parse("\n".join(f"package{number}" for number in range(501)))
    with pytest.raises(RequirementsError):
        requirements.parse("#" * (64 * 1024 + 1))
    with pytest.raises(RequirementsError, match="versions and markers"):
        requirements.parse("\n".join(f"p{number}{'>=1,' * 100}>=1" for number in range(40)))


def test_a_comment_begins_at_the_start_or_behind_a_blank():
    text = "# one\nsix #two\nsix\t# three # four\nsix #\n \\\n# five\n"
    assert requirements.parse(text) == ("six",)
    with pytest.raises(RequirementsError, match="line 1"):
        requirements.parse("six#1")


def test_blanks_are_read_once():
    """A regular expression looked at the rest of the line from each of them."""
    assert requirements.parse(f"six{' ' * 60_000}\n{' #' * 3}{'#' * 3000}") == ("six",)


@given(st.text(max_size=300))
def test_whatever_is_accepted_is_clean(text):
    try:
        lines = requirements.parse(text)
    except RequirementsError:
        return
    for line in lines:
        assert not line.startswith("-")
        assert "\n" not in line
        assert "://" not in line
        assert " @ " not in line
    assert requirements.parse("\n".join(lines)) == lines


# ── the index ────────────────────────────────────────────────────────────────


def test_pips_files_and_variables_are_read_in_pips_order(tmp_path):
    (tmp_path / "a.conf").write_text("[global]\nindex-url = http://a/\nfind_links = /x\n  /y\n")
    (tmp_path / "b.conf").write_text("[install]\nindex-url = http://b/\n[global]\ntimeout = 3\n")
    files = [tmp_path / "a.conf", tmp_path / "b.conf", tmp_path / "none.conf"]
    settings = package_index.pip_settings(files, {"PIP_EXTRA_INDEX_URL": "http://c/ http://d/"})
    assert settings["index-url"] == "http://b/"
    assert settings["find-links"].split() == ["/x", "/y"]
    assert settings["extra-index-url"] == "http://c/ http://d/"


def test_a_broken_file_of_pips_is_passed_over(tmp_path):
    (tmp_path / "a.conf").write_text("index-url = no section\n")
    assert package_index.pip_settings([tmp_path / "a.conf"], {}) == {}


def test_pips_settings_hold_until_the_operator_gives_some(tmp_path):
    environ = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "https://mirror.test/simple"}
    found = package_index.discover(Packages(), environ)
    assert (found.index_url, found.best_match) == ("https://mirror.test/simple", True)
    own = package_index.discover(Packages(find_links=("/wheels",), offline=True), environ)
    assert own.urls == ("/wheels",)
    assert not own.uses_network
    assert own.environment()["UV_NO_INDEX"] == "1"


def test_without_any_setting_the_installers_own_index_is_asked():
    found = package_index.discover(Packages(), {"PIP_CONFIG_FILE": os.devnull})
    assert found.urls == ()
    assert found.uses_network
    assert set(found.environment()) == {"UV_INDEX_STRATEGY"}


def test_pips_configuration_files_are_found_where_pip_has_them():
    paths = package_index.pip_files({"HOME": "/h", "PIP_CONFIG_FILE": "/own.conf"})
    assert Path("/etc/pip.conf") in paths
    assert Path("/h/.config/pip/pip.conf") in paths
    assert paths[-1] == Path("/own.conf")
    assert package_index.pip_files({"PIP_CONFIG_FILE": os.devnull}) == ()


def test_the_directory_around_a_local_index_is_readable_too():
    index = Index(index_url="file:///opt/pypi/simple", find_links=("/opt/pypi/files", "/w/"))
    assert index.readable_paths == ("/opt/pypi", "/w")


def test_an_index_below_the_root_does_not_open_the_root():
    assert Index(find_links=("/wheels",), index_url="file:///simple").readable_paths == (
        "/simple",
        "/wheels",
    )


def test_passwords_are_cut_from_texts_and_hosts_are_found_without_them():
    url = "https://user:secret@mirror.test:8443/simple"
    assert package_index.redact(f"cannot reach {url}") == (
        "cannot reach https://mirror.test:8443/simple"
    )
    index = Index(index_url=url)
    assert index.remote_hosts == ("mirror.test",)
    assert index.remote_ports == (443, 8443)


# ── inputs, locks, directories ───────────────────────────────────────────────

PYTHON = Python(program="/usr/bin/python3.11", version="3.11.2", abi="cpython-311")


def test_inputs_change_with_what_is_asked_for_and_not_with_a_password():
    def of(*lines, python=PYTHON, **index):
        return environments.inputs_hash(lines, python, Index(**index))

    plain = of("a")
    assert of("a") == plain
    assert of("b") != plain
    assert of("a", python=Python(program="/usr/bin/python3", version="3.12.0", abi="x")) != plain
    assert of("a", find_links=("/w",)) != plain
    assert of("a", index_url="https://u:one@m.test/") == of("a", index_url="https://u:two@m.test/")


def test_the_servers_own_python_is_never_taken(tmp_path):
    (tmp_path / "away").mkdir()
    fake = tmp_path / "away" / "python9"
    fake.write_text("#!/bin/sh\necho cpython 3 9 9 x\n")
    fake.chmod(0o755)
    with pytest.raises(PackageError, match="no python9 on"):
        environments.find_python("python9", str(tmp_path / "away"))


def test_what_is_not_a_cpython_is_refused():
    with pytest.raises(PackageError, match="not a CPython"):
        environments.find_python("sh")


def test_a_store_knows_the_builds_of_a_name_and_prunes_the_others(tmp_path):
    store = environments.Store(str(tmp_path))
    store.open()
    for name, lock in (("data", "a==1"), ("data", "a==2"), ("data-science", "a==1")):
        built = tmp_path / f"built-{lock}"
        built.mkdir()
        package = Package(name="a", version=lock[-1])
        record = Record(inputs=lock, lock=lock, python=PYTHON, packages=(package,))
        kept = store.adopt(built, name, record)
    assert {record.lock for _, record in store.of("data")} == {"a==1", "a==2"}
    assert [path for path, _ in store.of("data-science")] == [kept]
    newest = next(path for path, record in store.of("data") if record.lock == "a==2")
    store.prune("data", newest)
    assert [path for path, _ in store.of("data")] == [newest]
    assert len(store.of("data-science")) == 1


def test_what_a_killed_builder_left_is_swept_and_one_at_work_is_not(tmp_path):
    store = environments.Store(str(tmp_path / "not" / "there"))
    assert store.sweep() == []
    store = environments.Store(str(tmp_path))
    left = tmp_path / ".build-killed"
    (left / "cache").mkdir(parents=True)
    (tmp_path / ".build-link").symlink_to("/etc")
    with Workshop(tmp_path, os.geteuid()) as workshop:
        assert store.sweep() == [left.name]
        assert workshop.path.is_dir()
        assert not left.exists()
    assert not workshop.path.exists()
    assert Path("/etc/passwd").exists()


def test_a_half_made_directory_is_no_build(tmp_path):
    store = environments.Store(str(tmp_path))
    (tmp_path / f"data-{'0' * 32}").mkdir()
    assert store.of("data") == []


def test_a_password_with_an_at_is_cut_whole():
    said = package_index.redact("https://u:p@ss@host/x@y http://v@h?a@b ssh://w:z@h:1/")
    assert said == "https://host/x@y http://h?a@b ssh://h:1/"


# ── what came out of strangers' archives ─────────────────────────────────────


def nest(directory: Path, levels: int) -> None:
    """Directories in each other, deeper than any path is long."""
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("a", dir_fd=at)
        below = os.open("a", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)


@pytest.fixture
def in_memory():
    """A directory in memory, as builds have: three thousand levels take a disk ten seconds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_a_tree_of_any_depth_is_removed_and_no_link_followed(in_memory):
    top = in_memory / "top"
    (top / ".1").mkdir(parents=True)  # the names that it moves to are taken
    (top / ".2").mkdir()
    (top / ".2" / "full").mkdir()
    (top / ".3").write_text("x")
    nest(top, 3000)
    kept = in_memory / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (top / "a" / "link").symlink_to(kept)
    os.mkfifo(top / "fifo")
    workshops.remove_tree(top)
    assert sorted(in_memory.iterdir()) == [kept]
    (in_memory / "link").symlink_to(kept)
    workshops.remove_tree(in_memory / "link")
    workshops.remove_tree(in_memory / "not there")
    assert (kept / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
def test_a_tree_too_deep_or_with_too_many_files_is_not_sealed(in_memory, monkeypatch):
    (in_memory / "deep").mkdir()
    nest(in_memory / "deep", 1500)
    with pytest.raises(PackageError, match="100 directories"):
        workshops.seal(in_memory / "deep")
    (in_memory / "fair").mkdir()
    nest(in_memory / "fair", 99)
    workshops.seal(in_memory / "fair")
    monkeypatch.setattr(workshops, "MAX_ENTRIES", 99)
    with pytest.raises(PackageError, match="99 files"):
        workshops.seal(in_memory / "fair")
    workshops.remove_tree(in_memory / "deep")


def test_metadata_is_read_for_a_name_and_no_further(tmp_path):
    def make(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    make("one-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: One\nVersion: 1\n\nName: no")
    make("two.egg-info", "Name: two\nVersion: 2\nName: other\n")
    make("three.egg-info/PKG-INFO", f"Name: three\n{'Classifier: a' * 2000}\nVersion: 3\n")
    make("four.dist-info/METADATA", "x" * 20_000)
    (tmp_path / "five.dist-info").symlink_to(tmp_path / "one-1.dist-info/METADATA")
    (tmp_path / "six.dist-info").mkdir()
    os.mkfifo(tmp_path / "six.dist-info" / "METADATA")
    assert environments.packages(tmp_path) == (
        Package(name="One", version="1"),
        Package(name="three", version=""),
        Package(name="two", version="2"),
    )


def test_a_file_is_given_beside_what_an_installer_left_in_its_place(tmp_path):
    away = tmp_path / "away"
    away.write_text("untouched")
    with Workshop(tmp_path, os.geteuid()) as workshop:
        (workshop.work / "lock").symlink_to(away)
        assert workshop.give("lock", "given") == "/build/lock"
        assert (workshop.work / "lock").read_text() == "given"
        (workshop.work / "answer").symlink_to(away)
        with pytest.raises(PackageError):
            workshop.take("answer", 100)
        assert workshop.take("lock", 5) == "given"
        with pytest.raises(PackageError):
            workshop.take("lock", 4)
    assert away.read_text() == "untouched"


# ── the proxy ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("CONNECT Mirror.test:443 HTTP/1.1", ("CONNECT", "mirror.test", 443, "")),
        ("CONNECT [2001:db8::1]:443 HTTP/1.1", ("CONNECT", "2001:db8::1", 443, "")),
        (
            "GET http://mirror.test/simple/a/?x=1 HTTP/1.1",
            ("GET", "mirror.test", 80, "/simple/a/?x=1"),
        ),
    ],
)
def test_a_target_is_read(line, wanted):
    assert proxy.parse_target(line) == wanted


@pytest.mark.parametrize(
    "line",
    [
        "",
        "GET / HTTP/1.1",
        "POST http://mirror.test/ HTTP/1.1",
        "GET file:///etc/passwd HTTP/1.1",
        "GET https://mirror.test/ HTTP/1.1",
        "CONNECT :443 HTTP/1.1",
        "CONNECT mirror.test:99999 HTTP/1.1",
        "CONNECT [::1 HTTP/1.1",
    ],
)
def test_what_is_not_a_target_is_refused(line):
    with pytest.raises(proxy.Refused):
        proxy.parse_target(line)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.0.8",
        "::", "::1", "::7f00:1", "fe80::1", "fc00::1", "ff02::1", "fec0::1",
        "::ffff:0:7f00:1", "4000::1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1", "2001::1",
    ],
)  # fmt: skip
def test_inside_addresses(address):
    assert not proxy.is_outside(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "203.0.113.80", "2606:4700::1", "::ffff:1.1.1.1"])
def test_outside_addresses(address):
    assert proxy.is_outside(ipaddress.ip_address(address))


def test_links_of_an_index_page_name_the_hosts_of_its_files():
    html = '<a href="https://files.test/a.whl#sha256=0">a</a> <a href="../../f/b.whl">b</a>'
    assert proxy.links_hosts(html, "https://index.test/simple/a/") == {"files.test", "index.test"}
    json = '{"files":[{"url": "https://cdn.test/x.whl"}, {"url":"http://clear.test/y.whl"}]}'
    assert proxy.links_hosts(json, "https://index.test/simple/a/") == {"cdn.test"}


def settings(**values) -> proxy.Settings:
    return proxy.Settings(**{"hosts": ("index.test",), **values})


def test_a_host_is_on_the_list_or_named_by_the_index_which_is_read_once():
    reads = []

    def read():
        reads.append(1)
        return frozenset({"files.test"})

    async def ask():
        found = proxy.Proxy(settings(), read)
        answers = [await found.may(host, 443) for host in ("index.test", "files.test", "evil.test")]
        return [*answers, await found.may("index.test", 22)]

    assert asyncio.run(ask()) == [True, True, False, False]
    assert len(reads) == 1


def test_an_allowed_name_that_leads_inside_is_refused_unless_the_operator_says_so(monkeypatch):
    def rebound(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", rebound)

    async def resolve(**values):
        return await proxy.Proxy(settings(**values), frozenset).resolve("index.test", 443)

    with pytest.raises(proxy.Refused, match=r"leads to 10\.0\.0\.7"):
        asyncio.run(resolve())
    assert asyncio.run(resolve(private_hosts=("index.test",))) == ["10.0.0.7"]


def test_one_inside_address_among_many_is_enough_to_refuse(monkeypatch):
    found = [(2, 1, 6, "", (address, 443)) for address in ("1.1.1.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(proxy.Refused):
        asyncio.run(proxy.Proxy(settings(), frozenset).resolve("index.test", 443))


def test_bytes_go_both_ways_through_the_proxy_and_a_strange_host_gets_403():
    async def far(reader, writer):
        writer.write((await reader.readline()).upper())
        writer.close()

    async def talk(port, target):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hello\n")
        rest = await reader.read()
        writer.close()
        return head.split(b"\r\n")[0], rest

    async def main():
        server = await asyncio.start_server(far, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        allowed = settings(hosts=("localhost",), private_hosts=("localhost",), ports=(port,))
        way = await asyncio.start_server(proxy.Proxy(allowed, frozenset).serve, "127.0.0.1", 0)
        here = way.sockets[0].getsockname()[1]
        answers = [await talk(here, f"localhost:{port}"), await talk(here, f"other.test:{port}")]
        for one in (way, server):
            one.close()
            await one.wait_closed()
        return answers

    good, bad = asyncio.run(main())
    assert good == (b"HTTP/1.1 200 Connection established", b"HELLO\n")
    assert bad[0] == b"HTTP/1.1 403 Forbidden"
    assert b"does not belong to the package index" in bad[1]


def test_a_plain_request_is_sent_on_in_origin_form_for_one_answer():
    head = proxy._origin_form("/simple/", "Host: m.test\r\nConnection: keep-alive\r\n\r\n")
    assert head == b"GET /simple/ HTTP/1.1\r\nHost: m.test\r\nConnection: close\r\n\r\n"


def test_our_own_reading_of_the_index_follows_no_name_inside(monkeypatch):
    """An index host that turns to a private address, or redirects to one, is not read."""
    asked = []

    async def main():
        async def inside(reader, writer):
            asked.append(await reader.readline())
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n<a href='https://stolen.test/a.whl'>a</a>")
            writer.close()

        async def index(reader, writer):
            await reader.readline()
            there = f"http://metadata.test:{port}/"
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {there}\r\n\r\n".encode())
            writer.close()

        secret = await asyncio.start_server(inside, "127.0.0.1", 0)
        port = secret.sockets[0].getsockname()[1]
        server = await asyncio.start_server(index, "127.0.0.1", 0)
        url = f"http://index.test:{server.sockets[0].getsockname()[1]}"

        def read(**values):
            wanted = settings(index_urls=(url,), projects=("a",), **values)
            return proxy.read_index(wanted, proxy.make_opener(wanted))

        found = [
            await asyncio.to_thread(read),  # the index itself is inside
            await asyncio.to_thread(read, private_hosts=("index.test", "metadata.test")),
        ]
        for one in (secret, server):
            one.close()
            await one.wait_closed()
        return found

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: real("127.0.0.1", *a, **k))
    assert asyncio.run(main()) == [frozenset(), frozenset()]
    assert asked == []


def test_a_script_among_the_interpreters_reserves_every_program_of_the_host(tmp_path, monkeypatch):
    """It starts others by name, outside of any job, when the pool asks for its version."""
    for name, text in (
        ("wrapped", "#!/bin/sh\nuname\n"),
        ("real", "\x7fELF"),
        ("uname", "\x7fELF"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(environments.mounts, "PATH", f"{tmp_path}:/nonexistent")

    def reserved(command):
        return environments.reserved_commands(
            config.parse(
                f'[interpreters.x]\ncommand = ["{command}"]\n[environments.default]\n'
                'interpreter = "x"\n'
            )
        )

    assert reserved("real") == {"real"}
    assert reserved("missing") == {"missing"}
    assert reserved("wrapped") == {"wrapped", "real", "uname"}
