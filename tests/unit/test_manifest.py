"""The manifest: every field, every refusal, merging, and what runs what."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandrun import manifest
from sandrun.config import Config
from sandrun.errors import RequestError
from sandrun.job import MIB, JobSpec, Limits
from sandrun.manifest import Manifest, Rules

CONFIG = Config()
DEFAULTS = CONFIG.limits.defaults
INTERPRETERS = {name: one.extensions for name, one in CONFIG.interpreters.items()}
RULES = Rules(CONFIG.limits.maxima, INTERPRETERS, {"default", "data-science"})


def parse(text: str | bytes) -> Manifest:
    return manifest.parse(text.encode() if isinstance(text, str) else text, RULES)


def refused(text: str | bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert caught.value.status == 400
    msgspec.json.encode(caught.value.details)  # must reach the client
    assert caught.value.message.isprintable()
    return caught.value


# ── what is given ────────────────────────────────────────────────────────────


def test_every_field_reaches_the_job_in_its_own_unit() -> None:
    given = {
        "entrypoint": "./src/main.py",
        "interpreter": "python3",
        "args": ["-v", "", "ü\n"],
        "env": {"LEVEL": "debug", "_X1": ""},
        "stdin": "zwölf\n",
        "outputs": ["*.png", "!tmp/"],
        "requirements": "requirements.txt",
        "environment": "data-science",
        "profile": "compute",
        "build": "make",
        "fail_on_output_limit": True,
        "timeout": 1.5,
        "cpu_seconds": 2,
        "memory_mb": 64,
        "storage_mb": 10,
        "processes": 3,
        "open_files": 32,
    }
    part = parse(json.dumps(given))
    assert set(part.given) == set(given)
    assert manifest.draft(part, DEFAULTS) == JobSpec(
        entrypoint="src/main.py",
        interpreter="python3",
        args=("-v", "", "ü\n"),
        env={"LEVEL": "debug", "_X1": ""},
        stdin="zwölf\n".encode(),
        outputs=("*.png", "!tmp/"),
        requirements="requirements.txt",
        environment="data-science",
        profile="compute",
        build="make",
        fail_on_output_limit=True,
        limits=Limits(
            timeout_s=1.5,
            cpu_seconds=2.0,
            memory_bytes=64 * MIB,
            storage_bytes=10 * MIB,
            processes=3,
            open_files=32,
        ),
    )


def test_an_empty_manifest_gives_the_defaults() -> None:
    assert parse("{}").given == ()
    assert manifest.draft(parse("{}"), DEFAULTS) == JobSpec(limits=DEFAULTS)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert parse('{"memory_mb": 512.0}').memory_mb == 512


def test_the_schema_has_every_field_that_is_checked() -> None:
    assert set(Manifest.__struct_fields__) == set(manifest._KNOWN)


# ── what is refused ──────────────────────────────────────────────────────────

WRONG: dict[str, list[Any]] = {
    "entrypoint": ["", "../x", "/bin/sh", "a/../../x", "dir/", "a\0b", "x" * 5000, "a\\b", "."],
    "interpreter": ["/bin/sh", "../python3", "python3;id", "Python3", "pythοn3", "", "python3 -c"],
    "args": [["a\0"], [1], [None], ["\ud800"], "a b", {"0": "a"}, ["a"] * 2000],
    "env": [
        {"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"1A": "x"}, {"A B": "x"}, {"A": "x\0"}, {"A": 1},
        {"A": None}, ["A=1"], {f"A{n}": "" for n in range(1000)}, {"A" * 200: ""}, {"Ä": "x"},
    ],
    "stdin": ["\udc00"],
    "outputs": ["*", ["../*"], ["/etc/passwd"], ["/proc/self/environ"], ["~"], [""], ["[a"], ["*"] * 65, [5]],
    "requirements": ["/etc/passwd", "setup.py", "../r.txt"],
    "environment": ["nope", "", "default\0"],
    "profile": ["none", "Default"],
    "build": ["", "  ", "a\0", "x" * 5000],
    "fail_on_output_limit": ["true"],
    **{
        name: ["5", "inf", -1, 0, 1e-9, -(2**63), float("inf"), float("-inf")]
        for name in ("timeout", "cpu_seconds", "memory_mb", "storage_mb", "processes", "open_files")
    },
}  # fmt: skip
COMMON: list[Any] = [None, {}, [[]], [{}], {"a": []}, 2**31, 2**63, 2**64, 10**300]
NOT_COMMON = {("env", "{}")}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG.items() for value in [*values, *COMMON]],
    ids=lambda value: repr(value)[:30],
)
def test_a_wrong_value_is_400_and_names_its_field(field: str, value: object) -> None:
    if (field, repr(value)) in NOT_COMMON:
        return
    text = json.dumps({field: value}).replace("Infinity", "1e400")
    error = refused(text)
    assert error.details is not None
    assert str(error.details["field"]).startswith(field)
    assert field in error.message


def test_requirements_as_a_list_are_sent_to_a_file() -> None:
    """It said "expected a string", which a list of one name made into seems to be."""
    error = refused('{"requirements": ["numpy"]}')
    assert "the name of a requirements.txt or package.json in the upload" in error.message


@pytest.mark.parametrize("field", [*manifest._LIMITS])
def test_a_limit_over_its_maximum_names_value_and_maximum(field: str) -> None:
    most = getattr(CONFIG.limits.maximum, field)
    assert field in parse(json.dumps({field: most})).given
    error = refused(json.dumps({field: most + 1}))
    assert (error.code, error.details) == (
        "over_maximum",
        {"field": field, "value": most + 1, "maximum": most},
    )
    assert f"{most:g}" in error.message
    assert refused(json.dumps({field: True})).code == "invalid_field"


def test_an_unknown_field_is_named_with_those_that_are_known() -> None:
    error = refused('{"memory": 5}')
    assert (error.code, error.details and error.details["field"]) == ("unknown_field", "memory")
    assert "memory_mb" in error.message


@pytest.mark.parametrize("value", ["true", "1", "null", '{"required": true}', "1e400"])
def test_a_gpu_is_refused(value: str) -> None:
    error = refused(f'{{"gpu": {value}}}')
    assert (error.code, error.message) == ("no_gpu", "gpu: no GPU configured")


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "GCONV_PATH", "BASH_ENV",
        "ENV", "PS4", "IFS", "SHELLOPTS", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONINSPECT",
        "PYTHONBREAKPOINT", "PYTHONWARNINGS", "PYTHONEXECUTABLE", "PYTHONUSERBASE",
        "PYTHON_SOMETHING_NEW", "NODE_OPTIONS", "PERL5OPT", "PERL5DB", "RUBYOPT", "LUA_INIT_5_4",
        "R_PROFILE", "JAVA_TOOL_OPTIONS",
    ],
)  # fmt: skip
def test_a_variable_that_hooks_into_a_start_is_refused_by_name(name: str) -> None:
    error = refused(json.dumps({"env": {name: "x"}}))
    assert error.code == "forbidden_variable"
    assert name in error.message


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "NODE_ENV", "TZ"]
)
def test_ordinary_variables_are_allowed(name: str) -> None:
    assert parse(json.dumps({"env": {name: "1"}})).env == {name: "1"}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"5", b'"x"', b"{", b"{}x", b"{} {}", b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"), b'{"args": ["\xff"]}', b'{"timeout": NaN}', b'{"timeout": Infinity}',
        b'{"timeout": -Infinity}', b'{"timeout": ' + b"9" * 5000 + b"}", b"[" * 60_000,
        b'{"a":' * 10_000, b'{"timeout": 5, "timeout": 6}', b'{"env": {"A": "1", "A": "2"}}',
        b"{" + b" " * manifest.MAX_BYTES + b"}", b'{"\\ud800": 1}', b"{'timeout': 5}",
    ],
    ids=lambda data: repr(data)[:30],
)  # fmt: skip
def test_what_is_not_a_json_object_is_400(data: bytes) -> None:
    refused(data)


def test_a_tree_out_of_a_larger_body_is_bounded_too() -> None:
    with pytest.raises(RequestError) as caught:
        manifest.check({"stdin": "x" * manifest.MAX_BYTES}, RULES)
    assert caught.value.code == "manifest_too_large"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no bad strategy
@given(tree=st.dictionaries(st.sampled_from([*manifest._FIELDS, "x"]), _JSON, max_size=4))
def test_any_json_is_a_manifest_or_a_clean_400(tree: dict[str, Any]) -> None:
    try:
        part = parse(json.dumps(tree))
    except RequestError as error:
        assert error.status == 400
        msgspec.json.encode((error.message, error.details))
    else:
        msgspec.msgpack.encode(manifest.draft(part, DEFAULTS))  # it can be dispatched


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_clean_400(data: bytes) -> None:
    try:
        parse(data)
    except RequestError as error:
        assert error.status == 400


# ── merging ──────────────────────────────────────────────────────────────────


def test_a_field_of_the_part_wins_over_job_json() -> None:
    part = parse('{"timeout": 5, "args": ["part"]}')
    job_json = parse('{"timeout": 7, "memory_mb": 64, "entrypoint": "a.py"}')
    merged = manifest.merge(part, job_json)
    assert (merged.timeout, merged.memory_mb, merged.args) == (5, 64, ("part",))
    # The same when job.json is found later, inside the archive.
    spec = manifest.draft(part, DEFAULTS)
    assert manifest.overlay(spec, part.given, job_json) == manifest.draft(merged, DEFAULTS)


# ── entrypoint and interpreter ───────────────────────────────────────────────


def resolve(text: str, files: dict[str, bytes], *executable: str) -> JobSpec:
    return manifest.resolve(
        parse(text),
        [(path, path in executable) for path in files],
        lambda path: files[path][:256],
        DEFAULTS,
        INTERPRETERS,
    )


@pytest.mark.parametrize(
    ("files", "entrypoint", "interpreter"),
    [
        (["run.sh", "main.sh", "index.js", "main.py"], "main.py", "python3"),
        (["run.sh", "main.sh", "index.js", "x"], "index.js", "node"),
        (["run.sh", "main.sh", "x"], "main.sh", "sh"),
        (["run.sh", "x", "src/main.py"], "run.sh", "sh"),
        (["hello.rb"], "hello.rb", "ruby"),
    ],
)
def test_the_first_usual_name_is_the_entrypoint(
    files: list[str], entrypoint: str, interpreter: str
) -> None:
    spec = resolve("{}", dict.fromkeys(files, b""))
    assert (spec.entrypoint, spec.interpreter) == (entrypoint, interpreter)


@pytest.mark.parametrize(
    ("name", "content", "interpreter"),
    [
        ("a.mjs", b"", "node"),
        ("a.R", b"", "Rscript"),
        ("tool", b"#!/usr/bin/env python3\n", "python3"),
        ("tool", b"#!/usr/bin/env -S python3.11 -u\n", "python3"),
        ("tool", b"#!/usr/bin/env A=1 python\n", "python3"),
        ("tool", b"#!/bin/bash -e\necho", "bash"),
        ("tool", b"#! /usr/bin/nodejs\r\n", "node"),
        ("tool", b"#!/usr/bin/awk -f\n", "binary"),
        ("tool", b"\x7fELF\2\1", "binary"),
        ("main.sh", b"#!/bin/bash\n", "bash"),
        ("main.sh", b"#!/usr/bin/python3\n", "sh"),
        (".py", b"", "python3"),
        ("a.b/tool", b"#!/bin/sh", "sh"),
    ],
)
def test_what_runs_a_file_is_found_out(name: str, content: bytes, interpreter: str) -> None:
    spec = resolve(json.dumps({"entrypoint": name}), {name: content})
    assert spec.interpreter == interpreter


def test_an_executable_file_runs_itself() -> None:
    assert resolve('{"entrypoint": "x"}', {"x": b"?", "y": b""}, "x").interpreter == "binary"


def test_a_given_interpreter_is_not_second_guessed() -> None:
    assert resolve('{"interpreter": "bash"}', {"main.py": b""}).interpreter == "bash"


def test_what_the_build_makes_need_not_be_there() -> None:
    spec = resolve('{"build": "gcc -o main main.c", "entrypoint": "main"}', {"main.c": b""})
    assert (spec.entrypoint, spec.interpreter) == ("main", "binary")


@pytest.mark.parametrize(
    ("text", "files", "code", "cure"),
    [
        ("{}", {"a.py": b"", "b.py": b""}, "no_entrypoint", '{"entrypoint": "PATH"}'),
        ("{}", {}, "no_entrypoint", "empty"),
        ('{"entrypoint": "b.py"}', {"a.py": b""}, "no_entrypoint", "a.py"),
        ('{"entrypoint": "data"}', {"data": b"1,2"}, "no_interpreter", '{"interpreter": "NAME"}'),
        ('{"entrypoint": "d"}', {"d/main.py": b""}, "no_entrypoint", "d/main.py"),
        ('{"requirements": "r.txt"}', {"main.py": b""}, "no_requirements", "r.txt"),
        ("{}", {"main.c": b""}, "no_interpreter", '"build": "cc main.c -o main"'),
        ("{}", {"main.cpp": b"", "a.h": b""}, "no_interpreter", '"build": "c++ main.cpp -o main"'),
        ("{}", {"a b.rs": b""}, "no_interpreter", "\"build\": \"rustc 'a b.rs' -o main\""),
    ],
)
def test_what_cannot_be_found_out_names_the_cure(
    text: str, files: dict[str, bytes], code: str, cure: str
) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(text, files)
    assert caught.value.code == code
    assert cure in caught.value.message


def test_the_cure_for_a_source_file_is_a_manifest_that_works() -> None:
    files = {"main.c": b"int main(void) { return 0; }"}
    with pytest.raises(RequestError) as caught:
        resolve("{}", files)
    assert caught.value.details is not None
    spec = resolve(json.dumps(caught.value.details["manifest"]), files)
    assert (spec.build, spec.entrypoint, spec.interpreter) == (
        "cc main.c -o main",
        "main",
        "binary",
    )


@given(line=st.binary(max_size=80))
def test_any_first_line_is_survived(line: bytes) -> None:
    spec = resolve('{"entrypoint": "x"}', {"x": b"#!" + line})
    assert spec.interpreter in {*INTERPRETERS, "binary"}
