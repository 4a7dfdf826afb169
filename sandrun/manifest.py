"""``job.json`` or the manifest part → JobSpec, or the field that is wrong. Pure.

In four steps, so that each caller stops where its knowledge ends::

    parse(bytes, rules)            Manifest: what was given, checked field by field
    merge(part, job_json)          Manifest: a field of the manifest part wins
    draft(manifest, defaults)      JobSpec: defaults filled in, files not yet seen
    complete(spec, files, ...)     JobSpec: entrypoint and interpreter found out

http does all four for plain files and ``/validate``; for archives it stops at
``draft``, and the unpacking child inside the sandbox goes on (:func:`overlay` is
the merge with a job.json that was found in the archive).

The bytes are a stranger's. They are bounded before they are parsed (64 KiB, so
that the finished spec fits into one datagram), and every fault is a
:class:`RequestError` 400 that names the field, the value and what is allowed.
"""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sandrun import globs
from sandrun.errors import RequestError
from sandrun.job import MIB, JobSpec, Limits
from sandrun.paths import safe_relative_path

NODE_PACKAGE: Final = "package.json"
NODE_LOCK: Final = "package-lock.json"
_LOCK_CURE: Final = '; "npm install --package-lock-only" makes it of package.json'
MAX_BYTES: Final = 64 * 1024  # of the JSON; with 48 KiB of inline files it fits a datagram
MAX_ARGS: Final = 1024
MAX_VARIABLES: Final = 256
MAX_COMMAND: Final = 4096  # characters of ``build``
MAX_DIGITS: Final = 400  # more than any float has; longer ones take quadratic time
MAX_SHOWN: Final = 80  # characters of a refused value that a message repeats

ENTRYPOINTS: Final = ("main.py", "index.js", "main.sh", "run.sh")
# What must be compiled first: how, by extension. The compiler is the host's, if it has one.
COMPILERS: Final = {
    ".c": "cc {source} -o main",
    ".cc": "c++ {source} -o main",
    ".cpp": "c++ {source} -o main",
    ".cxx": "c++ {source} -o main",
    ".go": "go build -o main {source}",
    ".rs": "rustc {source} -o main",
}
BINARY: Final = "binary"  # the interpreter of a file that the kernel runs itself
# What the kernel runs by itself. Such files are made executable when they are written:
# a form upload carries no modes, and a #! line says what its author wants.
RUNNABLE: Final = (b"\x7fELF", b"#!")
PROFILES: Final = ("default", "compute")

