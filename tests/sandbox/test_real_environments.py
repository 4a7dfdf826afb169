"""Named environments on the real kernel: a local directory of wheels is the index."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import servers
import wheels

from sandrun import config
from sandrun.pool import environments, installer, package_index, workshop
from sandrun.pool.workshop import PackageError, Workshop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building a sandbox needs root")


@pytest.fixture(scope="module", autouse=True)
def _uv() -> None:
    try:
        installer.find_uv()
    except Exception as error:  # noqa: BLE001 - whatever it says is the reason
        pytest.skip(str(error))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Wheels: ``alpha`` 1.0 needs ``beta``; ``hooked`` would run code at start."""
    directory = tmp_path / "wheels"
    wheels.make(directory, "beta", "2.0")
    wheels.make(
        directory,
        "alpha",
        "1.0",
        {
            "alpha/__init__.py": "import beta\ndef main():\n    print('alpha', beta.VERSION)\n",
            "alpha/tests/__init__.py": "",
        },
        requires=["beta>=1"],
        scripts={"say-alpha": "alpha:main"},
    )
    wheels.make(
        directory,
        "hooked",
        "1.0",
        {"hooked.py": "", "hooked.pth": "import os; open('/build/tmp/ran', 'w').close()\n"},
    )
    return directory


def settings(tmp_path: Path, index: Path, *packages: str, more: str = "") -> config.Config:
    lines = ", ".join(f'"{package}"' for package in packages)
    return config.parse(
        f'[pool]\nenvironments_dir = "{tmp_path}/envs"\n'
        f'[packages]\nfind_links = ["{index}"]\noffline = true\n'
        f"[environments.default]\n[environments.own]\npackages = [{lines}]\n{more}"
    )


def ensure(configuration: config.Config, **how):
    said: list[str] = []
    directories, infos = environments.ensure(configuration, said.append, **how)
    return directories, {info.name: info for info in infos}, said


def test_packages_are_installed_with_what_they_need_and_listed(tmp_path, index):
    directories, infos, _ = ensure(settings(tmp_path, index, "alpha"))
    listed = {package.name: package.version for package in infos["own"].packages}
    assert infos["own"].fault == ""
    assert listed == {"alpha": "1.0", "beta": "2.0"}
    assert infos["own"].version.startswith("3.")
    assert directories["default"] == ""


def test_the_tree_is_roots_readable_by_all_and_writable_by_nobody(tmp_path, index):
    directories, _, _ = ensure(settings(tmp_path, index, "alpha"))
    for path in Path(directories["own"]).rglob("*"):
        info = path.lstat()
        assert (info.st_uid, info.st_gid) == (0, 0), path
        if not stat.S_ISLNK(info.st_mode):
            assert info.st_mode & 0o7022 == 0, path
            assert info.st_mode & 0o444 == 0o444, path
    assert list(Path(directories["own"]).rglob("alpha/__pycache__/*.pyc"))


def test_an_unchanged_environment_is_used_without_an_installer(tmp_path, index, monkeypatch):
    configuration = settings(tmp_path, index, "alpha")
    first, _, said = ensure(configuration)
    assert said
    monkeypatch.setattr(environments, "Installer", None)
    shutil.rmtree(index)
    second, infos, said = ensure(configuration)
    assert (second, said) == (first, [])
    assert [package.name for package in infos["own"].packages] == ["alpha", "beta"]


def test_the_same_lock_keeps_its_directory_though_other_words_asked_for_it(tmp_path, index):
    first, _, _ = ensure(settings(tmp_path, index, "alpha"))
    second, _, said = ensure(settings(tmp_path, index, "alpha", "beta>=2"))
    assert second == first
    assert said[-1] == "environment own: its lock is unchanged"


def test_a_new_version_is_taken_only_when_asked_for_and_the_old_one_goes(tmp_path, index):
    configuration = settings(tmp_path, index, "beta")
    first, _, _ = ensure(configuration)
    wheels.make(index, "beta", "3.0")
    assert ensure(configuration)[0] == first
    directories, infos, _ = ensure(configuration, upgrade=True)
    assert infos["own"].packages[0].version == "3.0"
    assert os.listdir(tmp_path / "envs") == [Path(directories["own"]).name]


