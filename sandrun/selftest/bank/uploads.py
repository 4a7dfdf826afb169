"""I: archives and forms. Made here byte by byte: libraries refuse to write most of them."""

from __future__ import annotations

import gzip
import io
import random
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, Final

from sandrun.selftest.case import Call, Case, each, expect
from sandrun.selftest.target import Target, form, multipart

_MAIN: Final = b"print(open('canary').read() if __import__('os').path.exists('canary') else 'ran')"
# What a client may be told of a refused upload.
_REFUSED: Final = ("upload_error", "out_of_memory", "storage_limit")


# ── tar, by hand ─────────────────────────────────────────────────────────────


def member(
    name: bytes,
    data: bytes = b"",
    *,
    kind: bytes = b"0",
    link: bytes = b"",
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    size: bytes | None = None,
    mtime: bytes = b"00000000000\0",
    checksum: bytes | None = None,
    magic: bytes = b"ustar\x0000",
) -> bytes:
    """One tar member; every field may be a lie."""
    size = b"%011o\0" % len(data) if size is None else size
    head = bytearray(
        name[:100].ljust(100, b"\0") + mode + uid + uid + size + mtime + b" " * 8 + kind
        + link[:100].ljust(100, b"\0") + magic + bytes(247)
    )  # fmt: skip
    head[148:156] = b"%06o\0 " % sum(head) if checksum is None else checksum
    return bytes(head) + data + bytes(-len(data) % 512)


END: Final = bytes(1024)
MAIN: Final = member(b"main.py", _MAIN)


def pax(**fields: str | bytes) -> bytes:
    """A pax header with these records."""
    records = b""
    for key, value in fields.items():
        raw = value.encode() if isinstance(value, str) else value
        body = b" " + key.replace("__", ".").encode() + b"=" + raw + b"\n"
        size = len(body)
        while len(str(size)) + len(body) != size:
            size = len(str(size)) + len(body)
        records += str(size).encode() + body
    return member(b"pax", records, kind=b"x")


def _answer(target: Target, data: bytes, name: str = "a.tar") -> tuple[str, dict[str, Any]]:
    reply = target.post("/run", {name: data}, {"timeout": 10})
    if reply.status != 200:
        expect(400 <= reply.status < 500, f"{reply.status}: {reply.body[:200]!r}")
        return f"http_{reply.status}", {}
    answer = reply.json()
    return answer["exit_reason"], answer


def refused_tar(*members: bytes, name: str = "a.tar") -> Callable[[Target], None]:
    """The archive must be refused before anything of it has run."""

    def run(target: Target) -> None:
        reason, answer = _answer(target, b"".join(members), name)
        expect(
            reason in _REFUSED or reason.startswith("http_4"),
            f"ended as {reason}, printed {answer.get('stdout', '')[:200]!r}",
        )
        expect(not answer.get("stdout"), f"something ran: {answer.get('stdout', '')[:200]!r}")

    return run


def accepted_tar(check: str, *members: bytes, name: str = "a.tar") -> Callable[[Target], None]:
    """The archive is taken, and what it made is harmless: ``check`` (Python) prints held."""

    def run(target: Target) -> None:
        program = member(b"main.py", check.encode())
        reason, answer = _answer(target, b"".join(members) + program + END, name)
        text = answer.get("stdout", "")
        expect(
            reason in _REFUSED or reason.startswith("http_4") or text == "held\n",
            f"ended as {reason}, printed {text[:300]!r} {answer.get('stderr', '')[-300:]!r}",
        )

    return run


_OUTSIDE: Final = (
    "import os\n"
    "bad = [p for p in ('/etc/x', '/tmp/x', '/x', '/home/sandrun/x', '/dev/shm/x', '/work/../x') if os.path.exists(p)]\n"
    "print(bad or 'held')\n"
)


# ── zip, by hand ─────────────────────────────────────────────────────────────


