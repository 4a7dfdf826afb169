"""TOML → frozen structs, read once at start.

``config.example.toml`` lists every key with its default; a test compares it with
the defaults below. A wrong or unknown key is a :class:`ConfigError` that names
its path and what was expected.
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from sandrun.errors import ConfigError
from sandrun.job import MIB, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]

# A layer that an operator may waive by name, each at his own risk.
Layer = Literal["landlock", "swap"]
Mode = Literal["exec", "door", "fork"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Http(_Section, frozen=True):
    """Where and how clients reach us."""

    listen: str = "127.0.0.1:8000"  # "ADDR:PORT", "[V6]:PORT" or "unix:/PATH"
    tls_cert: str = ""  # PEM file; needed beyond loopback
    tls_key: str = ""
    trusted_proxies: tuple[str, ...] = ()  # addresses or networks that may say Forwarded:
    admin_listen: str = ""  # "ADDR:PORT" of /metrics; off when empty
    allowed_origins: tuple[str, ...] = ()  # web origins that may submit, beside our own
    max_upload_mb: Positive = 100  # of one request's body
    max_uploads_total_mb: Positive = 2048  # of all uploads held at once
    max_connections: Positive = 12_000
    max_connections_per_address: Positive = 512  # trusted proxies have no such cap
    head_timeout_s: Seconds = 10.0  # for a request's whole head
    body_min_rate_kb: Positive = 4  # KiB/s, averaged from the 10th second on
    idle_timeout_s: Seconds = 75.0  # of a keep-alive connection
    write_timeout_s: Seconds = 60.0  # without any progress


class Pool(_Section, frozen=True):
    """Ready zygotes."""

    ready: Positive = 4  # zygotes of each kind kept ready when idle
    ready_max: Positive = 32  # ceiling of a kind under load
    capacity: Positive = 64  # sandboxes with a job at once
    cpus: Annotated[float, msgspec.Meta(gt=0)] = 2.0  # CPU ceiling of one job
    disk_read_mb: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100  # MiB/s of all; 0: any
    uid_base: Annotated[int, msgspec.Meta(ge=65_536, le=2_000_000_000)] = 1_879_048_192
    waive: tuple[Layer, ...] = ()  # isolation layers to do without
    init: Literal["auto", "native", "python"] = "auto"  # what PID 1 of a sandbox is written in
    template_jobs: Positive = 1000  # a fork template is replaced after so many jobs
    template_seconds: Seconds = 600.0  # or after so long
    environments_dir: str = "/var/cache/sandrun/environments"
    drain_seconds: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    watchdog_seconds: Seconds = 60.0  # past a time-out, unpacking included; of our own's silence


class LimitValues(_Section, frozen=True):
    """One column of the manifest's limits, in the manifest's units."""

    timeout: Seconds = 300.0
    cpu_seconds: Seconds = 60.0
    memory_mb: Annotated[int, msgspec.Meta(ge=16)] = 512
    storage_mb: Positive = 100
    processes: Positive = 64
    open_files: Annotated[int, msgspec.Meta(ge=16)] = 256

    def as_limits(self, log_mb: int, output_mb: int) -> Limits:
        """The same in the units of :class:`sandrun.job.Limits`."""
        return Limits(
            timeout_s=self.timeout,
            cpu_seconds=self.cpu_seconds,
            memory_bytes=self.memory_mb * MIB,
            storage_bytes=self.storage_mb * MIB,
            processes=self.processes,
            open_files=self.open_files,
            log_bytes=log_mb * MIB,
            output_bytes=output_mb * MIB,
        )


class LimitsSection(_Section, frozen=True):
    """``[limits]``: what a manifest gets by default, and at most."""

    default: LimitValues = LimitValues()
    maximum: LimitValues = LimitValues(
        timeout=3600.0,
        cpu_seconds=300.0,
        memory_mb=2048,
        storage_mb=100,
        processes=256,
        open_files=1024,
    )
    log_mb: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    output_mb: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 100
    files: Positive = 10_000  # in one upload

    @property
    def defaults(self) -> Limits:
        """The default limits of a job."""
        return self.default.as_limits(self.log_mb, self.output_mb)

    @property
    def maxima(self) -> Limits:
        """The largest limits that a manifest may ask for."""
        return self.maximum.as_limits(self.log_mb, self.output_mb)


class RateLimit(_Section, frozen=True):
    """Fairness between clients without accounts."""

    enabled: bool = True
    cpu_seconds_per_minute: Seconds = 10.0
    concurrent_jobs: Positive = 2
    jobs_per_hour: Positive = 20
    queue_length: Positive = 1000  # jobs that wait, of all clients together
    queue_seconds: Seconds = 10.0  # the longest wait that a burst is accepted for


class Retention(_Section, frozen=True):
    """How long a finished job is kept, in seconds."""

    finished_seconds: Seconds = 3600.0
    failed_seconds: Seconds = 300.0
    total_mb: Positive = 2048  # of logs and outputs kept; the oldest go first


class Packages(_Section, frozen=True):
    """Where packages come from, and what jobs may have installed.

    Without an index, ``find_links`` or ``offline`` here, the settings of the
    host's pip hold (its environment variables and configuration files).
    """

    index_url: str = ""  # a mirror; may be a file: URL
    extra_index_urls: tuple[str, ...] = ()  # asked first; the first that has a name wins
    find_links: tuple[str, ...] = ()  # directories or pages with wheels
    offline: bool = False  # ask no network at all
    npm_registry: str = ""  # for node; "": those of the host's npm
    constraints: str = ""  # a constraints file
    ca_file: str = ""  # PEM file of the index's certificate authority
    file_hosts: tuple[str, ...] = ()  # hosts of files, beside those that the index names
    private_hosts: tuple[str, ...] = ()  # hosts that may have addresses of private networks
    requirements: bool = True  # whether jobs may bring a requirements.txt
    cache_mb: Positive = 2048  # of memory for what jobs had installed
    cache_environments: Positive = 8  # of jobs' own, kept ready at once
    install_timeout_s: Seconds = 120.0
    installs: Positive = 2  # at once


class Interpreter(_Section, frozen=True):
    """``[interpreters.NAME]``."""

    command: tuple[str, ...]  # argv prefix; [0] is looked up on the sandbox's PATH
    extensions: tuple[str, ...] = ()
    mode: Mode = "exec"
    ready: int = 0  # warm zygotes kept; 0 with mode "exec": the generic ones serve it


class Environment(_Section, frozen=True):
    """``[environments.NAME]``: packages that are there before the job is."""

    interpreter: Name = "python3"
    packages: tuple[str, ...] = ()  # requirement lines
    path: str = ""  # an existing directory (a venv) instead of ``packages``
    preload: tuple[str, ...] = ()  # modules imported in the template
    mode: Mode | Literal[""] = ""  # "": the interpreter's
    ready: int = -1  # zygotes kept ready; -1: the pool's
    description: str = ""


def default_interpreters() -> dict[str, Interpreter]:
    """What we look for in the sandbox's root when the config says nothing."""
    return {
        "python3": Interpreter(command=("python3",), extensions=(".py",), mode="door"),
        "node": Interpreter(command=("node",), extensions=(".js", ".mjs", ".cjs")),
        "bash": Interpreter(command=("bash",), extensions=(".bash",)),
        "sh": Interpreter(command=("sh",), extensions=(".sh",)),
        "ruby": Interpreter(command=("ruby",), extensions=(".rb",)),
        "perl": Interpreter(command=("perl",), extensions=(".pl",)),
        "Rscript": Interpreter(command=("Rscript",), extensions=(".R", ".r")),
        "php": Interpreter(command=("php",), extensions=(".php",)),
        "lua": Interpreter(command=("lua",), extensions=(".lua",)),
        "go": Interpreter(command=("go", "run"), extensions=(".go",)),
    }