def test_one_that_cannot_be_built_says_why_and_stops_nobody(tmp_path, index):
    more = '[environments.bad]\npackages = ["no-such-thing>=9"]\n'
    directories, infos, _ = ensure(settings(tmp_path, index, "beta", more=more))
    assert "own" in directories
    assert "bad" not in directories
    assert "no-such-thing" in infos["bad"].fault
    assert "/build" not in infos["bad"].fault
    kept = environments.without_faulty(settings(tmp_path, index, more=more), tuple(infos.values()))
    assert set(kept.environments) == {"default", "own"}


def test_a_source_distribution_is_not_built(tmp_path, index):
    source = tmp_path / "evil-1.0"
    source.mkdir()
    (source / "setup.py").write_text("raise SystemExit('setup.py ran')")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    shutil.make_archive(str(index / "evil-1.0"), "gztar", tmp_path, "evil-1.0")
    _, infos, _ = ensure(settings(tmp_path, index, "evil"))
    assert "setup.py ran" not in infos["own"].fault
    assert "evil" in infos["own"].fault


def test_no_code_of_a_package_runs_while_it_is_installed(tmp_path, index, monkeypatch):
    """A ``.pth`` file runs code whenever an interpreter looks at its directory."""
    kept = []
    remove = workshop.remove_tree

    def look_first(path):
        kept.extend(Path(path).glob("work/tmp/*"))
        remove(path)

    monkeypatch.setattr(workshop, "remove_tree", look_first)
    _, infos, _ = ensure(settings(tmp_path, index, "hooked"))
    assert infos["own"].fault == ""
    assert [path.name for path in kept if path.name == "ran"] == []


def test_a_wheel_that_changed_after_the_lock_is_refused(tmp_path, index):
    configuration = settings(tmp_path, index, "beta")
    found = environments.Environments(configuration, lambda _: None)
    python = environments.find_python("python3")
    found.store.open()
    with Workshop(found.store.path, found.installer.uid) as workshop:
        lock = environments.make_lock(found.installer, workshop, python, ("beta",))
    wheels.make(index, "beta", "2.0", {"beta/__init__.py": "VERSION = 'poisoned'\n"})
    with (
        Workshop(found.store.path, found.installer.uid) as workshop,
        pytest.raises(PackageError, match="[Hh]ash"),
    ):
        environments.install(found.installer, workshop, python, lock)


def test_a_directory_that_others_may_write_is_not_trusted(tmp_path, index):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs").chmod(0o777)
    _, infos, _ = ensure(settings(tmp_path, index, "beta"))
    assert "may be written by others" in infos["own"].fault


def test_an_existing_directory_is_used_as_it_is(tmp_path, index):
    configuration = config.parse(
        f'[environments.default]\n[environments.own]\npath = "{tmp_path}/venv"\n'
    )
    site = tmp_path / "venv/lib/python3.11/site-packages/beta-2.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: beta\nVersion: 2.0\n")
    directories, infos, _ = ensure(configuration)
    assert directories["own"] == f"{tmp_path}/venv"
    assert [package.name for package in infos["own"].packages] == ["beta"]


def test_the_build_sandbox_sees_neither_the_host_nor_a_network(tmp_path, index):
    """What an installer that was taken over could do: everything in here."""
    found = environments.Environments(settings(tmp_path, index, "beta"), lambda _: None)
    code = (
        "import os, socket\n"
        "print(sorted(os.listdir('/')), os.getuid() > 1000)\n"
        "for path in ('/root', '/home/x', '/etc/shadow', '/var/cache', '/usr/x', '/opt/uv'):\n"
        "    try: open(path, 'w'); print('WROTE', path)\n"
        "    except OSError: pass\n"
        "for address in (('1.1.1.1', 53), ('127.0.0.1', 22)):\n"
        "    try: socket.create_connection(address, 1); print('REACHED', address)\n"
        "    except OSError: pass\n"
        "caps = [l for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNewP'))]\n"
        "print(caps, [p for p in os.listdir('/proc') if p.isdigit()])\n"
        "raise SystemExit(1)"
    )
    found.store.open()
    with (
        Workshop(found.store.path, found.installer.uid) as workshop,
        pytest.raises(PackageError) as caught,
    ):
        program = environments.find_python("python3").program
        found.installer.run(workshop, ((program, "-I", "-c", code),))
    text = str(caught.value)
    assert "WROTE" not in text
    assert "REACHED" not in text
    assert "'CapEff:\\t0000000000000000\\n', 'NoNewPrivs:\\t1\\n'" in text
    assert "['1', '2']" in text
    assert "'root'" not in text