def _zip(entries: dict[str, bytes], **changes: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", changes.pop("method", zipfile.ZIP_DEFLATED)) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                if name != "main.py":
                    setattr(info, key, value)
            archive.writestr(info, data)
    return buffer.getvalue()


def refused_made(name: str, make: Callable[[], bytes]) -> Callable[[Target], None]:
    """As :func:`refused_tar`, of an archive that is made when it is needed."""

    def run(target: Target) -> None:
        refused_tar(make(), name=name)(target)

    return run


def refused_zip(make: Callable[[], bytes]) -> Callable[[Target], None]:
    """As :func:`refused_tar`."""
    return refused_made("a.zip", make)


def _overlapping() -> bytes:
    """Fifield's idea: many entries of the directory name the same data."""
    whole = _zip({"main.py": _MAIN, "bomb": bytes(1 << 20)})
    end = whole.rindex(b"PK\5\6")
    start = struct.unpack("<I", whole[end + 16 : end + 20])[0]
    directory = whole[start:end]
    second = directory.index(b"PK\1\2", 4)
    entry = directory[second:]
    entries = b"".join(entry.replace(b"bomb", b"b%03d" % i) for i in range(200))
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 201, 201, second + len(entries), start, 0)
    return whole[:start] + directory[:second] + entries + tail


def _bad_crc() -> bytes:
    data = bytearray(_zip({"main.py": _MAIN, "x": b"hello" * 100}))
    at = data.index(b"PK\3\4", 4)
    data[at + 14 : at + 18] = b"\1\2\3\4"
    at = data.rindex(b"PK\1\2")
    data[at + 16 : at + 20] = b"\1\2\3\4"
    return bytes(data)


def _encrypted() -> bytes:
    data = bytearray(_zip({"main.py": _MAIN}))
    data[6] |= 1
    at = data.rindex(b"PK\1\2")
    data[at + 8] |= 1
    return bytes(data)


def _sizes_lie() -> bytes:
    data = bytearray(_zip({"main.py": _MAIN}))
    for at in (data.index(b"PK\3\4") + 22, data.rindex(b"PK\1\2") + 24):
        data[at : at + 4] = struct.pack("<I", 0xFFFFFFF0)
    return bytes(data)


# ── bombs and floods ─────────────────────────────────────────────────────────


def _gzip_bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    out = [packer.compress(member(b"big", b"", size=b"%011o\0" % (600 << 20)))]
    piece = bytes(1 << 20)
    out += [packer.compress(piece) for _ in range(600)]
    return b"".join((*out, packer.flush()))


def _many_members(kind: bytes, count: int) -> bytes:
    one = (member(b"%d" % i, kind=kind) for i in range(count))
    return gzip.compress(b"".join((MAIN, *one, END)), 1)


def _lying_name(target: Target) -> None:
    for name, data in (
        ("a.tar.gz", b"this is not gzip"),
        ("a.zip", b"PK\3\4nothing"),
        ("a.tar", b"\0" * 100),
        ("a.tgz", gzip.compress(b"neither is this a tar" * 100)),
        ("a.zip", MAIN + END),
    ):
        refused_tar(data, name=name)(target)


def _nested_is_kept(target: Target) -> None:
    """An archive in an archive is a file like any other."""
    inner = _zip({"x": b"1"})
    code = (
        b"import os; print('held' if os.path.getsize('in.zip') == %d and not os.path.exists('x') else os.listdir())"
        % len(inner)
    )
    reason, answer = _answer(target, member(b"main.py", code) + member(b"in.zip", inner) + END)
    expect(answer.get("stdout") == "held\n", f"{reason}: {answer.get('stdout')!r}")


def _random_bytes(target: Target) -> None:
    seed = secrets.randbelow(1 << 32)
    source = random.Random(seed)  # noqa: S311 - reproducible, not secret
    for name in ("a.tar", "a.tar.gz", "a.zip") * 3:
        good = MAIN + member(b"dir/x", b"y" * 3000) + END
        whole = {
            "a.tar": good,
            "a.tar.gz": gzip.compress(good),
            "a.zip": _zip({"main.py": _MAIN, "y": b"z" * 999}),
        }
        data = bytearray(whole[name])
        for _ in range(source.randint(1, 12)):
            data[source.randrange(len(data))] = source.randrange(256)
        reply = target.post("/run", {name: bytes(data)}, {"timeout": 5})
        expect(reply.status < 500, f"seed {seed}: {name}: {reply.status} {reply.body[:200]!r}")
        if reply.status == 200:
            reason = reply.json()["exit_reason"]
            expect(reason != "server_fault", f"seed {seed}: {name}: {reply.json()['evidence']}")


