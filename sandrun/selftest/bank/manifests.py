"""J: what a manifest may not say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from sandrun.selftest.case import Call, Case, Job, expect
from sandrun.selftest.target import Target, multipart

_FILES: Final[dict[str, str | bytes]] = {"main.py": "print('ran')"}
_NUMBERS: Final = (
    "null", "true", "[]", "{}", "NaN", "Infinity", "-Infinity", "1e400", '"5"', "-1", "0", "-0.0",
    "2147483648", "9223372036854775808", "1e308", "18446744073709551616", "1" + "0" * 5000, '"inf"',
)  # fmt: skip
_STRINGS: Final = ("null", "true", "5", "[]", "{}", '"\\u0000"', '"\\ud800"')


def _refused(target: Target, manifest: str | bytes, what: str, files: Any = None) -> None:
    reply = target.post("/submit", _FILES if files is None else files, manifest)
    expect(400 <= reply.status < 500, f"{what}: {reply.status} {reply.body[:200]!r}")
    body = reply.json()
    expect(body.get("error") and body.get("code"), f"{what}: the answer explains nothing: {body}")


def refused(*manifests: Any) -> Callable[[Target], None]:
    """Each of these (an object, or text as it stands) is refused with a reason."""

    def run(target: Target) -> None:
        for manifest in manifests:
            text = manifest if isinstance(manifest, (str, bytes)) else json.dumps(manifest)
            _refused(target, text, repr(text[:100]))

    return run


def _fields(names: tuple[str, ...], values: tuple[str, ...]) -> Callable[[Target], None]:
    return refused(*(f'{{"{name}": {value}}}' for name in names for value in values))


def _also_in_archive(target: Target) -> None:
    """A job.json meets the same checks as the part."""
    for text in (
        '{"timeout": -1}',
        '{"unknown": 1}',
        "[1]",
        "{",
        '{"env": {"LD_PRELOAD": "x"}}',
        '{"entrypoint": "../x"}',
    ):
        reply = target.post("/run", {"main.py": "print('ran')", "job.json": text}, None)
        ok = 400 <= reply.status < 500 or reply.json().get("exit_reason") == "upload_error"
        expect(ok, f"{text}: {reply.status} {reply.body[:200]!r}")


def _args_arrive(target: Target) -> None:
    args = ["-c", "-x", "", " ", "a\nb", "$(id)", "`id`", "é", "\u202e", "--", "'\"", "*"]
    code = "import sys, json; print(json.dumps(sys.argv[1:]))"
    answer = target.run({"main.py": code}, {"args": args})
    expect(json.loads(answer["stdout"] or "null") == args, f"arrived: {answer['stdout'][:300]!r}")


def _entrypoint_is_no_option(target: Target) -> None:
    for name in ("-c", "--version", "-"):
        reply = target.post(
            "/run", {name: "print('file')"}, {"entrypoint": name, "interpreter": "python3"}
        )
        if reply.status == 200:
            text = reply.json()["stdout"]
            expect(text == "file\n", f"entrypoint {name!r} was taken for an option: {text!r}")


def _no_fetch(target: Target) -> None:
    for field in ("webhook", "callback_url", "url", "image", "source"):
        _refused(target, json.dumps({field: "http://169.254.169.254/"}), field)


def _outputs_special(target: Target) -> None:
    code = (
        "import os, socket\n"
        "os.mkfifo('fifo.out'); os.symlink('/etc/passwd', 'link.out'); os.symlink('/proc/self/environ', 'proc.out')\n"
        "s = socket.socket(1); s.bind('sock.out')\n"
        "open('shut.out', 'w').write('x'); os.chmod('shut.out', 0)\n"
        "open('gone.out', 'w').write('x'); os.unlink('gone.out')\n"
        "os.mkdir('dir.out'); os.symlink('dir.out', 'dirlink.out')\n"
        "open('good.out', 'w').write('good')\n"
    )
    answer = target.run({"main.py": code}, {"outputs": ["*.out"]})
    found = set(answer["output_files"])
    expect("good.out" in found, f"the honest file is missing: {answer['output_files']}")
    expect(found <= {"good.out", "shut.out"}, f"handed back {sorted(found)}")


def _outputs_cannot_leave(target: Target) -> None:
    for pattern in (
        "../*",
        "/etc/passwd",
        "/proc/self/environ",
        "a/../../b",
        "**/../..",
        "\x00",
        "..",
        "/",
        "",
        "~",
    ):
        reply = target.post("/run", {"main.py": "print('ran')"}, {"outputs": [pattern]})
        if reply.status == 200:
            expect(not reply.json()["output_files"], f"{pattern!r}: {reply.json()['output_files']}")
        else:
            expect(400 <= reply.status < 500, f"{pattern!r}: {reply.status}")
    for pattern in ("$HOME", "`id`", "{a,b}"):
        answer = target.run({"main.py": "print('ran')"}, {"outputs": [pattern]})
        expect(not answer["output_files"], f"{pattern!r}: {answer['output_files']}")


def _glob_bomb(target: Target) -> None:
    code = "for i in range(300): open('a' * 100 + str(i), 'w').close()"
    answer = target.run(
        {"main.py": code}, {"outputs": ["*a" * 60 + "*b", "**/" * 40 + "x", "?" * 200]}
    )
    expect(answer["exit_reason"] == "exited", f"ended as {answer['exit_reason']}")
    expect(answer["execution_metadata"]["wall_time_ms"] < 20_000, "matching took 20 s")


def _shape(target: Target) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    for text in (
        deep,
        '{"env": ' + deep + "}",
        "",
        " ",
        "{",
        "}",
        "{} x",
        "{}{}",
        "[]",
        "1",
        '"x"',
        "null",
        "{'a': 1}",
        '{"args": ["x"], "args": ["y"]}',
        '{"a"}',
        "\ufeff{}",
    ):
        _refused(target, text, repr(text[:60]))
    for data in (
        "{}".encode("utf-16"),
        b'{"args": ["\xff"]}',
        b"\0{}",
        b'{"args": ["' + b"x" * (1 << 20) + b'"]}',
    ):
        _refused(target, data, repr(data[:40]))


def _unicode_digits(target: Target) -> None:
    _refused(target, '{"timeout": \u0665}', "arabic digit")


def _env_names(target: Target) -> None:
    for name in ("", "A=B", "A\\u0000", "1A", "A B", "A-B", "\\u00e9", "A" * 200):
        _refused(target, f'{{"env": {{"{name}": "x"}}}}', name)
    _refused(target, json.dumps({"env": {f"V{i}": "x" for i in range(5000)}}), "5000 variables")
    _refused(target, json.dumps({"env": {"A": "x" * 200_000}}), "200 KB value")


_LOADER: Final = (
    "LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "LD_DEBUG", "LD_ORIGIN_PATH", "GLIBC_TUNABLES", "GCONV_PATH",
    "LOCPATH", "NLSPATH", "HOSTALIASES", "RES_OPTIONS", "BASH_ENV", "ENV", "PS4", "IFS", "SHELLOPTS", "BASHOPTS",
    "PROMPT_COMMAND", "BASH_FUNC_x%%",
)  # fmt: skip
_RUNTIME: Final = (
    "PYTHONSTARTUP", "PYTHONHOME", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONWARNINGS", "PYTHONUSERBASE",
    "PYTHONPLATLIBDIR", "PYTHONEXECUTABLE", "PYTHONPYCACHEPREFIX", "SANDRUN_WARM", "NODE_OPTIONS", "NODE_V8_COVERAGE",
    "PERL5OPT", "PERL5DB", "RUBYOPT", "PHPRC", "LUA_INIT", "JAVA_TOOL_OPTIONS", "R_PROFILE",
)  # fmt: skip


def _variables(names: tuple[str, ...]) -> Callable[[Target], None]:
    """Refused, or proven to reach nothing but the job's own interpreter."""

    def run(target: Target) -> None:
        for name in names:
            reply = target.post("/run", {"main.py": "print('ran')"}, {"env": {name: "/work/x"}})
            if reply.status == 200:
                answer = reply.json()
                expect(answer["exit_reason"] != "server_fault", f"{name}: {answer['evidence']}")
                expect(answer["stdout"] in ("ran\n", ""), f"{name}: printed {answer['stdout']!r}")
            else:
                expect(reply.status == 400, f"{name}: {reply.status}")
                expect(
                    name.split("%")[0] in reply.json()["error"],
                    f"{name} is not named in the refusal",
                )

    return run


