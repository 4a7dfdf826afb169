"""A missing module leads to the manifest line that would have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun.messages import EnvironmentInfo, Package
from sandrun.remedies import remedy_for, remedy_for_requirements


def environment(name, *packages, fault=""):
    listed = tuple(Package(name=package, version="1") for package in packages)
    return EnvironmentInfo(name=name, interpreter="python3", packages=listed, fault=fault)


ENVIRONMENTS = (
    environment("default"),
    environment("huge", "numpy", "pandas", "Pillow", "torch"),
    environment("data", "numpy", "pandas", "scikit-learn"),
    environment("broken", "requests", fault="no wheel"),
)


def traceback(module):
    return (
        'Traceback (most recent call last):\n  File "/work/main.py", line 1, in <module>\n'
        f"    import {module}\nModuleNotFoundError: No module named '{module}'\n"
    )


def test_the_smallest_environment_that_has_it_is_named():
    text = remedy_for(traceback("pandas.core"), ENVIRONMENTS)
    assert '"environment": "data"' in text
    assert 'a line "pandas"' in text


def test_a_module_with_another_name_than_its_package_is_known():
    assert '"environment": "data"' in remedy_for(traceback("sklearn"), ENVIRONMENTS)
    assert '"environment": "huge"' in remedy_for(traceback("PIL"), ENVIRONMENTS)
    assert '"opencv-python-headless"' in remedy_for(traceback("cv2"), ENVIRONMENTS)


def test_without_an_environment_the_requirement_line_remains():
    text = remedy_for(traceback("requests"), ENVIRONMENTS)
    assert "environment" not in text
    assert 'a line "requests"' in text


def test_a_server_that_installs_nothing_says_so():
    text = remedy_for(traceback("requests"), ENVIRONMENTS, requirements=False)
    assert (
        text == "the package requests is not installed here; no environment of this server has it"
    )


@pytest.mark.parametrize(
    "stderr",
    [
        "",
        "ValueError: No module named 'pandas'\n",
        "I print ModuleNotFoundError: No module named 'pandas' in a line\n",
        traceback("tkinter"),
        "ModuleNotFoundError: No module named '$(reboot)'\n",
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_say(stderr):
    assert remedy_for(stderr, ENVIRONMENTS) is None


def test_nothing_is_said_when_the_package_is_there():
    """``import pandas.nope``: another environment would not help."""
    assert remedy_for(traceback("pandas.nope"), ENVIRONMENTS, "data") is None


def test_the_last_missing_module_counts():
    assert "torch" in remedy_for(traceback("numpy") + traceback("torch"), ENVIRONMENTS)


@given(st.text(max_size=400), st.text(max_size=40))
def test_hostile_output_never_fails_and_never_gets_into_the_text(noise, name):
    text = remedy_for(noise + f"\nModuleNotFoundError: No module named '{name}'\n", ENVIRONMENTS)
    if text is not None:
        assert text.isascii()
        assert "\n" not in text
        assert len(text) < 500


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("cv2", "opencv-python-headless"),
        ("PIL.Image", "pillow"),
        ("sklearn.svm", "scikit-learn"),
        ("yaml", "PyYAML"),
        ("bs4", "beautifulsoup4"),
        ("ruamel.yaml", "ruamel.yaml"),
    ],
)
def test_the_well_known_ones_are_named_as_the_index_has_them(module, name):
    assert f'a line "{name}"' in remedy_for(traceback(module), ())


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Error: Cannot find module 'left-pad'", "left-pad"),
        ("Error: Cannot find module 'left-pad/lib/x'", "left-pad"),
        ("Error: Cannot find module '@a/b/c'", "@a/b"),
        (
            "Error [ERR_MODULE_NOT_FOUND]: Cannot find package '@a/b' imported from /work/x.mjs",
            "@a/b",
        ),
    ],
)
def test_a_module_that_node_cannot_find_leads_to_its_lock(said, name):
    text = f"node:internal/modules/cjs/loader:1210\n  throw err;\n\n{said}\nRequire stack:\n"
    remedy = remedy_for(text, ENVIRONMENTS)
    assert f'"npm install {name}"' in remedy
    assert '"requirements": "package.json"' in remedy
    assert "requirements" not in remedy_for(text, ENVIRONMENTS, requirements=False)


@pytest.mark.parametrize("path", ["./x", "/work/x.js", "../up", "a b", "$(id)"])
def test_a_file_of_the_jobs_own_needs_no_package(path):
    assert remedy_for(f"Error: Cannot find module '{path}'", ENVIRONMENTS) is None


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        # uv's words, broken as it breaks them
        (
            ("error: No solution found when resolving dependencies\n  cause: Because nope-qq was not\n"
            "  found in the package registry and you require nope-qq, we can conclude that"),
            'the index has no package "nope-qq": mend its name in r.txt',
        ),
        (
            "Because there is no version of six==99 and you require six==99, we can conclude that",
            'there is no "six==99": ask for another version in r.txt, or for none in particular',
        ),
        (
            "Because only six<=1.17.0 is available and you require six>99, we can conclude that",
            'only "six<=1.17.0" is to be had: ask for that in r.txt',
        ),
        (
            "Because odd==1.0 has no wheels with a matching Python ABI tag",
            ('"odd==1.0" has no wheel for this interpreter, and nothing is compiled here: ask for '
            "another version in r.txt"),
        ),
        # our own
        (
            ("r.txt: line 1: 'six @ http://x': URLs and paths are not taken, only names and versions "
            "of the index"),
            'write a name in each line of r.txt, with a version if it matters: "six", "six==1.16.0"',
        ),
        # npm's
        (
            "npm error notarget No matching version found for left-pad@99.0.0.",
            'there is no "left-pad@99.0.0": ask for another version in package.json',
        ),
        ("uv: something new", None),
    ],
)
def test_what_could_not_be_installed_leads_to_a_line_to_change(
    reason: str, cure: str | None
) -> None:
    assert remedy_for_requirements("r.txt", reason) == cure


def test_a_program_that_asks_for_input_is_told_where_to_put_it() -> None:
    tail = "Traceback (most recent call last):\n  File ...\nEOFError: EOF when reading a line\n"
    remedy = remedy_for(tail, ENVIRONMENTS)
    assert remedy is not None
    assert '"stdin"' in remedy
    assert remedy_for(tail + "and went on\n", ENVIRONMENTS) is None