# Variables that make an interpreter or the loader run or read something before the
# program's first line. Inside the sandbox they could do no more than the job itself;
# they are refused because they would run in our own warm-up, or change what is
# promised about a start. PYTHON* is a list of what is allowed: new hooks are born.
_ALLOWED_PYTHON: Final = frozenset(
    "PYTHON" + name
    for name in [
        "PATH",
        "HASHSEED",
        "UNBUFFERED",
        "IOENCODING",
        "UTF8",
        "DONTWRITEBYTECODE",
        "OPTIMIZE",
        "FAULTHANDLER",
        "DEVMODE",
        "ASYNCIODEBUG",
        "TRACEMALLOC",
        "INTMAXSTRDIGITS",
        "NODEBUGRANGES",
        "SAFEPATH",
        "MALLOC",
        "VERBOSE",
        "DEBUG",
        "COERCECLOCALE",
    ]
)
_REFUSED_PREFIXES: Final = ("LD_", "GLIBC_", "LUA_INIT", "BASH_FUNC_", "MALLOC_TRACE")
_REFUSED_VARIABLES: Final = frozenset(
    [
        "NODE_OPTIONS",
        "NODE_REPL_EXTERNAL_MODULE",
        "NODE_PENDING_DEPRECATION",
        "NODE_V8_COVERAGE",
        "BASH_ENV",
        "ENV",
        "SHELLOPTS",
        "BASHOPTS",
        "PS4",
        "IFS",
        "PROMPT_COMMAND",
        "CDPATH",
        "GLOBIGNORE",
        "PERL5OPT",
        "PERL5DB",
        "PERL5SHELL",
        "PERL_UNICODE",
        "RUBYOPT",
        "RUBYSHELL",
        "R_PROFILE",
        "R_PROFILE_USER",
        "R_ENVIRON",
        "R_ENVIRON_USER",
        "R_HOME",
        "PHPRC",
        "PHP_INI_SCAN_DIR",
        "GCONV_PATH",
        "LOCPATH",
        "NLSPATH",
        "GETCONF_DIR",
        "HOSTALIASES",
        "RES_OPTIONS",
        "LOCALDOMAIN",
        "RESOLV_HOST_CONF",
        "JAVA_TOOL_OPTIONS",
        "_JAVA_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "GOFLAGS",
        "GOENV",
    ]
)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client asked for, in his units. Absent fields are UNSET."""

    entrypoint: Annotated[str, Meta(description="relative path of the file to run")] | UnsetType = (
        UNSET
    )
    interpreter: (
        Annotated[str, Meta(description="one of /environments, or 'binary'")] | UnsetType
    ) = UNSET
    args: (
        Annotated[tuple[str, ...], Meta(max_length=MAX_ARGS, description="arguments")] | UnsetType
    ) = UNSET
    env: Annotated[dict[str, str], Meta(description="environment variables")] | UnsetType = UNSET
    stdin: Annotated[str, Meta(description="standard input, as UTF-8")] | UnsetType = UNSET
    outputs: (
        Annotated[
            tuple[str, ...],
            Meta(
                max_length=globs.MAX_PATTERNS,
                description="patterns of the files to hand back: * ? [a-c] ** dir/ !not",
            ),
        ]
        | UnsetType
    ) = UNSET
    requirements: (
        Annotated[
            str, Meta(description="requirements.txt, or package.json with its lock beside it")
        ]
        | UnsetType
    ) = UNSET
    environment: Annotated[str, Meta(description="one of /environments")] | UnsetType = UNSET
    profile: Annotated[str, Meta(description="'default' or 'compute'")] | UnsetType = UNSET
    build: (
        Annotated[str, Meta(max_length=MAX_COMMAND, description="shell command that runs first")]
        | UnsetType
    ) = UNSET
    fail_on_output_limit: (
        Annotated[bool, Meta(description="whether lost output fails the job")] | UnsetType
    ) = UNSET
    timeout: Annotated[float, Meta(gt=0, description="seconds of wall time")] | UnsetType = UNSET
    cpu_seconds: Annotated[float, Meta(gt=0, description="of all CPUs")] | UnsetType = UNSET
    memory_mb: Annotated[int, Meta(ge=1, description="MiB, files included")] | UnsetType = UNSET
    storage_mb: Annotated[int, Meta(ge=1, description="MiB of files")] | UnsetType = UNSET
    processes: Annotated[int, Meta(ge=1, description="at once, threads too")] | UnsetType = UNSET
    open_files: Annotated[int, Meta(ge=1, description="of each process")] | UnsetType = UNSET

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the fields that were given."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name) is not UNSET)


class Rules(NamedTuple):
    """What this server allows. ``interpreters``: name → file name extensions."""

    maxima: Limits
    interpreters: Mapping[str, tuple[str, ...]]
    environments: Collection[str]


# ── the limits: manifest field → field of Limits, factor, smallest value ─────


class _Limit(NamedTuple):
    field: str
    factor: int
    least: float
    whole: bool


_LIMITS: Final = {
    "timeout": _Limit("timeout_s", 1, 0.01, False),
    "cpu_seconds": _Limit("cpu_seconds", 1, 0.01, False),
    "memory_mb": _Limit("memory_bytes", MIB, 16, True),  # less than an interpreter needs
    "storage_mb": _Limit("storage_bytes", MIB, 1, True),
    "processes": _Limit("processes", 1, 1, True),
    "open_files": _Limit("open_files", 1, 16, True),  # the loader and an interpreter's start
}


# ── parse ────────────────────────────────────────────────────────────────────


def parse(data: bytes, rules: Rules, source: str = "manifest") -> Manifest:
    """JSON text → :class:`Manifest`. Raises :class:`RequestError` 400."""
    return check(_decode(data, source), rules, source)


def check(tree: object, rules: Rules, source: str = "manifest") -> Manifest:
    """Decoded JSON → :class:`Manifest`. Raises :class:`RequestError` 400."""
    if not isinstance(tree, dict):
        _refuse_whole(source, f"must be a JSON object, got {_kind(tree)}")
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        checker = _FIELDS.get(name)
        if checker is None:
            raise RequestError(
                400,
                "unknown_field",
                f"{source}: there is no field {shown(name)}; known are {', '.join(_KNOWN)}",
                details={"field": shown(name), "allowed": list(_KNOWN)},
            )
        fields[name] = checker(name, value, rules)
    manifest = Manifest(**fields)
    _bound(len(msgspec.json.encode(manifest)), source)  # a tree may come from a larger body
    return manifest


def _bound(size: int, source: str) -> None:
    if size > MAX_BYTES:
        raise RequestError(
            400,
            "manifest_too_large",
            f"{source}: it has {size} bytes; {MAX_BYTES} are allowed (put large data into files)",
            details={"field": source, "value": size, "maximum": MAX_BYTES},
        )


def _decode(data: bytes, source: str) -> object:
    _bound(len(data), source)
    try:
        text = data.decode("utf-8")
        if text.startswith("\ufeff"):
            _refuse_whole(source, "begins with a byte order mark; save it as plain UTF-8")
        # Two equal keys are two intentions, and which of them wins differs between
        # parsers: a classic way to get something past a check.
        return _decoder().decode(text)
    except UnicodeDecodeError as error:
        _refuse_whole(source, f"must be UTF-8: byte {error.start} is not")
    except RecursionError:
        _refuse_whole(source, "is nested too deeply")
    except ValueError as error:  # JSONDecodeError, and ours from the hooks
        _refuse_whole(source, f"is not valid JSON: {error}")


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_no_twins, parse_int=_integer, parse_constant=_no_constant
    )


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is there twice")
        found[key] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"there is a number of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _refuse_whole(source: str, reason: str) -> NoReturn:
    raise RequestError(400, "invalid_manifest", f"{source}: {reason}", details={"field": source})


def shown(value: object) -> str:
    """A stranger's value for a message: one line, printable, short."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: MAX_SHOWN + 1])
    return f"{text[:MAX_SHOWN]}…" if len(text) > MAX_SHOWN else text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _refuse(field: str, value: object, expected: str, **more: Any) -> NoReturn:
    raise RequestError(
        400,
        "invalid_field",
        f"{field}: expected {expected}, got {_given(value)}",
        details={"field": field, "value": _detail(value), "expected": expected, **more},
    )


