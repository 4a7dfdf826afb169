"""``--self-signed``: a real certificate out of memory, and a clear word where there is none."""

import ssl
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sandrun import self_signed
from sandrun.config import Config, check, parse
from sandrun.errors import ConfigError, HostError

ROOT = Path(__file__).parents[2]


def listening(address):
    config = Config()
    return msgspec.structs.replace(config, http=msgspec.structs.replace(config.http, listen=address))


def test_the_certificate_is_for_the_address_and_its_key_fits():
    made = self_signed.make(listening("192.0.2.7:8443"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)  # raises if they are no pair
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_verify_locations(made.cert)
    (known,) = trust.get_ca_certs()
    names = {value for _, value in known["subjectAltName"]}
    assert {"localhost", "127.0.0.1", "192.0.2.7"} <= names
    assert len(made.fingerprint) == 32 * 3 - 1


def test_with_it_the_server_may_listen_beyond_loopback_and_without_it_not():
    made = self_signed.Certificate("cert", "key", "")
    config = parse(
        '[http]\nlisten = "0.0.0.0:8000"', amend=lambda c: self_signed.with_certificate(c, made)
    )
    assert config.http.tls_cert == "cert"
    with pytest.raises(ConfigError, match="--self-signed"):
        check(listening("0.0.0.0:8000"))


def test_no_openssl_is_told_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="install openssl"):
        self_signed.make(Config())


def test_an_openssl_that_fails_is_told_with_its_cure(monkeypatch, tmp_path):
    program = tmp_path / "openssl"
    program.write_text("#!/bin/sh\necho 'unknown option -addext' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(HostError, match="unknown option -addext"):
        self_signed.make(Config())


def test_a_certificate_of_ones_own_and_a_made_one_exclude_each_other(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[http]\ntls_cert = "a"\ntls_key = "b"\n')
    done = subprocess.run(
        [sys.executable, "-m", "sandrun", "--config", str(config), "--self-signed"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "--self-signed" in done.stderr