def test_jobs_find_the_packages_however_python_is_started(tmp_path, index):
    toml = (
        f'[pool]\nenvironments_dir = "{tmp_path}/envs"\nready = 1\n'
        f'[packages]\nfind_links = ["{index}"]\noffline = true\n'
        "[rate_limit]\nenabled = false\n"
        '[environments.default]\n[environments.own]\npackages = ["alpha"]\npreload = ["beta"]\n'
    )
    code = (
        "import subprocess, sys\nimport alpha\nalpha.main()\n"
        "print(sys.executable, sys.prefix)\n"
        "for command in ([sys.executable, '-c', 'import alpha'], ['say-alpha'],\n"
        "                ['sh', '-c', 'python3 -c \"import beta; print(beta.__file__)\"']):\n"
        "    done = subprocess.run(command, capture_output=True, text=True)\n"
        "    print(done.returncode, done.stderr, end='')\n"
    )
    with servers.running(toml) as server:
        answer = server.python(code, environment="own")
        assert answer["stdout"] == "alpha 2.0\n/opt/env/bin/python3 /opt/env\n0 0 0 "
        other = server.python("import alpha")
        assert other["exit_reason"] == "nonzero_exit"
        listed = server.client.get("/environments").json()["environments"]
        own = next(entry for entry in listed if entry["name"] == "own")
        assert own["packages"] == {"alpha": "1.0", "beta": "2.0"}


def test_env_build_and_list_on_the_command_line(tmp_path, index):
    file = tmp_path / "config.toml"
    file.write_text(
        f'[pool]\nenvironments_dir = "{tmp_path}/envs"\n'
        f'[packages]\nfind_links = ["{index}"]\noffline = true\n'
        '[environments.default]\n[environments.own]\npackages = ["beta"]\n'
    )

    def sandrun(*args: str) -> str:
        argv = [installer.sys.executable, "-m", "sandrun", "env", *args, "--config", str(file)]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    assert "own: not built" in sandrun("list")
    assert "beta==2.0" in sandrun("build")
    assert "beta==2.0" in sandrun("list", "own")


def test_a_real_package_from_the_index_that_this_host_uses(tmp_path):
    """Through the proxy, if the host's settings lead to a network."""
    configuration = config.parse(
        f'[pool]\nenvironments_dir = "{tmp_path}/envs"\n'
        '[environments.default]\n[environments.own]\npackages = ["six"]\n'
    )
    _, infos, _ = ensure(configuration)
    if infos["own"].fault:
        pytest.skip(f"the package index cannot be reached: {infos['own'].fault[:200]}")
    assert [package.name for package in infos["own"].packages] == ["six"]


def test_the_default_index_through_the_proxy(tmp_path):
    """Even where pip was told of local directories: nothing but the network's index."""
    configuration = config.parse(
        f'[pool]\nenvironments_dir = "{tmp_path}/envs"\n'
        '[environments.default]\n[environments.own]\npackages = ["six"]\n'
    )
    ca_file = package_index.discover(configuration.packages, os.environ).ca_file
    plain = package_index.Index(ca_file=ca_file)
    found = environments.Environments(configuration, lambda _: None, plain)
    try:
        _, info = found.ensure("own")
    except PackageError as error:
        pytest.skip(f"the package index cannot be reached: {str(error)[:200]}")
    assert [package.name for package in info.packages] == ["six"]
