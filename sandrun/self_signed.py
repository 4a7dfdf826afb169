"""``--self-signed``: a certificate to try TLS out with. Runs as: root, before anything serves.

openssl makes it and nothing of it touches a disk: key and certificate are two memory
descriptors of this process, which reads them by their /proc paths whenever an http is
started, like files. They last as long as the process; the next start has new ones.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from sandrun.config import Config, listen_address
from sandrun.errors import ConfigError, HostError

DAYS: Final = 30  # whoever needs it longer needs a real one
OPENSSL_TIMEOUT_S: Final = 60.0  # the first start takes 1.4 s, more on a busy machine
CURE: Final = "install openssl (apt install openssl), or set [http] tls_cert and tls_key"
ANY_ADDRESS: Final = frozenset(("0.0.0.0", "::"))
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Certificate(NamedTuple):
    """Paths of two PEM files, and the SHA-256 fingerprint as browsers show it."""

    cert: str
    key: str
    fingerprint: str


def make(config: Config) -> Certificate:
    """For the address that it listens on.

    Raises :class:`ConfigError` if it has a certificate of its own, and
    :class:`HostError` with the cure if none can be made.
    """
    if config.http.tls_cert:
        raise ConfigError("--self-signed: there is a certificate in the configuration already")
    openssl = shutil.which("openssl")
    if openssl is None:
        raise HostError("--self-signed needs the program openssl, which is not on the PATH", CURE)
    cert, key = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("tls-cert", "tls-key"))
    names = ",".join(alternative_names(config.http.listen))
    argv = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-nodes", "-days", str(DAYS), "-subj", "/CN=sandrun (self-signed)"]
    argv += ["-addext", f"subjectAltName={names}"]
    argv += ["-out", f"/proc/self/fd/{cert}", "-keyout", f"/proc/self/fd/{key}"]
    try:
        done = subprocess.run(
            argv,
            pass_fds=(cert, key),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=OPENSSL_TIMEOUT_S,
            check=False,
        )
        paths = [f"/proc/self/fd/{fd}" for fd in (cert, key)]
        if done.returncode != 0:
            raise HostError(f"openssl req failed: {done.stderr.strip()[-300:]}", CURE)
        return Certificate(paths[0], paths[1], _fingerprint(Path(paths[0]).read_text()))
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise HostError(f"openssl made no certificate: {error}", CURE) from error


def alternative_names(listen: str) -> list[str]:
    """What the server may be called: its own address, this host's name, and loopback."""
    names = ["DNS:localhost", "IP:127.0.0.1", "IP:::1"]
    own = socket.gethostname()
    if _NAME.fullmatch(own):
        names.append(f"DNS:{own}")
    address = listen_address(listen, "http.listen")
    if isinstance(address, tuple) and address[0] not in ANY_ADDRESS:
        names.append(f"IP:{address[0]}")
    return list(dict.fromkeys(names))


def _fingerprint(pem: str) -> str:
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def with_certificate(config: Config, certificate: Certificate) -> Config:
    """``config`` with it."""
    http = msgspec.structs.replace(config.http, tls_cert=certificate.cert, tls_key=certificate.key)
    return msgspec.structs.replace(config, http=http)