def _huge_spec(target: Target) -> None:
    _refused(target, json.dumps({"args": ["x" * 60] * 5000}), "5000 arguments")
    _refused(target, json.dumps({"stdin": "x" * (1 << 20)}), "1 MB of stdin")
    _refused(target, json.dumps({"build": "true;" * 5000}), "25 KB of build")


def _json_body(target: Target) -> None:
    for body in (
        b"",
        b"{",
        b"[]",
        b'{"files": {"../x": "1"}}',
        b'{"files": {"/x": "1"}}',
        b'{"files": {"main.py": 1}}',
        b'{"code": 1}',
        b'{"code": "x", "interpreter": "../sh"}',
        b'{"manifest": []}',
        b'{"files": {"a": "1", "a/b": "2"}}',
        b'{"code": "\\ud800"}',
    ):
        reply = target.request("POST", "/submit", body, {"Content-Type": "application/json"})
        expect(400 <= reply.status < 500, f"{body!r}: {reply.status} {reply.body[:200]!r}")


def _types(target: Target) -> None:
    body, _ = multipart(_FILES, None)
    for kind in (
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "",
        "multipart/mixed; boundary=b",
        "application/json; charset=utf-16",
    ):
        reply = target.request("POST", "/submit", body, {"Content-Type": kind})
        expect(400 <= reply.status < 500, f"{kind!r}: {reply.status}")


