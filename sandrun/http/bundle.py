"""The page's modules as one script. Runs as: nobody, at http's start. Pure.

In ``frontend/`` each module is a file that a browser loads as it is, from any static
server. Twenty-five files are twenty-five requests, though, six at a time and one after
another in a process like ours: half of what a first visit waited for. So http hands out
the same text joined: each module becomes a function that is called once and returns what
the module exports, in the order in which the imports ask for them. Nothing is minified,
renamed or rewritten beyond the ``import`` and ``export`` lines.

Only the forms that the page uses are known; another one is a ValueError that names its
place. ``export let`` is refused: importers hold a copy, which would not follow it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from posixpath import dirname, join, normpath
from typing import Final

# Nearly all of it runs before the first paint. Engines that know this comment compile it
# beside the main thread (V8: 18 instead of 34 ms there, at no more time in all).
COMPILE_HINT: Final = "//# allFunctionsCalledOnLoad\n"

# What may stand before the last import: blank lines, comments, imports.
_HEAD: Final = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_IMPORT: Final = re.compile(
    r"import\s+(?:(?P<default>\w+)|\*\s*as\s+(?P<all>\w+)|\{(?P<some>[^}]*)\})"
    r"\s+from\s+'(?P<path>\.[^']+)';?(?=\n|$)"
)
_EXPORT: Final = re.compile(
    r"^export (?=(?:const|class|(?:async )?function\*?) (?P<name>\w+))", re.MULTILINE
)
_DEFAULT: Final = re.compile(r"\bexport default\b")  # minified files have it anywhere
# Vendored files end with theirs: "…;export{a as b,…};"
_EXPORT_LIST: Final = re.compile(r"\bexport\s*\{(?P<list>[^}]*)\};?\s*\Z")
# (The examples are programs in other languages, some with an "import" at a line's start.)
_UNKNOWN: Final = re.compile(
    r"^export\b.*|^import\b\s*(?:\(|[^\n]*\bfrom\s*)?['\"][./].*|\bimport\.meta\b", re.MULTILINE
)


def bundle(modules: Mapping[str, str], main: str) -> str:
    """``modules``: text by path (``app/main.js``); the result runs ``main``. Raises ValueError."""
    return _Bundle(modules).of(main)


class _Bundle:
    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules
        self._names: dict[str, str] = {}  # of modules that are done
        self._open: list[str] = []  # of modules whose imports are being done
        self._parts: list[str] = []

    def of(self, main: str) -> str:
        self._add(main)
        return COMPILE_HINT + "".join(self._parts)

    def _add(self, path: str) -> str:
        """Append a module after what it imports; the name of what it exports."""
        if path in self._names:
            return self._names[path]
        if path in self._open:
            raise ValueError(f"{path}: imports itself by way of {' and '.join(self._open)}")
        if path not in self._modules:
            raise ValueError(f"{self._open[-1] if self._open else 'page'}: no module {path}")
        self._open.append(path)
        head, rest = self._imports(path)
        body, exports = _exports(path, rest)
        self._open.pop()
        name = self._names[path] = f"module{len(self._names)}"
        self._parts.append(
            f"// {path}\nconst {name} = (() => {{\n{head}{body}\nreturn {{ {exports} }}\n}})()\n"
        )
        return name

    def _imports(self, path: str) -> tuple[str, str]:
        """The imports at a module's head as assignments, and what follows them."""
        text, at = self._modules[path], 0
        lines: list[str] = []
        while True:
            space = _HEAD.match(text, at)
            found = _IMPORT.match(text, space.end() if space else at)
            if found is None:
                return "".join(lines), text[at:]
            at = found.end()
            source = self._add(normpath(join(dirname(path), found["path"])))
            if found["default"]:
                lines.append(f"const {found['default']} = {source}.default\n")
            elif found["all"]:
                lines.append(f"const {found['all']} = {source}\n")
            else:
                names = re.sub(r"\s+as\s+", ": ", " ".join(found["some"].split()))
                lines.append(f"const {{ {names} }} = {source}\n")


def _exports(path: str, text: str) -> tuple[str, str]:
    """The text without its ``export`` words, and the entries of the object it returns."""
    entries = []
    listed = _EXPORT_LIST.search(text)
    if listed:
        text = text[: listed.start()]
        for item in filter(None, (part.strip() for part in listed["list"].split(","))):
            inner, _, outer = item.partition(" as ")
            entries.append(f"{outer or inner}: {inner}")
    entries += [found["name"] for found in _EXPORT.finditer(text) if found["name"]]
    text, defaults = _DEFAULT.subn("const $default =", _EXPORT.sub("", text))
    if defaults:
        entries.append("default: $default")
    if unknown := _UNKNOWN.search(text):
        raise ValueError(f"{path}: this form is not known: {unknown[0][:60]}")
    return text, ", ".join(entries)
