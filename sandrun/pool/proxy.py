"""The one way out of a build sandbox: connections to the hosts of the index.
Runs as: an unprivileged uid in the host's network, under the job's seccomp filter.

It serves the listener that the build sandbox made in its own network namespace.
A client of it may name hosts, never addresses of its choice: a host must be on
the list, is resolved here, and every address that it resolves to must be outside
(a name of the outside must not lead to the inside: DNS rebinding, metadata
services). We connect to the very address that was checked.

The list holds the hosts that the index settings name, and the hosts to which the
index's own pages point for their files: they are read once, when a host is asked
for that is not on the list yet.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - late imports could not be read as our uid
import contextlib
import email.parser  # noqa: F401
import encodings.idna  # noqa: F401
import http.client
import ipaddress
import os
import re
import signal
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import msgspec

from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import PR

_HEAD_BYTES: Final = 16 * 1024
_HEAD_TIMEOUT_S: Final = 10.0
_CONNECT_TIMEOUT_S: Final = 15.0
_IDLE_TIMEOUT_S: Final = 60.0
_PAGE_BYTES: Final = 16 * 1024 * 1024  # the largest index pages have 5 MB
_CHUNK: Final = 64 * 1024
_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_LINK: Final = re.compile(r"""(?:href="|href='|"url"\s*:\s*")([^"'#]+)""")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a proxy is started with, as JSON on its standard input."""

    hosts: tuple[str, ...]  # may be asked for from the start
    private_hosts: tuple[str, ...] = ()  # may also have addresses of private networks
    index_urls: tuple[str, ...] = ()  # whose pages name further hosts
    projects: tuple[str, ...] = ()  # of which pages are read for that
    ports: tuple[int, ...] = (443,)
    ca_file: str = ""
    upstream: str = ""  # the host's own proxy, "http://HOST:PORT"


class Refused(Exception):
    """The connection is not one that may be made."""


def parse_target(line: str) -> tuple[str, str, int, str]:
    """Request line → (method, host, port, path). Raises :class:`Refused`."""
    parts = line.split(" ")
    if len(parts) != 3:
        raise Refused("not a request line")
    method, target, _ = parts
    try:
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise Refused("not an address") from error
    if not host or (method != "CONNECT" and (method != "GET" or url.scheme != "http")):
        raise Refused("only CONNECT, and GET of http: addresses")
    path = url.path + (f"?{url.query}" if url.query else "")
    return method, host.lower().rstrip("."), port or (443 if method == "CONNECT" else 80), path


def is_outside(address: Address) -> bool:
    """Whether the address is beyond this host and its private networks.

    The documentation ranges (TEST-NET) count as outside: no host's network uses
    them, and walled-in machines give their mirrors such addresses.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_outside(inner)
    return not any(address in network for network in _INSIDE if network.version == address.version)


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# IANA's special-purpose registries, without the documentation ranges.
_INSIDE: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",  # metadata services of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "224.0.0.0/4",
            "240.0.0.0/4",
            # Global unicast is 2000::/3: what is beside it, such as the old ways to write
            # IPv4 (::, ::ffff:0:0:0/96), is nobody's whom an index may have for a host.
            "::/3",
            "4000::/2",
            "8000::/1",
            "2001::/23",  # Teredo and its like lead to any IPv4 address
        ),
    )
)


def links_hosts(page: str, base: str) -> frozenset[str]:
    """Hosts to which the links of an index page (HTML or JSON) lead."""
    hosts = set()
    for link in _LINK.findall(page):
        with contextlib.suppress(ValueError):
            url = urlsplit(urljoin(base, link))
            if url.scheme == "https" and url.hostname:
                hosts.add(url.hostname.lower())
    return frozenset(hosts)


def addresses_outside(host: str, found: list[str], settings: Settings) -> list[str]:
    """``found``, each once. Raises :class:`Refused` if one of them is of a private network."""
    addresses = list(dict.fromkeys(found))
    if host not in settings.private_hosts:
        for address in addresses:
            if not is_outside(ipaddress.ip_address(address.partition("%")[0])):
                raise Refused(
                    f"{host} leads to {address}, an address of a private network, and is "
                    "not among [packages] private_hosts"
                )
    return addresses