def _truncations(target: Target) -> None:
    whole = gzip.compress(MAIN + member(b"x", b"y" * 5000) + END)
    for cut in (1, 9, 20, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        refused_tar(whole[:cut], name="a.tar.gz")(target)
    whole = _zip({"main.py": _MAIN, "x": b"y" * 500})
    for cut in (5, 40, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        refused_tar(whole[:cut], name="a.zip")(target)


# ── forms ────────────────────────────────────────────────────────────────────

_NAMES: Final = (
    "../main.py", "/etc/passwd", "a/../../b", "..", ".", "", "a\\..\\b", "C:\\x", "a/./../..",
    "a\x00b", "a\nb", "\x7f", "x" * 300, "/".join("d" * 100 for _ in range(60)), "a//../..//b",
)  # fmt: skip


def _bad_filenames(target: Target) -> None:
    for name in _NAMES:
        boundary = secrets.token_hex(8)
        head = f'name="files"; filename="{name}"'
        body = form(boundary, [(head, b"x"), ('name="files"; filename="main.py"', b"print(1)")])
        reply = target.request(
            "POST", "/run", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        )
        if reply.status == 200:
            answer = reply.json()
            expect(answer["exit_reason"] != "server_fault", f"{name!r}: {answer['evidence']}")
        else:
            expect(400 <= reply.status < 500, f"{name!r}: {reply.status} {reply.body[:200]!r}")


def _odd_filenames_are_kept(target: Target) -> None:
    names = ["-rf", "--checkpoint-action=exec=sh x", "a b ", "CON", "aux.txt", "é", "e\u0301", "x.", "$(id)", "`id`", "; id", "'", "a*b", "?", "[a]", "~", "..."]  # fmt: skip
    files: dict[str, str | bytes] = dict.fromkeys(names, "x")
    files["main.py"] = "import os; print(sorted(n for n in os.listdir() if n != 'main.py'))"
    answer = target.run(files, {"outputs": []})
    expect(answer["stdout"] == f"{sorted(names)}\n", f"found {answer['stdout'][:500]!r}")


def _form(
    *pieces: bytes, kind: str = "multipart/form-data; boundary=b"
) -> Callable[[Target], None]:
    """A malformed form is refused with 4xx."""

    def run(target: Target) -> None:
        reply = target.request("POST", "/submit", b"".join(pieces), {"Content-Type": kind})
        expect(400 <= reply.status < 500, f"{reply.status}: {reply.body[:200]!r}")
        expect("error" in reply.json(), "no error in the answer")

    return run


def _many_parts(target: Target) -> None:
    parts = [(f'name="files"; filename="f{i}"', b"") for i in range(20_000)]
    body = form("b", parts)
    reply = target.request(
        "POST", "/submit", body, {"Content-Type": "multipart/form-data; boundary=b"}
    )
    expect(400 <= reply.status < 500, f"{reply.status}: {reply.body[:200]!r}")


def _too_large(target: Target) -> None:
    head = target.head(
        "POST /submit HTTP/1.1",
        "Content-Type: multipart/form-data; boundary=b",
        "Content-Length: 99999999999",
    )
    text = target.raw(head)
    expect(text.startswith(b"HTTP/1.1 413"), f"answered {text[:80]!r} before reading")


def _disconnects(target: Target) -> None:
    body, kind = multipart({"main.py": "print('never')" + "#" * 5000}, {})
    head = target.head(
        "POST /submit HTTP/1.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}"
    )
    whole = head + body
    before = target.get("/stats").json()["system"]
    for cut in range(1, len(whole) - 1, max(1, len(whole) // 40)):
        with target.wire() as wire:
            wire.send(whole[:cut])
    after = target.get("/stats").json()["system"]
    expect(
        after["queue_length"] <= before["queue_length"] + 3, f"jobs were made: {before} → {after}"
    )


def _both(target: Target) -> None:
    """Two archives that disagree, and a file that both want."""
    reply = target.post(
        "/run", {"a.tar": MAIN + member(b"x", b"1") + END, "b.tar": member(b"x", b"2") + END}, {}
    )
    if reply.status == 200:
        expect(
            reply.json()["exit_reason"] == "upload_error", f"ended as {reply.json()['exit_reason']}"
        )


def _blank_requirements(target: Target) -> None:
    """The event loop took a minute for a line of blanks, with everybody's requests behind it."""
    files: dict[str, str | bytes] = {
        "main.py": "print(1)",
        "requirements.txt": " " * 60_000 + "-e .",
    }
    answer = target.run(files, {"requirements": "requirements.txt"})
    expect(answer["exit_reason"] == "dependency_error", f"ended as {answer['exit_reason']}")


def _link_by_the_top(target: Target) -> None:
    """The directory around everything is taken away: no link may have needed its name."""
    code = b"import os; p = os.path.realpath('l'); print('held' if p.startswith('/work/') else p)"
    link = member(b"etc/l", kind=b"2", link=b"../etc/passwd")
    reason, answer = _answer(target, member(b"etc/main.py", code) + link + END)
    held = reason in _REFUSED or answer.get("stdout") == "held\n"
    expect(held, f"{reason}: {answer.get('stdout')!r}")


def call(id: str, title: str, run: Callable[[Target], None], **more: Any) -> Call:  # noqa: A002
    """Shorter."""
    return Call(id=id, title=title, run=run, **more)


CASES: Final[tuple[Case, ...]] = (
    call("I1", "tar: ../ in a name", refused_tar(MAIN, member(b"../x", b"1"), END)),
    call("I1.deep", "tar: a/../../x", refused_tar(MAIN, member(b"a/../../x", b"1"), END)),
    call("I2", "tar: absolute names", refused_tar(MAIN, member(b"/etc/cron.d/x", b"1"), END)),
    call("I2.slashes", "tar: //x", refused_tar(MAIN, member(b"//x", b"1"), END)),
    call("I2.windows", "tar: C:\\x", refused_tar(MAIN, member(b"C:\\x", b"1"), END)),
    call(
        "I2.pax",
        "tar: an absolute path in a pax header",
        refused_tar(MAIN, pax(path="/etc/x"), member(b"y", b"1"), END),
    ),
    call(
        "I3",
        "tar: a file through a link to /etc",
        refused_tar(MAIN, member(b"d", kind=b"2", link=b"/etc"), member(b"d/x", b"1"), END),
    ),
    call(
        "I3.up",
        "tar: a file through a link to ../..",
        refused_tar(MAIN, member(b"d", kind=b"2", link=b"../.."), member(b"d/x", b"1"), END),
    ),
    call(
        "I3.self",
        "tar: a file through a link to .",
        refused_tar(MAIN, member(b"d", kind=b"2", link=b"."), member(b"d/x", b"1"), END),
    ),
    call(
        "I3.late",
        "tar: the link comes after the file",
        refused_tar(MAIN, member(b"d/x", b"1"), member(b"d", kind=b"2", link=b"/tmp"), END),
    ),
    call(
        "I3.main",
        "tar: main.py is a link to a file of the host",
        refused_tar(member(b"main.py", kind=b"2", link=b"/etc/passwd"), END),
    ),
    call(
        "I3.pax",
        "tar: a pax linkpath that leaves",
        refused_tar(
            MAIN, pax(linkpath="../../etc/passwd"), member(b"d", kind=b"2", link=b"x"), END
        ),
    ),
    call("I3.strip", "tar: a link whose target holds the directory around it", _link_by_the_top),
    call(
        "I4",
        "tar: chains of links longer than PATH_MAX (CVE-2025-4517)",
        refused_tar(
            MAIN,
            *(
                piece
                for i in range(16)
                for piece in (
                    member(b"/".join([b"d" * 90] * 1) + b"%d" % i, kind=b"5"),
                    member(
                        b"l%d" % i,
                        kind=b"2",
                        link=b"/".join([b"d" * 80] + [b".."] * 2) + b"/l%d" % (i + 1),
                    ),
                )
            ),
            member(b"l0/../../x", b"1"),
            END,
        ),
    ),
    call(
        "I5",
        "tar: a hard link to /etc/passwd",
        refused_tar(MAIN, member(b"h", kind=b"1", link=b"/etc/passwd"), END),
    ),
    call(
        "I5.up",
        "tar: a hard link to ../x",
        refused_tar(MAIN, member(b"h", kind=b"1", link=b"../x"), END),
    ),
    call(
        "I5.link",
        "tar: a hard link to a link of the archive (CVE-2025-4330)",
        refused_tar(
            MAIN, member(b"s", kind=b"2", link=b"main.py"), member(b"h", kind=b"1", link=b"s"), END
        ),
    ),
    *(
        call(f"I6.{name}", f"tar: a {name}", refused_tar(MAIN, member(b"d", kind=kind), END))
        for name, kind in (
            ("character device", b"3"),
            ("block device", b"4"),
            ("fifo", b"6"),
            ("sparse file", b"S"),
            ("multi-volume part", b"M"),
            ("volume label", b"V"),
            ("unknown type", b"Z"),
        )
    ),
    call(
        "I7",
        "tar: set-user-id, sticky and closed modes, foreign owners, impossible times",
        accepted_tar(
            "import os, stat\nbad = []\n"
            "for root, dirs, files in os.walk('.'):\n"
            "    for n in dirs + files:\n"
            "        s = os.lstat(os.path.join(root, n))\n"
            "        if s.st_mode & 0o7000 or s.st_uid != 1000 or (stat.S_ISREG(s.st_mode) and s.st_mode & 0o022): bad.append((n, oct(s.st_mode), s.st_uid))\n"
            "print(bad or 'held')\n",
            member(b"suid", b"x", mode=b"0006755\0", uid=b"0000000\0"),
            member(b"open", b"x", mode=b"0000777\0", uid=b"7777777\0"),
            member(b"shut/", kind=b"5", mode=b"0000000\0"),
            member(b"shut/in", b"x", mode=b"0000000\0"),
            member(b"late", b"x", mtime=b"77777777777\0"),
        ),
    ),
    call(
        "I8",
        "tar: capabilities and ACLs in pax headers are not set",
        accepted_tar(
            "import os\nprint('held' if os.access('f', os.R_OK) else 'x')\n",
            pax(
                SCHILY__xattr__security__capability=b"\x01\x00\x00\x02\xff\xff",
                LIBARCHIVE__xattr__user__x="eA==",
            ),
            member(b"f", b"1"),
        ),
    ),
    call(
        "I10",
        "tar: a GNU long name of a gigabyte",
        refused_tar(MAIN, member(b"L", kind=b"L", size=b"%011o\0" % (1 << 30)), END),
    ),
    call(
        "I10.alone",
        "tar: a GNU long name with nothing behind it",
        refused_tar(MAIN, member(b"L", b"name\0", kind=b"L"), END),
    ),
    call(
        "I10.up",
        "tar: a GNU long name that leaves",
        refused_tar(MAIN, member(b"L", b"../../x\0", kind=b"L"), member(b"y", b"1"), END),
    ),
    call(
        "I11",
        "tar: a pax sparse file of exabytes",
        refused_tar(
            MAIN,
            pax(
                GNU__sparse__major="1",
                GNU__sparse__minor="0",
                GNU__sparse__realsize="9223372036854775807",
                GNU__sparse__name="s",
            ),
            member(b"s", b"1\n0\n1\n"),
            END,
        ),
    ),
    call(
        "I12.negative",
        "tar: a negative size",
        refused_tar(MAIN, member(b"x", b"1", size=b"-0000000001\0"), END),
    ),
    call(
        "I12.base256",
        "tar: a base-256 size of exabytes",
        refused_tar(MAIN, member(b"x", b"1", size=b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7), END),
    ),
    call(
        "I12.rest",
        "tar: a size greater than the rest",
        refused_tar(MAIN, member(b"x", b"1", size=b"00000100000\0"), END),
    ),
    call(
        "I12.checksum",
        "tar: a wrong checksum",
        refused_tar(MAIN, member(b"x", b"1", checksum=b"0000001\0"), END),
    ),
    call("I12.trailing", "tar: data behind the end", refused_tar(MAIN, END, b"more" * 1000)),
    call("I12.end", "tar: no end", refused_tar(MAIN, member(b"x", b"1"))),
    call(
        "I12.pax_size",
        "tar: a pax size that disagrees",
        refused_tar(MAIN, pax(size="99999999999"), member(b"x", b"1"), END),
    ),
    call(
        "I13",
        "tar: the same name twice",
        refused_tar(MAIN, member(b"x", b"1"), member(b"x", b"2"), END),
    ),
    call(
        "I13.kinds",
        "tar: a file, then a directory, then a link of one name",
        refused_tar(
            MAIN,
            member(b"x", b"1"),
            member(b"x/", kind=b"5"),
            member(b"x", kind=b"2", link=b"/etc"),
            END,
        ),
    ),
    call(
        "I13.below",
        "tar: a file and something below it",
        refused_tar(MAIN, member(b"x", b"1"), member(b"x/y", b"2"), END),
    ),
    call(
        "I13.dot",
        "tar: the same file as x and ./x",
        refused_tar(MAIN, member(b"x", b"1"), member(b"./x", b"2"), END),
    ),
    call(
        "I13.main",
        "tar: main.py twice",
        refused_tar(MAIN, member(b"./main.py", b"print('second')"), END),
    ),
    call(
        "I14",
        "gzip: 600 MB in 600 KB",
        refused_made("a.tar.gz", _gzip_bomb),
        heavy=True,
    ),
    call(
        "I14.members",
        "gzip: thousands of members",
        refused_made(
            "a.tar.gz",
            lambda: b"".join(gzip.compress(b"") for _ in range(5000)) + gzip.compress(MAIN + END),
        ),
    ),
    call(
        "I14.twice",
        "gzip in gzip is no tar",
        refused_tar(gzip.compress(gzip.compress(MAIN + END)), name="a.tar.gz"),
    ),
    call(
        "I15",
        "xz, bzip2 and zstd are not understood",
        each(
            *(
                refused_tar(magic + bytes(100))
                for magic in (b"\xfd7zXZ\0", b"BZh9", b"\x28\xb5\x2f\xfd")
            )
        ),
    ),
    call("I16", "zip: two hundred entries over the same data", refused_zip(_overlapping)),
    call("I16.nested", "an archive in an archive stays closed", _nested_is_kept),
    call(
        "I17.up", "zip: ../ in a name", refused_zip(lambda: _zip({"main.py": _MAIN, "../x": b"1"}))
    ),
    call(
        "I17.absolute",
        "zip: an absolute name",
        refused_zip(lambda: _zip({"main.py": _MAIN, "/etc/x": b"1"})),
    ),
    call(
        "I17.backslash",
        "zip: a name with backslashes",
        refused_zip(lambda: _zip({"main.py": _MAIN, "..\\x": b"1"})),
    ),
    call(
        "I18",
        "zip: a symbolic link",
        refused_zip(
            lambda: _zip(
                {"main.py": _MAIN, "l": b"/etc/passwd"}, external_attr=0xA1FF0000, create_system=3
            )
        ),
    ),
    call(
        "I18.device",
        "zip: a device and a fifo",
        refused_zip(
            lambda: _zip({"main.py": _MAIN, "l": b""}, external_attr=0x61B60000, create_system=3)
        ),
    ),
    call("I19.crc", "zip: a wrong CRC", refused_zip(_bad_crc)),
    call("I19.encrypted", "zip: an encrypted entry", refused_zip(_encrypted)),
    call("I19.sizes", "zip: sizes that lie", refused_zip(_sizes_lie)),
    call(
        "I19.prefix",
        "zip: junk before it",
        refused_zip(lambda: b"MZ" + bytes(500) + _zip({"main.py": _MAIN})),
    ),
    call(
        "I19.comment",
        "zip: an end record inside the comment",
        refused_zip(
            lambda: _zip({"main.py": _MAIN})[:-2] + struct.pack("<H", 22) + b"PK\5\6" + bytes(18)
        ),
    ),
    call(
        "I19.bomb",
        "zip: 600 MB in 600 KB",
        refused_zip(lambda: _zip({"main.py": _MAIN, "big": bytes(600 << 20)})),
        heavy=True,
    ),
    call(
        "I20.files",
        "tar: thirty thousand files",
        refused_made("a.tar.gz", lambda: _many_members(b"0", 30_000)),
        heavy=True,
    ),
    call(
        "I20.directories",
        "tar: thirty thousand directories",
        refused_made("a.tar.gz", lambda: _many_members(b"5", 30_000)),
        heavy=True,
    ),
    call(
        "I20.deep",
        "tar: a directory of depth ten thousand",
        refused_tar(MAIN, member(b"L", b"d/" * 10_000 + b"\0", kind=b"L"), member(b"y", b"1"), END),
    ),
    call(
        "I21",
        "names that are not UTF-8, or hold control characters",
        each(
            *(
                refused_tar(MAIN, member(name, b"1"), END)
                for name in (b"\xff\xfe", b"a\nb", b"\x1b[31m", b"a\x7f", b"\xed\xa0\x80")
            )
        ),
    ),
    call(
        "I21.odd",
        "odd but honest names arrive byte for byte and reach no shell",
        _odd_filenames_are_kept,
    ),
    call(
        "I22.outside",
        "a file next to /work, /tmp and / does not appear",
        accepted_tar(_OUTSIDE, member(b"x", b"1")),
    ),
    call("I23", "form: hostile file names", _bad_filenames),
    call("I24.parts", "form: twenty thousand parts", _many_parts, heavy=True),
    call("I24.boundary", "form: no boundary", _form(b"--b--\r\n", kind="multipart/form-data")),
    call(
        "I24.long_boundary",
        "form: a boundary of 200 characters",
        _form(b"--" + b"b" * 200 + b"--\r\n", kind="multipart/form-data; boundary=" + "b" * 200),
    ),
    call(
        "I24.open",
        "form: no closing boundary",
        _form(
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="main.py"\r\n\r\nprint(1)'
        ),
    ),
    call(
        "I24.heads",
        "form: a part with a megabyte of header",
        _form(b"--b\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n\r\n--b--\r\n"),
    ),
    call(
        "I24.many_heads",
        "form: a part with ten thousand fields",
        _form(b"--b\r\n" + b"X: a\r\n" * 10_000 + b"\r\n\r\n--b--\r\n"),
    ),
    call(
        "I24.preamble",
        "form: a megabyte before the first boundary",
        _form(b"x" * (1 << 20) + b"\r\n--b--\r\n"),
    ),
    call(
        "I24.charset",
        "form: _charset_, base64 and nested multipart",
        _form(
            b'--b\r\nContent-Disposition: form-data; name="manifest"\r\nContent-Transfer-Encoding: base64\r\n\r\ne30=\r\n--b--\r\n'
        ),
    ),
    call("I24.empty", "form: nothing in it", _form(b"--b--\r\n")),
    call(
        "I24.unknown",
        "form: parts of unknown names",
        _form(b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--b--\r\n'),
    ),
    call(
        "I24.manifests",
        "form: two manifests",
        _form(
            b'--b\r\nContent-Disposition: form-data; name="manifest"\r\n\r\n{}\r\n--b\r\nContent-Disposition: form-data; name="manifest"\r\n\r\n{"args":["x"]}\r\n--b\r\nContent-Disposition: form-data; name="files"; filename="main.py"\r\n\r\n1\r\n--b--\r\n'
        ),
    ),
    call("I24.disposition", "form: no Content-Disposition", _form(b"--b\r\n\r\nx\r\n--b--\r\n")),
    call(
        "I24.twins",
        "form: one file name twice",
        _form(
            *[
                b'--b\r\nContent-Disposition: form-data; name="files"; filename="main.py"\r\n\r\n1\r\n'
            ]
            * 2,
            b"--b--\r\n",
        ),
    ),
    call("I25", "a client that disconnects at forty places leaves no job", _disconnects),
    call("I26", "an upload over the limit is refused before it is read", _too_large),
    call("I27.names", "archives whose names lie about their kind", _lying_name),
    call("I28", "two archives that want the same file", _both),
    call("I29.truncated", "archives cut short, at many places", _truncations),
    call(
        "I30.random",
        "archives with random bytes changed (the seed is in the complaint)",
        _random_bytes,
    ),
    call("I31", "requirements of sixty thousand blanks cost nobody anything", _blank_requirements),
)