class Config(_Section, frozen=True):
    """The whole file. ``Config()`` is the embedded default."""

    http: Http = Http()
    pool: Pool = Pool()
    limits: LimitsSection = LimitsSection()
    rate_limit: RateLimit = RateLimit()
    retention: Retention = Retention()
    packages: Packages = Packages()
    interpreters: dict[Name, Interpreter] = msgspec.field(default_factory=default_interpreters)
    environments: dict[Name, Environment] = msgspec.field(
        default_factory=lambda: {"default": Environment()}
    )


def load(path: Path, amend: Callable[[Config], Config] | None = None) -> Config:
    """Read and check a TOML file, ``amend`` in between. Raises :class:`ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: {error}") from error
    return parse(text, str(path), amend)


def parse(
    text: str, source: str = "config", amend: Callable[[Config], Config] | None = None
) -> Config:
    """TOML text → :class:`Config`. Raises :class:`ConfigError`."""
    try:
        tree: dict[str, Any] = tomllib.loads(text)
        config = msgspec.convert(tree, Config)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    return check(amend(config) if amend else config, source)


LOOPBACK_ONLY: Final = (
    "clear text is served on loopback or a unix socket only: set [http] tls_cert and tls_key, "
    "try it out with --self-signed, listen on 127.0.0.1, or put a TLS proxy before it"
)


def check(config: Config, source: str = "config") -> Config:
    """What types cannot say. Raises :class:`ConfigError`, returns ``config``."""
    default, maximum = config.limits.default, config.limits.maximum
    for field in LimitValues.__struct_fields__:
        if getattr(default, field) > getattr(maximum, field):
            raise ConfigError(
                f"{source}: limits.default.{field}: {getattr(default, field):g} is over "
                f"limits.maximum.{field} = {getattr(maximum, field):g}"
            )
    if bool(config.http.tls_cert) != bool(config.http.tls_key):
        raise ConfigError(f"{source}: http.tls_cert and http.tls_key: give both or neither")
    for key, value in (("listen", config.http.listen), ("admin_listen", config.http.admin_listen)):
        if key == "admin_listen" and not value:
            continue
        address = listen_address(value, f"{source}: http.{key}")
        clear = key == "admin_listen" or not config.http.tls_cert
        if clear and not is_local(address):
            raise ConfigError(f"{source}: http.{key} = {value!r}: {LOOPBACK_ONLY}")
    for network in config.http.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(f"{source}: http.trusted_proxies: {error}") from error
    if "default" not in config.environments:
        raise ConfigError(f"{source}: environments: there must be one named 'default'")
    for name, environment in config.environments.items():
        if environment.interpreter not in config.interpreters:
            raise ConfigError(
                f"{source}: environments.{name}.interpreter: expected one of "
                f"{', '.join(config.interpreters)}, got {environment.interpreter!r}"
            )
        if environment.path and environment.packages:
            raise ConfigError(f"{source}: environments.{name}: give path or packages, not both")
    for name, interpreter in config.interpreters.items():
        if not interpreter.command:
            raise ConfigError(f"{source}: interpreters.{name}.command: must not be empty")
    return config


def listen_address(value: str, where: str) -> tuple[str, int] | str:
    """``"ADDR:PORT"`` → (address, port), ``"unix:/PATH"`` → path."""
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/"):
            raise ConfigError(f"{where}: expected unix:/ABSOLUTE/PATH, got {value!r}")
        return path
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
        number = int(port)
        if not 0 <= number <= 65535:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{where}: expected ADDR:PORT, [IPV6]:PORT or unix:/PATH, got {value!r}"
        ) from None
    return host, number


def is_local(address: tuple[str, int] | str) -> bool:
    """Whether nobody beyond this machine can reach the address."""
    return isinstance(address, str) or ipaddress.ip_address(address[0]).is_loopback
