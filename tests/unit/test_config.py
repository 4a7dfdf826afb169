"""The configuration: the example is the default, and what is wrong is named by its path."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandrun import config
from sandrun.config import Config, parse
from sandrun.errors import ConfigError
from sandrun.job import MIB, Limits

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
FIVE = {"ml-basic", "vision", "nlp", "data-science", "scientific"}


def test_the_example_says_exactly_the_defaults() -> None:
    assert config.load(EXAMPLE) == Config()
    assert parse("") == Config()


def test_the_example_has_every_key() -> None:
    """A key that the example left out would compare equal, being the default."""
    tree = tomllib.loads(EXAMPLE.read_text())
    assert tree == msgspec.json.decode(msgspec.json.encode(Config()))


def test_every_key_of_the_example_is_explained() -> None:
    lines = EXAMPLE.read_text().splitlines()
    table = ""
    for number, line in enumerate(lines):
        if line.startswith("["):
            table = line
        if "=" not in line or line.startswith("#"):
            continue
        key = line.split("=")[0].strip()
        if table.startswith(("[interpreters", "[environments", "[limits.maximum")):
            continue  # explained once, above the tables
        explained = lines[number - 1].startswith("#") or key in {"tls_key", "template_seconds"}
        assert explained, (table, key)


def test_the_examples_of_environments_are_right_when_they_are_taken_in() -> None:
    text = re.sub(r"^# (\[environments\.|\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    environments = parse(text).environments
    assert set(environments) == FIVE | {"default"}
    assert all(environments[name].packages and environments[name].preload for name in FIVE)


def test_limits_are_turned_into_the_jobs_units() -> None:
    limits = parse("[limits]\nlog_mb = 2\n[limits.default]\nmemory_mb = 100\ntimeout = 1.5").limits
    assert limits.defaults == Limits(timeout_s=1.5, memory_bytes=100 * MIB, log_bytes=2 * MIB)
    assert limits.maxima.timeout_s == 3600


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("[htp]", "htp", "unknown field"),
        ("[http]\nlisten_on = 5", "$.http", "listen_on"),
        ("[http]\nlisten = 5", "$.http.listen", "Expected `str`, got `int`"),
        ("[http]\nmax_upload_mb = 0", "$.http.max_upload_mb", ">= 1"),
        ("[http]\nhead_timeout_s = -1", "$.http.head_timeout_s", "> 0"),
        ("[http]\nhead_timeout_s = inf", "$.http.head_timeout_s", "<="),
        ("[pool]\nready = '4'", "$.pool.ready", "Expected `int`"),
        ("[pool]\nuid_base = 0", "$.pool.uid_base", ">= 65536"),
        ("[pool]\nwaive = ['seccomp']", "$.pool.waive[0]", "Invalid enum value 'seccomp'"),
        ("[limits.default]\nmemory_mb = 1", "$.limits.default.memory_mb", ">= 16"),
        ("[limits.default]\nmemory = 1", "$.limits.default", "memory"),
        ("[limits.default]\ntimeout = 9999", "limits.default.timeout", "limits.maximum.timeout"),
        ("[limits.maximum]\nmemory_mb = 100", "limits.default.memory_mb", "over"),
        ("[rate_limit]\nenabled = 1", "$.rate_limit.enabled", "Expected `bool`"),
        ("[retention]\nx = 1", "$.retention", "x"),
        ("[interpreters.a]\nextensions = []", "$.interpreters", "command"),
        ("[interpreters.python3]\ncommand = []", "interpreters.python3.command", "empty"),
        ("[interpreters.python3]\ncommand = ['x']\nmode = 'warm'", "$.interpreters", "'warm'"),
        ("[environments.a]\npackages = []", "environments", "'default'"),
        (
            "[environments.default]\ninterpreter = 'cobol'",
            "environments.default.interpreter",
            "python3",
        ),
        (
            "[environments.default]\npath = '/x'\npackages = ['a']",
            "environments.default",
            "not both",
        ),
        ("[environments.'../x']", "environments", "matching regex"),
        ("[http]\ntls_cert = '/x'", "http.tls_cert", "both or neither"),
        ("[http]\ntrusted_proxies = ['x']", "http.trusted_proxies", "'x'"),
        ("[http]\nlisten = 'localhost'", "http.listen", "ADDR:PORT"),
        ("[http]\nlisten = '127.0.0.1:99999'", "http.listen", "ADDR:PORT"),
        ("[http]\nlisten = 'unix:relative'", "http.listen", "ABSOLUTE"),
        ("[http]\nlisten = '0.0.0.0:80'", "http.listen", "tls_cert"),
        ("[http]\nadmin_listen = '[::]:80'", "http.admin_listen", "loopback"),
        ("[http", "not TOML", "Expected"),
        ("[http]\nlisten = 'a'\nlisten = 'b'", "not TOML", "overwrite"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_expected(
    text: str, path: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "file.toml")
    message = str(caught.value)
    assert message.startswith("file.toml: ")
    assert path in message
    assert expected in message


@pytest.mark.parametrize(
    ("listen", "address", "local"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000), True),
        ("localhost:1", ("127.0.0.1", 1), True),
        ("[::1]:8000", ("::1", 8000), True),
        ("unix:/run/x", "/run/x", True),
        ("192.0.2.1:443", ("192.0.2.1", 443), False),
    ],
)
def test_addresses(listen: str, address: Any, local: bool) -> None:  # noqa: FBT001
    found = config.listen_address(listen, "listen")
    assert found == address
    assert config.is_local(found) is local


def test_a_network_address_needs_a_certificate_and_then_is_fine() -> None:
    text = "[http]\nlisten = '0.0.0.0:443'\ntls_cert = '/c'\ntls_key = '/k'"
    assert parse(text).http.tls_cert == "/c"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.toml"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="latin.toml"):
        config.load(tmp_path / "latin.toml")