def _given(value: object) -> str:
    if isinstance(value, str):
        return f"'{shown(value)}'"
    if isinstance(value, (dict, list)) or value is None:
        return _kind(value)
    return shown(json.dumps(value))


def _detail(value: object) -> object:
    """The value for ``details``: JSON that every client can read."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 2**53:
        return value
    return shown(value if isinstance(value, (str, int, float)) else _kind(value))


# ── one checker per kind of field ────────────────────────────────────────────


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        _refuse(field, value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(field, value, "valid Unicode (no lone surrogates)")
    return value


def _argument(field: str, value: object) -> str:
    text = _text(field, value)
    if "\0" in text:
        _refuse(field, value, "a string without NUL")
    return text


def _path(field: str, value: object, _: Rules) -> str:
    text = _text(field, value)
    try:
        path = safe_relative_path(text)
        if text.endswith("/"):
            raise ValueError("is a directory")
    except ValueError as error:
        _refuse(field, value, "the relative path of a file in the upload", reason=str(error))
    return path


def _args(field: str, value: object, _: Rules) -> tuple[str, ...]:
    if not isinstance(value, list):
        _refuse(field, value, "a list of strings")
    if len(value) > MAX_ARGS:
        _refuse(field, len(value), f"at most {MAX_ARGS} arguments", maximum=MAX_ARGS)
    return tuple(_argument(f"{field}[{number}]", one) for number, one in enumerate(value))


def _env(field: str, value: object, _: Rules) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse(field, value, "an object of strings")
    if len(value) > MAX_VARIABLES:
        _refuse(field, len(value), f"at most {MAX_VARIABLES} variables", maximum=MAX_VARIABLES)
    for name, one in value.items():
        if not _VARIABLE.match(name):
            _refuse(field, name, "names of letters, digits and _ that begin with no digit")
        if is_refused_variable(name):
            raise RequestError(
                400,
                "forbidden_variable",
                f"env: {name} may not be set: it changes how programs start",
                details={"field": f"env.{name}", "value": name},
            )
        _argument(f"{field}.{name}", one)
    return value


def is_refused_variable(name: str) -> bool:
    """Whether a job may not bring this environment variable."""
    if name.startswith("PYTHON"):
        return name not in _ALLOWED_PYTHON
    return name in _REFUSED_VARIABLES or name.startswith(_REFUSED_PREFIXES)


def _stdin(field: str, value: object, _: Rules) -> str:
    return _text(field, value)


def _outputs(field: str, value: object, _: Rules) -> tuple[str, ...]:
    if not isinstance(value, list):
        _refuse(field, value, "a list of patterns")
    patterns = tuple(_text(f"{field}[{number}]", one) for number, one in enumerate(value))
    try:
        globs.compile(patterns)
    except ValueError as error:
        raise RequestError(
            400,
            "invalid_field",
            f"{field}: {shown(str(error))}",
            details={"field": field, "expected": "patterns: * ? [a-c] ** dir/ !not"},
        ) from None
    return patterns


def _one_of(field: str, value: object, allowed: Iterable[str]) -> str:
    names = list(allowed)
    text = _text(field, value)
    if text not in names:
        _refuse(field, value, f"one of {', '.join(names)}", allowed=names)
    return text


def _interpreter(field: str, value: object, rules: Rules) -> str:
    return _one_of(field, value, (*rules.interpreters, BINARY))


def _environment(field: str, value: object, rules: Rules) -> str:
    return _one_of(field, value, sorted(rules.environments))


def _profile(field: str, value: object, _: Rules) -> str:
    return _one_of(field, value, PROFILES)


def _requirements(field: str, value: object, rules: Rules) -> str:
    if not isinstance(value, str):
        _refuse(field, value, "the name of a requirements.txt or package.json in the upload")
    path = _path(field, value, rules)
    directory, name = path.rpartition("/")[::2]
    if name == NODE_PACKAGE:  # it is the lock beside it that decides
        return f"{directory}/{NODE_LOCK}" if directory else NODE_LOCK
    if not path.endswith(".txt") and name != NODE_LOCK:
        _refuse(field, value, "a requirements.txt or package.json in the upload")
    return path


def _build(field: str, value: object, _: Rules) -> str:
    text = _argument(field, value)
    if not text.strip() or len(text) > MAX_COMMAND:
        _refuse(field, value, f"a command of at most {MAX_COMMAND} characters")
    return text


def _flag(field: str, value: object, _: Rules) -> bool:
    if not isinstance(value, bool):
        _refuse(field, value, "true or false")
    return value


def _limit(field: str, value: object, rules: Rules) -> float:
    limit = _LIMITS[field]
    most = getattr(rules.maxima, limit.field) / limit.factor
    most = int(most) if most == int(most) else most
    expected = f"a {'whole ' if limit.whole else ''}number from {limit.least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(field, value, expected, maximum=most)
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(field, value, expected, maximum=most)
    if value > most:
        raise RequestError(
            400,
            "over_maximum",
            f"{field}: {shown(value)} is over the maximum of {most:g}",
            details={"field": field, "value": _detail(value), "maximum": most},
        )
    # 512.0 is a whole number in JSON (RFC 8259 has one number type).
    if value < limit.least or (limit.whole and value != int(value)):
        _refuse(field, value, expected, minimum=limit.least, maximum=most)
    return int(value) if limit.whole else float(value)


def _gpu(_field: str, value: object, _: Rules) -> NoReturn:
    raise RequestError(
        400, "no_gpu", "gpu: no GPU configured", details={"field": "gpu", "value": _detail(value)}
    )


_FIELDS: Final[dict[str, Callable[[str, object, Rules], Any]]] = {
    "entrypoint": _path,
    "interpreter": _interpreter,
    "args": _args,
    "env": _env,
    "stdin": _stdin,
    "outputs": _outputs,
    "requirements": _requirements,
    "environment": _environment,
    "profile": _profile,
    "build": _build,
    "fail_on_output_limit": _flag,
    **dict.fromkeys(_LIMITS, _limit),
    "gpu": _gpu,
}
_KNOWN: Final = tuple(name for name in _FIELDS if name != "gpu")


# ── merge and draft ──────────────────────────────────────────────────────────


def merge(part: Manifest, job_json: Manifest) -> Manifest:
    """Both as one; where both say something, the manifest part wins."""
    return msgspec.structs.replace(job_json, **{name: getattr(part, name) for name in part.given})


def draft(manifest: Manifest, defaults: Limits) -> JobSpec:
    """The job as far as it is known without its files."""
    return overlay(JobSpec(limits=defaults), (), manifest)


def overlay(spec: JobSpec, given: Collection[str], job_json: Manifest) -> JobSpec:
    """``spec`` with the fields of ``job_json`` that are not among ``given``
    (fields that the manifest part has decided already).
    """
    fields: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for name in job_json.given:
        if name in given:
            continue
        value = getattr(job_json, name)
        if name in _LIMITS:
            limit = _LIMITS[name]
            limits[limit.field] = value * limit.factor
        else:
            fields[name] = value.encode() if name == "stdin" else value
    if limits:
        fields["limits"] = msgspec.structs.replace(spec.limits, **limits)
    return msgspec.structs.replace(spec, **fields) if fields else spec


# ── complete: look at the files ──────────────────────────────────────────────

# Names in #! lines that are not the interpreter's own.
_ALIASES: Final = {"python": "python3", "nodejs": "node", "dash": "sh", "ash": "sh"}


def resolve(
    manifest: Manifest,
    files: Iterable[tuple[str, bool]],
    first_line: Callable[[str], bytes],
    defaults: Limits,
    interpreters: Mapping[str, tuple[str, ...]],
) -> JobSpec:
    """:func:`draft` and :func:`complete` in one."""
    return complete(draft(manifest, defaults), files, first_line, interpreters)


def complete(
    spec: JobSpec,
    files: Iterable[tuple[str, bool]],
    first_line: Callable[[str], bytes],
    interpreters: Mapping[str, tuple[str, ...]],
) -> JobSpec:
    """``spec`` with entrypoint and interpreter.

    ``files``: (path, executable); ``first_line(path)``: the first 256 bytes or so.
    Raises :class:`RequestError` 400 with what to write into the manifest.
    """
    known = dict(files)
    entrypoint = spec.entrypoint or _default_entrypoint(known)
    if entrypoint not in known and not spec.build:
        raise RequestError(
            400,
            "no_entrypoint",
            f"entrypoint: {shown(entrypoint)} is not in the upload{_there_is(known)}",
            details={"field": "entrypoint", "value": shown(entrypoint)},
        )
    if spec.requirements is not None and spec.requirements not in known:
        raise RequestError(
            400,
            "no_requirements",
            f"requirements: {shown(spec.requirements)} is not in the upload{_there_is(known)}"
            f"{_LOCK_CURE if spec.requirements.endswith(NODE_LOCK) else ''}",
            details={"field": "requirements", "value": shown(spec.requirements)},
        )
    if spec.requirements is not None and package_of(spec.requirements) not in (None, *known):
        raise RequestError(
            400,
            "no_requirements",
            f"requirements: {shown(spec.requirements)} is there, and its package.json is not",
            details={"field": "requirements", "value": shown(spec.requirements)},
        )
    interpreter = spec.interpreter or _find_interpreter(
        entrypoint, known.get(entrypoint), first_line, interpreters
    )
    return msgspec.structs.replace(spec, entrypoint=entrypoint, interpreter=interpreter)


def package_of(requirements: str) -> str | None:
    """Path of the package.json that belongs to a lock of npm; None for other files."""
    directory, name = requirements.rpartition("/")[::2]
    if name != NODE_LOCK:
        return None
    return f"{directory}/{NODE_PACKAGE}" if directory else NODE_PACKAGE


def _there_is(known: Collection[str]) -> str:
    some = sorted(known)[:5]
    more = f" and {len(known) - 5} more" if len(known) > 5 else ""
    return f", which has {', '.join(map(shown, some))}{more}" if some else ", which is empty"


def _default_entrypoint(known: Collection[str]) -> str:
    for name in (*ENTRYPOINTS, *(f"main{extension}" for extension in COMPILERS)):
        if name in known:
            return name
    if len(known) == 1:
        return next(iter(known))  # a lone file can only be meant
    raise RequestError(
        400,
        "no_entrypoint",
        f"entrypoint: none of {', '.join(ENTRYPOINTS)} is at the top of the upload"
        f'{_there_is(known)}; say {{"entrypoint": "PATH"}} in the manifest',
        details={"field": "entrypoint", "expected": list(ENTRYPOINTS)},
    )


def _find_interpreter(
    entrypoint: str,
    executable: bool | None,
    first_line: Callable[[str], bytes],
    interpreters: Mapping[str, tuple[str, ...]],
) -> str:
    """By extension, else the ``#!`` line, else the file itself if it can be executed.

    ``executable`` is None for a file that the build command will make.
    """
    name = entrypoint.rpartition("/")[2]
    extension = f".{name.rpartition('.')[2]}" if "." in name else ""
    found = next((n for n, extensions in interpreters.items() if extension in extensions), None)
    if executable is None:
        return found or BINARY
    line = first_line(entrypoint)
    said = _shebang(line, interpreters)
    if found == "sh" and said == "bash":
        return said  # *.sh is what people call bash scripts too
    if found or said:
        return found or said or ""
    if line.startswith(RUNNABLE):
        return BINARY
    if extension in COMPILERS:
        _refuse_source(entrypoint, extension)
    if executable:
        return BINARY
    raise RequestError(
        400,
        "no_interpreter",
        f"interpreter: cannot tell what runs {shown(entrypoint)}: its extension is unknown, it "
        f"has no #! line and is not executable; name one of {', '.join(interpreters)}: "
        f'say {{"interpreter": "NAME"}} in the manifest',
        details={"field": "interpreter", "allowed": [*interpreters, BINARY]},
    )


def _refuse_source(source: str, extension: str) -> NoReturn:
    build = COMPILERS[extension].format(source=shlex.quote(source))
    cure = {"build": build, "entrypoint": "main"}
    raise RequestError(
        400,
        "no_interpreter",
        f"build: {shown(source)} must be compiled before it can run: "
        f"say {json.dumps(cure)} in the manifest",
        details={"field": "build", "manifest": cure},
    )


def _shebang(line: bytes, interpreters: Mapping[str, tuple[str, ...]]) -> str | None:
    """``#!/usr/bin/env -S python3.11 -u`` → "python3", if there is such an interpreter."""
    if not line.startswith(b"#!"):
        return None
    words = line[2:].split(b"\n", 1)[0].decode("utf-8", "replace").split()
    names = [word.rpartition("/")[2] for word in words]
    if names and names[0] == "env":
        names = [n for n, word in zip(names[1:], words[1:], strict=True) if word[0] != "-"]
        names = [name for name in names if "=" not in name]
    if not names:
        return None
    plain = names[0].rstrip("0123456789.-")
    for name in (names[0], plain, _ALIASES.get(plain, "")):
        if name in interpreters:
            return name
    return None
