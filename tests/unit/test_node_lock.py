"""Locks of npm: what is passed on, and what is refused with its entry named."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun import node_lock
from sandrun.manifest import package_of
from sandrun.node_lock import LockError

HASH = "sha512-" + "A" * 86 + "=="
GOOD = {"version": "1.2.3", "resolved": "https://r.test/a/-/a-1.2.3.tgz", "integrity": HASH}


def lock(entries=None, root=None, version=3):
    packages = {"": {"name": "x", **(root or {})}, **(entries or {})}
    return json.dumps({"lockfileVersion": version, "packages": packages})


def clean(text, package=None):
    return json.loads(zlib.decompress(node_lock.parse(text, package).data))


def test_what_is_understood_is_passed_on_and_nothing_else():
    entries = {
        "node_modules/@s/a": GOOD
        | {"hasInstallScript": True, "funding": "x", "bin": {"a": "a.js"}},
        "node_modules/@s/a/node_modules/b": GOOD | {"dependencies": {"c": "^1 || >=2.0.0-rc.1"}},
        "node_modules/c": {"version": "1.0.0", "inBundle": True},
    }
    root = {"dependencies": {"@s/a": "^1.0.0"}, "scripts": {"install": "rm -rf /"}}
    package, locked = clean(lock(entries, root))
    assert package["dependencies"] == {"@s/a": "^1.0.0"}
    assert "scripts" not in package
    assert locked["packages"]["node_modules/@s/a"] == GOOD | {"bin": {"a": "a.js"}}
    assert locked["packages"]["node_modules/@s/a/node_modules/b"]["dependencies"] == {
        "c": "^1 || >=2.0.0-rc.1"
    }
    parsed = node_lock.parse(lock(entries, root))
    assert parsed.packages == 3
    assert [(o.url, o.entry) for o in parsed.origins] == [
        ("https://r.test:443", "node_modules/@s/a")
    ]


def test_the_same_content_in_another_order_is_the_same_lock():
    entries = {"node_modules/a": GOOD, "node_modules/b": GOOD}
    turned = dict(reversed(entries.items()))
    assert node_lock.parse(lock(entries)).data == node_lock.parse(lock(turned)).data


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("node_modules/a", {"resolved": "git+https://h.test/a.git"}),
        ("node_modules/a", {"resolved": "file:../a"}),
        ("node_modules/a", {"resolved": "../a"}),
        ("node_modules/a", {"resolved": "https://u:p@r.test/a.tgz"}),
        ("node_modules/a", {"resolved": "https://[r.test/a.tgz"}),
        ("node_modules/a", {"resolved": 7}),
        ("node_modules/a", {"link": True}),
        ("node_modules/a", {"integrity": None}),
        ("node_modules/a", {"integrity": "md5-x"}),
        ("node_modules/a", {"version": "git+ssh://x"}),
        ("node_modules/a", {"dependencies": {"b": "github:u/b"}}),
        ("node_modules/a", {"dependencies": {"b": "u/b"}}),
        ("node_modules/a", {"dependencies": {"b": "file:../b"}}),
        ("node_modules/a", {"dependencies": {"../b": "1"}}),
        ("node_modules/a", {"dependencies": []}),
        ("node_modules/a", {"bin": {"../x": "y"}}),
        ("node_modules/a", {"bin": {"x": "../y"}}),
        ("node_modules/a", {"bin": "x;y"}),
        ("node_modules/../a", {}),
        ("node_modules/..", {}),
        ("node_modules/.bin", {}),
        ("node_modules/a/b", {}),
        ("node_modules/anode_modules/b", {}),
        ("node_modules/", {}),
        ("packages/a", {}),
        ("/etc", {}),
    ],
)
def test_what_is_not_of_a_registry_is_refused(path, change):
    with pytest.raises(LockError):
        node_lock.parse(lock({path: GOOD | change}))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "nul", "[" * 100_000, lock(version=1), '{"lockfileVersion":3,"packages":[]}',
     lock(root={"workspaces": ["a"]}), lock(root={"dependencies": {"a": "https://h.test/a.tgz"}}),
     lock({f"node_modules/a{n}": GOOD for n in range(2001)}), "\ud800"],
)  # fmt: skip
def test_what_is_no_lock_is_refused(text):
    with pytest.raises(LockError):
        node_lock.parse(text)


def test_package_json_and_lock_must_agree():
    root = {"dependencies": {"a": "1.0.0"}, "devDependencies": {"b": "2"}}
    entries = {"node_modules/a": GOOD}
    assert clean(lock(entries, root), json.dumps(root))
    with pytest.raises(LockError, match="'b'.*differ"):
        node_lock.parse(lock(entries, root), '{"dependencies": {"a": "1.0.0"}}')
    with pytest.raises(LockError, match="'a'.*differ"):
        node_lock.parse(lock(entries, root), json.dumps(root | {"dependencies": {"a": "2.0.0"}}))


def test_which_package_json_belongs_to_a_lock():
    assert package_of("package-lock.json") == "package.json"
    assert package_of("web/package-lock.json") == "web/package.json"
    assert package_of("requirements.txt") is None


texts = st.text(max_size=40) | st.sampled_from(["../x", "git+ssh://x", "file:x", "^1.0.0", HASH])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from([*GOOD, "dependencies", "bin", "os", "link", "peerDependenciesMeta"])


@given(st.dictionaries(texts, st.dictionaries(fields, values, max_size=5), max_size=3))
def test_whatever_is_accepted_leads_to_a_registry(entries):
    try:
        _, locked = clean(lock(entries))
    except LockError:
        return
    for path, entry in locked["packages"].items():
        assert ".." not in path
        assert str(entry.get("resolved", "https:")).startswith(("http:", "https:"))