def call(id: str, title: str, run: Callable[[Target], None]) -> Call:  # noqa: A002
    """Shorter."""
    return Call(id=id, title=title, run=run)


CASES: Final[tuple[Case, ...]] = (
    call(
        "J1.numbers",
        "numbers of every wrong kind in every limit",
        _fields(
            ("timeout", "cpu_seconds", "memory_mb", "storage_mb", "processes", "open_files"),
            _NUMBERS,
        ),
    ),
    call(
        "J1.strings",
        "wrong types for strings and lists",
        _fields(
            (
                "entrypoint",
                "interpreter",
                "args",
                "env",
                "outputs",
                "environment",
                "profile",
                "build",
                "stdin",
            ),
            ("true", "5", '{"a": []}', "[[]]"),
        ),
    ),
    call(
        "J1.escapes",
        "NUL and lone surrogates in strings",
        refused(
            '{"entrypoint": "a\\u0000b"}',
            '{"args": ["\\u0000"]}',
            '{"args": ["\\ud800"]}',
            '{"env": {"A": "\\u0000"}}',
            '{"entrypoint": "\\udfff"}',
        ),
    ),
    call("J2", "JSON that is none, too deep, doubled or not UTF-8", _shape),
    call("J2.digits", "digits of another script", _unicode_digits),
    call(
        "J3",
        "entrypoints that lead out or are no file",
        refused(
            *(
                {"entrypoint": e}
                for e in (
                    "../x",
                    "/bin/sh",
                    "a/../../x",
                    "",
                    ".",
                    "..",
                    "missing.py",
                    "main.py/",
                    "main.py/x",
                    "\\x",
                    "x" * 5000,
                    "/proc/self/fd/7/x",
                    "/dev/fd/3",
                    "/proc/self/cwd/../x",
                )
            )
        ),
    ),
    call(
        "J3.option", "an entrypoint that looks like an option is a file", _entrypoint_is_no_option
    ),
    call(
        "J4",
        "interpreters that are no names of the list",
        refused(
            *(
                {"interpreter": i}
                for i in (
                    "/bin/sh",
                    "../python3",
                    "python3;id",
                    "Python3",
                    "\u0440ython3",
                    "python3 -c",
                    "",
                    "python3\n",
                    ".",
                    "busybox",
                )
            )
        ),
    ),
    call("J5", "arguments arrive byte for byte and meet no shell", _args_arrive),
    call("J5.size", "arguments, stdin and builds beyond their bounds", _huge_spec),
    call("J6", "variables of loaders and shells", _variables(_LOADER)),
    call("J7", "variables that make interpreters read or run something", _variables(_RUNTIME)),
    call("J8", "names and sizes of variables", _env_names),
    call(
        "J9",
        "limits over the maximum",
        refused(
            *(
                {name: 10**7}
                for name in (
                    "timeout",
                    "cpu_seconds",
                    "memory_mb",
                    "storage_mb",
                    "processes",
                    "open_files",
                )
            )
        ),
    ),
    call(
        "J9.under",
        "limits under the minimum",
        refused(
            {"memory_mb": 1},
            {"open_files": 1},
            {"timeout": 1e-9},
            {"processes": 0},
            {"storage_mb": 0.5},
        ),
    ),
    call(
        "J10",
        "fields that do not exist",
        refused(
            {"gpu": True},
            {"privileged": True},
            {"__proto__": {}},
            {"uid": 0},
            {"Timeout": 5},
            {"": 1},
            {"network": True},
            {"mounts": ["/"]},
        ),
    ),
    call(
        "J10.case",
        "environments and profiles that do not exist",
        refused(
            {"environment": "../default"},
            {"environment": ""},
            {"environment": "x" * 1000},
            {"profile": "root"},
            {"profile": "zygote"},
            {"environment": "default\n"},
        ),
    ),
    call("J11", "output patterns that lead out", _outputs_cannot_leave),
    call(
        "J12", "outputs that are no plain files do not block and are not followed", _outputs_special
    ),
    call("J12.glob", "patterns that take exponential time elsewhere", _glob_bomb),
    call("J13.job_json", "a job.json in the upload meets the same checks", _also_in_archive),
    call("J14", "no field makes the server fetch anything", _no_fetch),
    call("J15.json", "JSON submissions of wrong shapes", _json_body),
    call("J16.types", "bodies of other media types", _types),
    Job(
        id="J17.build_shell",
        title="a build command is a shell command of the job, inside the same walls",
        code="print(open('/work/found').read())",
        manifest={
            "build": "id -u > found; cat /etc/shadow >> found 2>/dev/null; ls /root >> found 2>/dev/null; true"
        },
        stdout="1000\n\n",
    ),
    Job(
        id="J18.build_daemon",
        title="what a build leaves running is gone before the entrypoint",
        code="import os\nothers = [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())]\nprint('held' if not others else others)\n",
        manifest={
            "build": "setsid sleep 100 >/dev/null 2>&1 & (setsid sh -c 'while :; do sleep 1; done' >/dev/null 2>&1 &) ; sleep 0.1; true"
        },
    ),
    Job(
        id="J18.build_kill",
        title="a build that kills what waits and leaves something in its place",
        code="import os\nothers = [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())]\nprint('held' if not others else others)\n",
        manifest={
            "build": "setsid sleep 100 >/dev/null 2>&1 </dev/null & for p in /proc/[0-9]*; do n=${p#/proc/}; case $n in 1|$$|$!) ;; *) kill -9 $n 2>/dev/null;; esac; done; true",
            "timeout": 8,
        },
    ),
    Job(
        id="J19.build_limits",
        title="a build has the job's limits",
        code="print('ran')",
        manifest={"build": ":(){ :|:& };: ; sleep 30", "timeout": 2, "processes": 16},
        reason=("wall_timeout", "process_limit", "nonzero_exit", "cpu_limit"),
        stdout="",
        heavy=True,
    ),
    Job(
        id="J20.compute_build",
        title="a build command does not widen the compute profile of the entrypoint",
        code="import os\ntry:\n    os.fork() or os._exit(0); print('forked')\nexcept OSError: print('held')\n",
        manifest={"build": "true", "profile": "compute"},
        reason=("exited", "syscall_denied"),
        stdout=None,
        also=lambda answer: "it forked" if "forked" in answer["stdout"] else "",
    ),
)
