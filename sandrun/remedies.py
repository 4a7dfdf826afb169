"""What a client can do about a job that failed for want of something. Pure.

The texts name a line of the manifest. They are made from a job's own stderr, so
every name is checked before it is repeated.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandrun.messages import EnvironmentInfo

TAIL_CHARACTERS: Final = 8192  # the last traceback is at the end
_MISSING: Final = re.compile(
    r"^(?:ModuleNotFoundError|ImportError): No module named '?([A-Za-z_][A-Za-z0-9_.]{0,127})'?",
    re.MULTILINE | re.ASCII,
)

_ASKED: Final = re.compile(r"^EOFError: EOF when reading a line\s*\Z", re.MULTILINE)
_NO_INPUT: Final = (
    'the program asked for more input than it got: put the lines that it shall read into "stdin"'
)

# CommonJS, then ES modules. A path (./x, /work/x) is the job's own and starts otherwise.
_MISSING_NODE: Final = re.compile(
    r"Cannot find (?:module|package) '((?:@[a-z0-9_~-][a-z0-9._~-]{0,63}/)?"
    r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,127})(?:/[^'\n]{0,256})?'",
    re.ASCII,
)

# Modules whose distribution has another name; all others are called as they are.
DISTRIBUTIONS: Final = {
    "Bio": "biopython",
    "Crypto": "pycryptodome",
    "OpenSSL": "pyOpenSSL",
    "PIL": "pillow",
    "MySQLdb": "mysqlclient",
    "OpenGL": "PyOpenGL",
    "Levenshtein": "python-Levenshtein",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Cryptodome": "pycryptodomex",
    "cairo": "pycairo",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "igraph": "python-igraph",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "kafka": "kafka-python",
    "ldap": "python-ldap",
    "magic": "python-magic",
    "markdown": "Markdown",
    "mpl_toolkits": "matplotlib",
    "pkg_resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "pylab": "matplotlib",
    "pythonjsonlogger": "python-json-logger",
    "ruamel": "ruamel.yaml",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "socks": "PySocks",
    "telegram": "python-telegram-bot",
    "usb": "pyusb",
    "websocket": "websocket-client",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}


def remedy_for(
    stderr_tail: str,
    environments: Iterable[EnvironmentInfo],
    current: str = "default",
    *,
    requirements: bool = True,
) -> str | None:
    """What to change in the manifest after a ``ModuleNotFoundError`` of Python, a
    ``Cannot find module`` of node or an ``input()`` that found nothing, or None.

    ``current``: the environment that the job ran in. ``requirements``: whether
    this server installs what a job asks for.
    """
    tail = stderr_tail[-TAIL_CHARACTERS:]
    found = _MISSING.findall(tail)
    if not found:
        return _NO_INPUT if _ASKED.search(tail) else _for_node(tail, requirements=requirements)
    module = found[-1].split(".")[0]  # the last one ended the program
    if module in sys.stdlib_module_names:
        return None
    name = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    having = [info for info in environments if not info.fault and _has(info, name)]
    if any(info.name == current for info in having):
        return None  # it is there; the name inside of it is wrong
    ways = []
    if having:
        # The smallest one that has it starts fastest and uses least memory.
        best = min(having, key=lambda info: len(info.packages))
        ways.append(f'set "environment": "{best.name}" in the manifest')
    if requirements:
        ways.append(
            f'add a line "{name}" to a requirements.txt and set "requirements": "requirements.txt"'
        )
    if not ways:
        return f"the package {name} is not installed here; no environment of this server has it"
    return f"the module {module} is not there: {', or '.join(ways)}"


# What installers say, and what follows. Names of packages and versions as they print them.
_PACKAGE: Final = r"([A-Za-z0-9@][A-Za-z0-9._/@~-]{0,127})"
_PINNED: Final = r"([A-Za-z0-9@][A-Za-z0-9._/@~<>=!,+*-]{0,191})"
_NOT_INSTALLED: Final = (
    (
        re.compile(rf"{_PACKAGE} was not found in the (?:package )?registry", re.ASCII),
        'the index has no package "{0}": mend its name in {file}',
    ),
    (
        re.compile(rf"'{_PACKAGE}@[^'\n]{{0,120}}' is not in this registry", re.ASCII),
        'the registry has no package "{0}": mend its name in package.json',
    ),
    (
        re.compile(rf"there (?:is|are) no versions? of {_PINNED}", re.ASCII),
        'there is no "{0}": ask for another version in {file}, or for none in particular',
    ),
    (
        re.compile(rf"only {_PINNED} (?:is|are) available", re.ASCII),
        'only "{0}" is to be had: ask for that in {file}',
    ),
    (
        re.compile(rf"No matching version found for {_PINNED}", re.ASCII),
        'there is no "{0}": ask for another version in package.json',
    ),
    (
        re.compile(rf"{_PINNED} has no (?:usable )?wheels", re.ASCII),
        (
            '"{0}" has no wheel for this interpreter, and nothing is compiled here: ask for another '
            "version in {file}"
        ),
    ),
    (
        re.compile(r"only names and versions of the index|not a requirement|options are not"),
        'write a name in each line of {file}, with a version if it matters: "six", "six==1.16.0"',
    ),
    (
        re.compile(r"^installing took longer than"),
        "ask for fewer or smaller packages in {file}, or use an environment that has them",
    ),
)


def remedy_for_requirements(file: str, reason: str) -> str | None:
    """What to change in ``file`` (as the manifest names it), or None where ``reason`` says it."""
    for pattern, text in _NOT_INSTALLED:
        found = pattern.search(" ".join(reason.split()))
        if found:
            return text.format(*(name.rstrip(".,") for name in found.groups()), file=file)
    return None


def _for_node(tail: str, *, requirements: bool) -> str | None:
    found = _MISSING_NODE.findall(tail)
    if not found:
        return None
    name = found[-1]
    if not requirements:
        return f"the package {name} is not installed here"
    return (
        f'the module {name} is not there: run "npm install {name}", send package.json and '
        'package-lock.json along, and set "requirements": "package.json"'
    )


def _has(info: EnvironmentInfo, name: str) -> bool:
    return any(_normal(package.name) == _normal(name) for package in info.packages)


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
