"""Jobs that bring package.json and its lock, through real HTTP and a registry of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
import registry
import servers

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root"),
    pytest.mark.skipif(
        not shutil.which("npm", path="/usr/bin:/bin"), reason="this host has no npm"
    ),
]

MANIFEST = {"requirements": "package.json"}
CODE = "console.log(require('alpha'), require('@scope/beta'), require.resolve('alpha'))"
WANTED = "alpha+beta beta /opt/env/node_modules/alpha/index.js\n"


@pytest.fixture(scope="module")
def npm():
    with registry.serving() as made:
        made.add("@scope/beta", {"index.js": "module.exports = 'beta'"})
        made.add(
            "alpha",
            {
                "index.js": "module.exports = 'alpha+' + require('@scope/beta')",
                "cli.js": "#!/usr/bin/env node\nconsole.log('said by alpha')\n",
            },
            dependencies={"@scope/beta": "1.0.0"},
            bin={"alpha": "cli.js", "node": "cli.js", "python3": "cli.js", "sh": "cli.js"},
        )
        made.add(
            "eager",
            {"index.js": "module.exports = require('fs').existsSync(__dirname + '/ran')"},
            scripts={
                name: "touch ran" for name in ("preinstall", "install", "postinstall", "prepare")
            },
        )
        made.add(
            "escape",
            {"index.js": "module.exports = 1", "../../../bin/node": "#!/bin/sh\necho SHADOWED\n"},
            links=[("passwd", "/etc/passwd"), ("up", "../../..")],
        )
        yield made


@pytest.fixture(scope="module")
def node(npm):
    toml = (
        f'{servers.NO_RATE_LIMIT}[packages]\nnpm_registry = "{npm.url}"\n'
        'private_hosts = ["127.0.0.1"]\n'
    )
    with servers.running(toml) as server:
        yield server


def asking(pair, code=CODE, main="index.js"):
    package, lock = pair
    texts = {"package.json": json.dumps(package), "package-lock.json": json.dumps(lock)}
    return {main: code} | texts


def test_what_the_lock_names_is_there_and_the_second_time_it_is_free(node, npm):
    files = asking(npm.lock("alpha"))
    first = node.run(files, manifest=MANIFEST)
    assert (first["exit_reason"], first["stdout"]) == ("exited", WANTED), first
    assert first["timeline"]["install_seconds"] > 0
    assert "installed 2 packages" in first["timeline"]["install_log"]
    asked = len(npm.asked)
    second = node.run(files, manifest=MANIFEST)
    assert (second["exit_reason"], second["stdout"]) == ("exited", WANTED), second
    assert second["timeline"]["install_seconds"] == 0
    assert len(npm.asked) == asked
    metadata = [answer["execution_metadata"]["environment"] for answer in (first, second)]
    assert metadata[0] == metadata[1]


def test_import_finds_them_too_and_an_archive_may_bring_the_lock(node, npm):
    code = "import alpha from 'alpha'; console.log(alpha)"
    files = asking(npm.lock("alpha"), code, "main.mjs")
    for more in ({}, {"job.json": json.dumps(MANIFEST | {"entrypoint": "main.mjs"})}):
        manifest = None if more else MANIFEST | {"entrypoint": "main.mjs"}
        answer = node.run(archive=servers.tar_of(files | more), manifest=manifest)
        assert (answer["exit_reason"], answer["stdout"]) == ("exited", "alpha+beta\n"), answer


def test_a_large_lock_of_plain_files_is_taken(node, npm):
    """More than fits a message to a sandbox: the lock stays outside of it."""
    package, lock = npm.lock("alpha")
    lock["packages"]["node_modules/alpha"]["description"] = "x" * 200_000
    answer = node.run(asking((package, lock)), manifest=MANIFEST)
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", WANTED), answer


def test_programs_of_packages_are_on_the_path_and_none_is_an_interpreter(node, npm):
    code = (
        "const {execSync} = require('child_process'), fs = require('fs');"
        "console.log(execSync('alpha').toString().trim());"
        "console.log(fs.readdirSync('/opt/env/bin').filter((n) => /node|python/.test(n)).length)"
    )
    answer = node.run(asking(npm.lock("alpha"), code), manifest=MANIFEST)
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", "said by alpha\n0\n"), answer


def test_no_script_of_a_package_runs_at_its_installation(node, npm):
    code = "console.log(require('eager'))"
    answer = node.run(asking(npm.lock("eager"), code), manifest=MANIFEST)
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", "false\n"), answer


def test_nothing_in_a_tarball_leads_out_of_it(node, npm):
    code = (
        "const fs = require('fs'), at = '/opt/env/node_modules/escape/';"
        "console.log(['passwd', 'up'].filter((n) => fs.existsSync(at + n)).length,"
        "fs.readdirSync('/opt/env').sort().join(), fs.existsSync('/opt/env/bin/node'))"
    )
    answer = node.run(asking(npm.lock("escape"), code), manifest=MANIFEST)
    if answer["exit_reason"] != "dependency_error":
        assert answer["stdout"] == "0 bin,node_modules,sandrun-environment.json false\n", answer


def test_the_packages_cannot_be_changed_by_a_job(node, npm):
    code = (
        "const fs = require('fs'), p = require.resolve('alpha');"
        "for (const act of [() => fs.appendFileSync(p, 'x'), () => fs.linkSync(p, 'here'),"
        "() => fs.chmodSync(p, 0o666), () => fs.unlinkSync(p), () => fs.mkdirSync('/opt/env/n')])"
        "{ try { act(); console.log('DONE') } catch (error) { console.log(error.code) } }"
    )
    answer = node.run(asking(npm.lock("alpha"), code), manifest=MANIFEST)
    assert answer["exit_reason"] == "exited", answer
    assert "DONE" not in answer["stdout"]
    assert node.run(asking(npm.lock("alpha")), manifest=MANIFEST)["stdout"] == WANTED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolved": "git+ssh://git@h.test/x.git#0"}, "'git+ssh://git@h.test/x.git#0'"),
        ({"resolved": "https://elsewhere.test/x.tgz"}, "not a registry of this server"),
        ({"resolved": "http://169.254.169.254/x.tgz"}, "not a registry of this server"),
        ({"integrity": "sha512-" + "A" * 86 + "=="}, "EINTEGRITY"),
        ({"version": "9.9.9", "resolved": None}, "9.9.9"),
    ],
)
def test_an_entry_that_is_not_of_the_registry_fails_with_its_name(node, npm, change, words):
    pair = npm.lock("alpha", **{"@scope/beta": change})
    answer = node.run(asking(pair), manifest=MANIFEST)
    assert answer["exit_reason"] == "dependency_error", answer
    assert words in answer["evidence"][0]
    assert "beta" in answer["evidence"][0] or words == "EINTEGRITY"
    assert answer["timeline"]["started"] is None


def test_one_file_without_the_other_is_refused_with_the_cure(node, npm):
    files = asking(npm.lock("alpha"))
    for name, words in (("package-lock.json", "npm install"), ("package.json", "is not")):
        rest = {path: text for path, text in files.items() if path != name}
        response = node.post("/run", rest, manifest=MANIFEST)
        assert response.status_code == 400
        assert words in response.json()["error"]


def test_files_that_differ_are_refused(node, npm):
    package, lock = npm.lock("alpha")
    package["dependencies"]["eager"] = "1.0.0"
    answer = node.run(asking((package, lock)), manifest=MANIFEST)
    assert answer["exit_reason"] == "dependency_error"
    assert "eager" in answer["evidence"][0]


def test_a_registry_that_the_operator_did_not_open_cannot_be_reached(npm):
    """The same registry without ``private_hosts``: a name that leads inside."""
    toml = f'{servers.NO_RATE_LIMIT}[packages]\nnpm_registry = "{npm.url}"\n'
    with servers.running(toml) as server:
        asked = len(npm.asked)
        answer = server.run(asking(npm.lock("alpha")), manifest=MANIFEST)
    assert answer["exit_reason"] == "dependency_error"
    assert "private network" in answer["evidence"][0]
    assert len(npm.asked) == asked


def test_a_real_package_from_the_registry_that_this_host_uses(tmp_path):
    package = {"name": "x", "version": "1.0.0", "dependencies": {"is-odd": "3.0.1"}}
    (tmp_path / "package.json").write_text(json.dumps(package))
    made = subprocess.run(
        ["npm", "install", "--package-lock-only", "--silent", "--fetch-retries=0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"the registry of this host's npm cannot be reached: {made.stderr[-200:]}")
    lock = json.loads((tmp_path / "package-lock.json").read_text())
    with servers.running(servers.NO_RATE_LIMIT) as server:
        files = asking((package, lock), "console.log(require('is-odd')(3))")
        answer = server.run(files, manifest=MANIFEST)
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", "true\n"), answer
