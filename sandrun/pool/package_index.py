"""Where packages come from: the operator's settings, else those of the host's pip.
Runs as: root (supervisor). Reads configuration files.

A host behind a mirror has usually told pip so already, in the environment or in
a pip.conf; then sandrun works without being told again. Settings in the
``[packages]`` section replace pip's as a whole: mixing two lists of indexes would
let a name of one shadow the other's.

URLs may hold passwords: they reach the installer in its environment (argv is
readable by every user of the host), and are cut from every text (:func:`redact`).
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from sandrun.config import Packages

# Up to the last @ before the path: a password may hold one.
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/?#\s]+@")
_CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXY_VARIABLES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_YES: Final = ("1", "true", "yes", "on")


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides which distribution a requirement line means."""

    index_url: str = ""  # "": the installer's own default
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    offline: bool = False
    best_match: bool = False  # of all indexes, as pip does it; else the first that has the name
    constraints: tuple[str, ...] = ()  # files
    ca_file: str = ""
    trusted_hosts: tuple[str, ...] = ()
    proxy: dict[str, str] = {}  # variable → value

    @property
    def urls(self) -> tuple[str, ...]:
        """Every place that is named."""
        return tuple(filter(None, (self.index_url, *self.extra_index_urls, *self.find_links)))

    @property
    def uses_network(self) -> bool:
        """Whether anything but files is asked."""
        if self.offline:
            return False
        default = not self.index_url and not self.no_index
        return default or any(is_remote(url) for url in self.urls)

    @property
    def readable_paths(self) -> tuple[str, ...]:
        """Paths of the host that an installer must be able to read.

        An index in a directory often keeps its files beside itself (``../../files``),
        so it is the directory around the index that counts.
        """
        indexes = tuple(filter(None, (self.index_url, *self.extra_index_urls)))
        around = (os.path.dirname(local_path(u).rstrip("/")) for u in indexes if not is_remote(u))
        paths = [local_path(url) for url in (*indexes, *self.find_links) if not is_remote(url)]
        outer = sorted({path for path in (*around, *paths) if path.strip("/")})
        kept: list[str] = []
        for path in outer:  # sorted: what holds a path comes before it
            if not any(path == other or path.startswith(other + "/") for other in kept):
                kept.append(path.rstrip("/"))
        return tuple(kept)

    @property
    def remote_ports(self) -> tuple[int, ...]:
        """Ports that the settings name, 443 first."""
        ports = {
            urlsplit(url).port or (443 if url[4] == "s" else 80)
            for url in self.urls
            if is_remote(url)
        }
        return (443, *sorted(ports - {443}))

    @property
    def remote_hosts(self) -> tuple[str, ...]:
        """Hosts that the settings name, without duplicates."""
        hosts = (urlsplit(url).hostname for url in self.urls if is_remote(url))
        return tuple(dict.fromkeys(host for host in hosts if host))

    def environment(self) -> dict[str, str]:
        """The same, as the environment of uv."""
        env = {"UV_INDEX_STRATEGY": "unsafe-best-match" if self.best_match else "first-index"}
        if self.index_url:
            env["UV_DEFAULT_INDEX"] = self.index_url
        if self.extra_index_urls:
            env["UV_INDEX"] = " ".join(self.extra_index_urls)
        if self.find_links:
            env["UV_FIND_LINKS"] = ",".join(self.find_links)
        if self.no_index or (self.offline and not self.index_url):
            env["UV_NO_INDEX"] = "1"
        if self.offline:
            env["UV_OFFLINE"] = "1"
        if self.ca_file:
            env["SSL_CERT_FILE"] = self.ca_file
        if self.trusted_hosts:
            env["UV_INSECURE_HOST"] = " ".join(self.trusted_hosts)
        return env


def is_remote(url: str) -> bool:
    """Whether ``url`` needs a network."""
    return url.startswith(("http://", "https://"))


def local_path(url: str) -> str:
    """The path of a ``file:`` URL or of a plain path."""
    return unquote(urlsplit(url).path) if url.startswith("file:") else url


def redact(text: str) -> str:
    """``text`` without the user names and passwords of its URLs."""
    return _CREDENTIALS.sub("", text)


def discover(settings: Packages, environ: Mapping[str, str]) -> Index:
    """The operator's settings if there are any, else pip's."""
    proxy = {
        name: value
        for name in _PROXY_VARIABLES
        if (value := environ.get(name) or environ.get(name.lower()))
    }
    ca_file = settings.ca_file or next(filter(None, map(environ.get, _CA_VARIABLES)), "")
    if settings.index_url or settings.extra_index_urls or settings.find_links or settings.offline:
        return Index(
            index_url=settings.index_url,
            extra_index_urls=settings.extra_index_urls,
            find_links=settings.find_links,
            no_index=not settings.index_url and bool(settings.find_links),
            offline=settings.offline,
            constraints=(settings.constraints,) if settings.constraints else (),
            ca_file=ca_file,
            proxy=proxy,
        )
    pip = pip_settings(pip_files(environ), environ)
    constraints = (settings.constraints,) if settings.constraints else _words(pip, "constraint")
    return Index(
        index_url=pip.get("index-url", ""),
        extra_index_urls=_words(pip, "extra-index-url"),
        find_links=_words(pip, "find-links"),
        no_index=pip.get("no-index", "").lower() in _YES,
        best_match=True,
        constraints=tuple(path for path in constraints if Path(path).is_file()),
        ca_file=settings.ca_file or pip.get("cert", "") or ca_file,
        trusted_hosts=_words(pip, "trusted-host"),
        proxy={"HTTPS_PROXY": pip["proxy"], "HTTP_PROXY": pip["proxy"]}
        if "proxy" in pip
        else proxy,
    )


def pip_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """pip's configuration files, the least important first (pip: topics/configuration)."""
    override = environ.get("PIP_CONFIG_FILE", "")
    if override == os.devnull:
        return ()
    home = Path(environ.get("HOME", "/root"))
    system = environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path(directory, "pip/pip.conf") for directory in reversed(system.split(":"))]
    files += [Path("/etc/pip.conf"), home / ".pip/pip.conf", user / "pip/pip.conf"]
    return (*files, Path(override)) if override else tuple(files)


def pip_settings(files: Iterable[Path], environ: Mapping[str, str]) -> dict[str, str]:
    """What ``pip install`` would be told, by long option name without dashes."""
    found: dict[str, str] = {}
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for path in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself would refuse to run; it is not ours to repair
        for name, values in sections.items():
            if parser.has_section(name):
                values.update({_key(key): value for key, value in parser.items(name)})
    for values in sections.values():
        found.update(values)
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            found[_key(name.removeprefix("PIP_"))] = value
    return found


def _key(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def _words(settings: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(settings.get(key, "").split())