class _SameHosts(urllib.request.HTTPRedirectHandler):
    """An index may redirect to itself, never to a host that the settings do not name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        url = urlsplit(newurl)
        if url.hostname not in self._settings.hosts or url.scheme not in ("http", "https"):
            raise OSError(0, f"a redirect to {url.hostname}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connector(settings: Settings) -> Callable[..., socket.socket]:
    """Our own reads of the index keep to the rule that installers are held to."""

    def connect(
        address: tuple[str, int], timeout: float = _CONNECT_TIMEOUT_S, *_: object
    ) -> socket.socket:
        host, port = address
        if settings.upstream:
            return socket.create_connection(address, timeout)
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        try:
            first = addresses_outside(host, [str(e[4][0]) for e in entries], settings)[0]
        except Refused as error:
            raise OSError(0, str(error)) from error
        return socket.create_connection((first, port), timeout)

    return connect


def make_opener(settings: Settings) -> urllib.request.OpenerDirector:
    """For :func:`read_index`; reads the certificates, so it is made while still root."""
    context = ssl.create_default_context(cafile=settings.ca_file or None)
    proxies = {"https": settings.upstream, "http": settings.upstream} if settings.upstream else {}
    connect = _connector(settings)

    class Plain(http.client.HTTPConnection):
        def __init__(self, host: str, **more: Any) -> None:
            super().__init__(host, timeout=more.get("timeout"))
            self._create_connection = connect  # the base sets it per object

    class Secure(http.client.HTTPSConnection):
        def __init__(self, host: str, **more: Any) -> None:
            super().__init__(host, context=context, timeout=more.get("timeout"))
            self._create_connection = connect

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req)

    return urllib.request.build_opener(
        PlainHandler(), SecureHandler(), urllib.request.ProxyHandler(proxies), _SameHosts(settings)
    )


def read_index(settings: Settings, opener: urllib.request.OpenerDirector) -> frozenset[str]:
    """Hosts that the pages of the wanted projects name. Blocks."""
    found: set[str] = set()
    for index in settings.index_urls:
        for project in settings.projects[:3]:
            url = f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', project).lower()}/"
            request = urllib.request.Request(url, headers={"Accept": _ACCEPT})  # noqa: S310 - http(s) only
            with contextlib.suppress(OSError, ValueError), opener.open(request, timeout=15) as page:
                text = page.read(_PAGE_BYTES).decode("utf-8", "replace")
                found |= links_hosts(text, page.url)
                break
    return frozenset(found)


class Proxy:
    """Serves one listener until it is killed."""

    def __init__(self, settings: Settings, read: Callable[[], frozenset[str]]) -> None:
        self.settings = settings
        self.hosts = set(settings.hosts)
        self._read = read
        self._learning = asyncio.Lock()
        self._learned = False

    async def may(self, host: str, port: int) -> bool:
        """Whether ``host`` is on the list, reading the index first if it must be."""
        if port not in self.settings.ports:
            return False
        if host not in self.hosts:
            async with self._learning:
                if not self._learned:
                    loop = asyncio.get_running_loop()
                    self.hosts |= await loop.run_in_executor(None, self._read)
                    self._learned = True
        return host in self.hosts

    async def resolve(self, host: str, port: int) -> list[str]:
        """Addresses of ``host``; all must be outside. Raises :class:`Refused`."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Refused(f"{host}: {error.strerror or error}") from error
        return addresses_outside(host, [str(entry[4][0]) for entry in found], self.settings)

    async def connect(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to an allowed host. Raises :class:`Refused`."""
        if not await self.may(host, port):
            raise Refused(f"{host}:{port} does not belong to the package index")
        if self.settings.upstream:
            return await self._through_upstream(host, port)
        error: Exception = Refused(f"{host} has no address")
        for address in await self.resolve(host, port):
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(address, port)
            except (OSError, TimeoutError) as caught:
                error = caught
        raise Refused(f"{host}: {error or 'no answer'}") from error

    async def _through_upstream(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """By way of the host's own proxy, which then does the resolving."""
        upstream = urlsplit(self.settings.upstream)
        try:
            reader, writer = await asyncio.open_connection(upstream.hostname, upstream.port or 3128)
            writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Refused(f"the host's proxy: {error}") from error
        if b" 200" not in head.split(b"\r\n", 1)[0]:
            writer.close()
            raise Refused(f"the host's proxy refuses {host}")
        return reader, writer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of an installer."""
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            line, _, rest = head.decode("latin-1").partition("\r\n")
            method, host, port, path = parse_target(line)
            far_reader, far_writer = await self.connect(host, port)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.close()
            return
        except Refused as error:
            print(f"the proxy refused: {error}", file=sys.stderr, flush=True)
            text = f"{error}\n".encode()
            writer.write(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(text), text))
            writer.close()
            return
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            far_writer.write(_origin_form(path, rest))
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


def _origin_form(path: str, headers: str) -> bytes:
    """The head of a plain request as its server expects it, one per connection."""
    kept = [
        line
        for line in headers.split("\r\n")
        if line and line.partition(":")[0].lower() not in ("connection", "proxy-connection")
    ]
    return "\r\n".join((f"GET {path or '/'} HTTP/1.1", *kept, "Connection: close", "", "")).encode(
        "latin-1"
    )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            async with asyncio.timeout(_IDLE_TIMEOUT_S):
                data = await reader.read(_CHUNK)
            if not data:
                break
            writer.write(data)
            await writer.drain()
    except (OSError, TimeoutError):
        pass
    finally:
        with contextlib.suppress(OSError):
            writer.close()


def _give_up_privileges(uid: int, program: bytes) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)  # a change of ids clears it
    libc.prctl(PR.SET_NO_NEW_PRIVS, 1)
    libc.load_filter(program)


async def _main(
    listener: socket.socket, settings: Settings, opener: urllib.request.OpenerDirector
) -> None:
    proxy = Proxy(settings, lambda: read_index(settings, opener))
    server = await asyncio.start_server(proxy.serve, sock=listener, limit=_HEAD_BYTES)
    await server.serve_forever()


def main() -> None:
    """``proxy LISTENER_FD UID``; settings on stdin, the seccomp program after them."""
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
    libc.set_name("sandrun-proxy")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the supervisor's to handle
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.set_inheritable(False)
    settings, program = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=tuple[Settings, bytes])
    opener = make_opener(settings)
    _give_up_privileges(int(sys.argv[2]), program)
    asyncio.run(_main(listener, settings, opener))


if __name__ == "__main__":
    main()
