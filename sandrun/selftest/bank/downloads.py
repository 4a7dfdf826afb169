"""K: what is handed back, and how."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from sandrun.selftest.case import Answer, Call, Case, expect
from sandrun.selftest.target import Target

_NAMES: Final = (
    "plain.txt", "a b.txt", '";x="', "é.txt", "\u202egnp.exe", "-rf", "%2e%2e", "x\\y", "a;b,c",
    "<img src=x onerror=alert(1)>", "😀.bin", "c" * 255,
)  # fmt: skip


def _made(target: Target, code: str, *patterns: str, **manifest: Any) -> Answer:
    return target.run({"main.py": code}, {"outputs": list(patterns) or ["*"], **manifest})


def _links_are_not_followed(target: Target) -> None:
    code = (
        "import os\n"
        "for n, to in (('a.txt', '/etc/passwd'), ('b.txt', '/proc/self/environ'), ('c.txt', '/proc/1/root/etc/shadow'), ('d.txt', '../../etc/hosts'), ('e.txt', 'main.py'), ('f.txt', '/usr/bin/env')):\n"
        "    os.symlink(to, n)\n"
        "os.symlink('/etc', 'dir'); os.symlink('.', 'here')\n"
    )
    answer = _made(target, code, "**")
    expect(not answer["output_files"], f"handed back {answer['output_files']}")
    job = answer["job_id"]
    for path in ("a.txt", "b.txt", "dir/passwd", "here/main.py", "e.txt"):
        reply = target.get(f"/download/{job}/{path}")
        expect(reply.status == 404, f"{path}: {reply.status} {reply.body[:80]!r}")
    data = target.get(f"/download/{job}?format=tar&keep=1")
    expect(b"root:" not in data.body, "the archive holds /etc/passwd")


def _hard_links(target: Target) -> None:
    code = (
        "import os\n"
        "for p in ('/etc/passwd', '/usr/bin/env'):\n"
        "    try: os.link(p, 'x.txt'); print('linked', p)\n    except OSError: pass\n"
        "open('own.txt', 'w').write('own'); os.link('own.txt', 'twin.txt')\n"
    )
    answer = _made(target, code, "*.txt")
    expect(answer["stdout"] == "", f"{answer['stdout']!r}")
    expect(set(answer["output_files"]) <= {"own.txt", "twin.txt"}, f"{answer['output_files']}")


def _names_in_headers(target: Target) -> None:
    code = f"for n in {_NAMES!r}: open(n, 'w').write('data')\nopen('x\\r\\nSet-Cookie: a=b', 'w').write('data')\n"
    answer = _made(target, code, "*")
    job = answer["job_id"]
    expect(
        answer["exit_reason"] == "exited", f"ended as {answer['exit_reason']} {answer['stderr']}"
    )
    for name in answer["output_files"]:
        reply = target.get(f"/download/{job}/{quote(name, safe='')}")
        if reply.status != 200:
            expect(reply.status in (400, 404), f"{name!r}: {reply.status}")
            continue
        expect(reply.body == b"data", f"{name!r}: {reply.body[:50]!r}")
        expect("set-cookie" not in reply.headers, f"{name!r} adds a header")
        disposition = reply.headers.get("content-disposition", "")
        expect(disposition.startswith("attachment"), f"{name!r}: {disposition!r}")
        expect(disposition.isascii() and disposition.isprintable(), f"{name!r}: {disposition!r}")
    expect("plain.txt" in answer["output_files"], "the honest file is missing")


def _traversal(target: Target) -> None:
    job = _made(target, "open('out.txt', 'w').write('data')")["job_id"]
    for path in (
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "%252e%252e/x", "..%5c..%5cx",
        "%c0%ae%c0%ae/x", "/etc/passwd", "//etc/passwd", "./out.txt", "out.txt%00", "out.txt/", "out.txt;x", "out.txt%20",
        "main.py", "a/../out.txt", "", "x" * 5000, "%ff%fe", "out.txt%0d%0aX:y", "OUT.TXT",
    ):  # fmt: skip
        text = target.raw(target.head(f"GET /download/{job}/{path} HTTP/1.1", "Connection: close"))
        status = text[9:12]
        ok = (status.startswith(b"4") or status == b"200") and b"root:" not in text
        expect(ok, f"{path[:60]!r}: {text[:100]!r}")
        if status == b"200":
            expect(path in ("./out.txt", "main.py", ""), f"{path!r} gave {text[-60:]!r}")


def _active_content(target: Target) -> None:
    names = (
        "a.html",
        "b.svg",
        "c.js",
        "d.xml",
        "e.xhtml",
        "f.pdf",
        "g.mhtml",
        "h",
        "i.htm",
        "j.swf",
    )
    code = f"for n in {names!r}: open(n, 'w').write('<script>alert(1)</script>')\n"
    answer = _made(target, code, "*")
    for name in names:
        headers = target.get(f"/download/{answer['job_id']}/{name}").headers
        expect(headers.get("x-content-type-options") == "nosniff", f"{name}: may be sniffed")
        expect(headers.get("content-disposition", "").startswith("attachment"), f"{name}: inline")
        policy = headers.get("content-security-policy", "")
        expect("sandbox" in policy, f"{name}: policy {policy!r}")
        expect("allow-scripts" not in policy, f"{name}: policy {policy!r}")


def _ranges(target: Target) -> None:
    job = _made(target, "open('o.bin', 'wb').write(bytes(range(256)) * 400)")["job_id"]
    size = 256 * 400
    path = f"/download/{job}/o.bin"
    for value in (
        "bytes=0-0," * 1000 + "1-1", "bytes=" + ",".join(f"{i}-" for i in range(200)), "bytes=0-18446744073709551616",
        "bytes=18446744073709551616-", "bytes=-0", "bytes=5-2", "bytes=a-b", "octets=0-1", "bytes=", "bytes=-", "bytes=0-0,0-0",
        "bytes=-99999999999", "bytes=0-99999999999", "bytes= 0-1", "bytes=0-1;q=1", "bytes=\x660-1",
    ):  # fmt: skip
        reply = target.request("GET", path, headers={"Range": value})
        expect(reply.status in (200, 206, 400, 416), f"{value[:40]!r}: {reply.status}")
        expect(
            len(reply.body) <= size + 20_000, f"{value[:40]!r}: {len(reply.body)} bytes of {size}"
        )
    reply = target.request("GET", path, headers={"Range": "bytes=10-19"})
    expect(
        reply.status == 206 and reply.body == bytes(range(10, 20)), f"{reply.status} {reply.body!r}"
    )


def _conditions(target: Target) -> None:
    job = _made(target, "open('o', 'w').write('data')")["job_id"]
    path = f"/download/{job}/o"
    for name in ("If-None-Match", "If-Range", "If-Match", "If-Modified-Since"):
        for value in ("*", '"x"', 'W/"x"', "x" * 3000, '"' * 50, "\x7f", ", " * 500):
            text = target.raw(
                target.head(f"GET {path} HTTP/1.1", f"{name}: {value}", "Connection: close")
            )
            expect(
                text[9:12] in (b"200", b"304", b"400", b"412", b"431"),
                f"{name}: {value[:30]!r}: {text[:60]!r}",
            )


def _archive_names(target: Target) -> None:
    code = (
        "import os\n"
        "for n in ('-rf', '--checkpoint=1', 'a b', 'n\\nl', 'é', 'x' * 255):\n    open(n, 'w').write('d')\n"
        "try: open(b'\\xff\\xfe', 'w').write('d')\nexcept OSError: pass\n"
        "os.makedirs('/'.join(['d' * 50] * 30)); open('/'.join(['d' * 50] * 30) + '/f', 'w').write('d')\n"
    )
    job = _made(target, code, "**")["job_id"]
    for kind in ("tar", "tar.gz", "zip"):
        data = target.get(f"/download/{job}?format={kind}&keep=1")
        expect(data.status == 200, f"{kind}: {data.status}")
        for name in _list_archive(kind, data.body):
            path = PurePosixPath(name)
            expect(not path.is_absolute() and ".." not in path.parts, f"{kind}: {name!r}")


def _list_archive(kind: str, data: bytes) -> list[str]:
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        expect(all(m.isreg() or m.isdir() for m in members), "the archive holds more than files")
        return [m.name for m in members]


def _broken_download_deletes_nothing(target: Target) -> None:
    job = _made(target, "open('o', 'wb').write(bytes(8 << 20))")["job_id"]
    for _ in range(3):
        with target.wire() as wire:
            wire.send(target.head(f"GET /download/{job}?format=tar HTTP/1.1"))
            wire.exactly(5000)
    expect(target.get(f"/status/{job}").status == 200, "a broken download deleted the job")


def _views_never_change(target: Target) -> None:
    answer = _made(target, "open('o', 'w').write('d')")
    view = answer["view_id"]
    for method, path in (("DELETE", f"/jobs/{view}"), ("POST", f"/jobs/{view}/cancel")):
        reply = target.request(method, path)
        expect(reply.status in (403, 404), f"{method} with a view: {reply.status}")
    expect(target.get(f"/download/{view}").status == 200, "a view reads")
    expect(
        target.get(f"/status/{answer['job_id']}").status == 200, "a view's download deleted the job"
    )


def _delete_while_downloading(target: Target) -> None:
    job = _made(target, "open('o', 'wb').write(b'z' * (16 << 20))")["job_id"]
    with target.wire() as wire:
        wire.send(target.head(f"GET /download/{job}/o HTTP/1.1", "Connection: close"))
        wire.exactly(1000)
        reply = target.request("DELETE", f"/jobs/{job}")
        expect(reply.status in (200, 204), f"DELETE: {reply.status}")
        rest = wire.receive()
    expect(set(rest[-1000:]) <= {ord("z")}, "other data came")
    expect(target.get(f"/status/{job}").status == 404, "the job is still there")
    expect(target.get(f"/download/{job}/o").status == 404, "the output is still there")


def _unlisted_is_not_served(target: Target) -> None:
    code = "open('public.txt', 'w').write('a'); open('secret.key', 'w').write('b')"
    job = _made(target, code, "*.txt")["job_id"]
    expect(target.get(f"/download/{job}/secret.key").status == 404, "a file that no pattern names")
    data = target.get(f"/download/{job}?format=tar&keep=1").body
    expect(b"secret.key" not in data, "it is in the archive")


def _huge_outputs(target: Target) -> None:
    code = "import os\nfor i in range(12000): open(f'{i}', 'w').close()\n"
    answer = _made(target, code, "*", storage_mb=100)
    expect(
        answer["exit_reason"] in ("exited", "storage_limit", "nonzero_exit"), answer["exit_reason"]
    )
    expect(len(answer["output_files"]) <= 10_000, f"{len(answer['output_files'])} files")


def _swapped(target: Target) -> None:
    """A file that becomes a fifo, a link, a directory while the job ends."""
    code = (
        "import os\n"
        "open('o.txt', 'w').write('mine')\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True:\n"
        "        for make in (lambda: os.mkfifo('n'), lambda: os.symlink('/etc/passwd', 'n'), lambda: os.mkdir('n')):\n"
        "            try:\n                make(); os.rename('n', 'o.txt')\n"
        "            except OSError:\n"
        "                for f in (os.unlink, os.rmdir):\n"
        "                    try: f('o.txt')\n                    except OSError: pass\n"
        "                    try: f('n')\n                    except OSError: pass\n"
    )
    for _ in range(5):
        answer = _made(target, code, "o.txt")
        reply = target.get(f"/download/{answer['job_id']}/o.txt")
        expect(reply.status in (200, 404), f"{reply.status}")
        expect(b"root:" not in reply.body, "the file of the host came")


def call(id: str, title: str, run: Callable[[Target], None], **more: Any) -> Call:  # noqa: A002
    """Shorter."""
    return Call(id=id, title=title, run=run, **more)


CASES: Final[tuple[Case, ...]] = (
    call("K1", "links are neither followed nor packed", _links_are_not_followed),
    call("K2", "hard links to files of the host cannot be handed out", _hard_links),
    call("K3", "a file that keeps becoming a fifo, a link and a directory", _swapped),
    call("K5.broken", "a download that breaks deletes nothing", _broken_download_deletes_nothing),
    call("K6", "names of outputs put nothing into headers", _names_in_headers),
    call("K7", "paths that climb, in every spelling", _traversal),
    call("K8", "pages and pictures are attachments in a sandbox", _active_content),
    call("K9", "ranges without sense or end", _ranges),
    call("K11", "deleting while someone downloads", _delete_while_downloading),
    call("K12", "archives hold relative names of plain files", _archive_names),
    call("K13", "conditional requests with junk", _conditions),
    call("K14.view", "a view id reads and changes nothing", _views_never_change),
    call("K15.unlisted", "files that no pattern names are not served", _unlisted_is_not_served),
    call("K16.many", "twelve thousand outputs are bounded", _huge_outputs, heavy=True),
)
