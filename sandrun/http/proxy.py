"""Who the client is, when trusted proxies stand between us. Pure.

A proxy is believed only if the operator named its network in ``trusted_proxies``;
the peer of a Unix socket is believed too, since the socket's permissions decide
who that can be. Everybody else's Forwarded, X-Forwarded-For and PROXY headers are
the client's own words and are ignored.

The chain of hops is read from our end and ends at the first one that is not
trusted: what stands left of it, that one made up or passed on unseen. A request
that carries both Forwarded and X-Forwarded-For is refused: a proxy writes one of
them and lets the client's own other one through, and we cannot tell which. So is a
malformed Forwarded: with a quote that it leaves open, a client could swallow what the
proxy appends, and would be taken for the proxy.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, NoReturn

from sandrun.errors import ProtocolError
from sandrun.http.exchange import Headers
from sandrun.http.framing import refuse

MAX_HOPS: Final = 16
PROXY_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_HEADER_BYTES: Final = 16  # signature, version and command, family, length
MAX_PROXY_BYTES: Final = PROXY_HEADER_BYTES + 2048  # addresses need 36, the rest is TLVs

_FORWARDED_PAIR: Final = re.compile(
    r'\s*([A-Za-z0-9!#$%&\'*+.^_`|~-]+)=("(?:[^"\\]|\\.)*"|[^\s",;]*)\s*'
)


class Client(NamedTuple):
    """``address`` is canonical text, ``""`` when unknown. ``secure``: said to use TLS."""

    address: str
    via_proxy: bool
    secure: bool


class TrustedProxies:
    """The networks of the configuration."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text) for text in networks]

    def trusts(self, address: str) -> bool:
        """``address`` is canonical text; "" (a Unix socket) is trusted."""
        if not address:
            return True
        if not self._networks:
            return False
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._networks)

    def client(self, peer: str, headers: Headers, *, secure: bool) -> Client:
        """Who sent this request. Raises :class:`RequestError` 400 if that is ambiguous."""
        if not self.trusts(peer):
            return Client(peer, via_proxy=False, secure=secure)
        forwarded = headers.get("forwarded")
        listed = headers.get("x-forwarded-for")
        if forwarded is not None and listed is not None:
            refuse(
                400,
                "ambiguous_client",
                "the proxy let both Forwarded and X-Forwarded-For through; it must drop one",
            )
        if forwarded is not None:
            return self._walk(peer, _forwarded_hops(forwarded), secure=secure)
        if listed is None:
            return Client(peer, via_proxy=False, secure=secure)
        proto = (headers.get("x-forwarded-proto") or "").rpartition(",")[2].strip().lower()
        hops = [(text.strip(), proto) for text in listed.split(",")]
        return self._walk(peer, hops, secure=secure)

    def _walk(self, peer: str, hops: Sequence[tuple[str, str]], *, secure: bool) -> Client:
        address = peer
        via_proxy = False
        for text, proto in reversed(hops[-MAX_HOPS:]):
            if not self.trusts(address):
                break
            hop = parse_hop(text)
            if hop is None:
                break  # "unknown" or made up: the last hop we can name stands for it
            address = hop
            via_proxy = True
            secure = proto == "https" if proto else secure
        return Client(address, via_proxy, secure)


def canonical(address: str) -> str:
    """Text of an IP address without zone; IPv4 in IPv6 as IPv4. Raises ValueError."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)


def parse_hop(text: str) -> str | None:
    """``1.2.3.4``, ``1.2.3.4:80``, ``2001:db8::1``, ``[2001:db8::1]:80`` → address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return canonical(text)
    except ValueError:
        return None


def _forwarded_hops(value: str) -> list[tuple[str, str]]:
    """RFC 7239 → (for, proto) of each hop; a hop without a usable ``for`` gives "".

    Raises :class:`RequestError` 400.
    """
    hops: list[tuple[str, str]] = []
    hop: dict[str, str] = {}
    at = 0
    while at < len(value):
        found = _FORWARDED_PAIR.match(value, at)
        if found is None:
            _malformed()
        name, text = found.groups()
        hop[name.lower()] = text[1:-1] if text.startswith('"') else text
        at = found.end()
        if at == len(value) or value[at] == ",":
            hops.append((hop.get("for", ""), hop.get("proto", "").lower()))
            hop = {}
        elif value[at] != ";":
            _malformed()
        at += 1
    return hops


def _malformed() -> NoReturn:
    refuse(400, "ambiguous_client", "the Forwarded field is malformed: the proxy must replace it")


class ProxyHeader(NamedTuple):
    """A PROXY protocol v2 header: ``size`` bytes, and the address it names (None: LOCAL)."""

    size: int
    address: str | None


def may_be_proxy_header(data: bytes | bytearray) -> bool:
    """Whether ``data`` begins, as far as it goes, like a PROXY v2 header."""
    return PROXY_SIGNATURE.startswith(data[: len(PROXY_SIGNATURE)])


def parse_proxy_header(data: bytes | bytearray) -> ProxyHeader | None:
    """The header at the start of ``data``; None if it is not complete.

    Raises :class:`ProtocolError`. Source: haproxy's proxy-protocol.txt, 2.2.
    """
    if len(data) < PROXY_HEADER_BYTES:
        return None
    version_command, family, length = struct.unpack_from("!BBH", data, len(PROXY_SIGNATURE))
    size = PROXY_HEADER_BYTES + length
    if version_command >> 4 != 2 or version_command & 15 > 1 or size > MAX_PROXY_BYTES:
        raise ProtocolError(f"PROXY header {version_command:#x} of {length} bytes")
    if len(data) < size:
        return None
    if version_command & 15 == 0:  # LOCAL: the proxy's own health check
        return ProxyHeader(size, None)
    width = {1: 4, 2: 16}.get(family >> 4)
    if width is None:  # AF_UNSPEC, AF_UNIX: no address of a client
        return ProxyHeader(size, None)
    if length < 2 * width + 4:
        raise ProtocolError(f"PROXY header of family {family:#x} has {length} bytes")
    packed = bytes(data[PROXY_HEADER_BYTES : PROXY_HEADER_BYTES + width])
    return ProxyHeader(size, canonical(str(ipaddress.ip_address(packed))))
