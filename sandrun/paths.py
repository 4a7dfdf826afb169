"""The one rule for names that clients and jobs give to files. Pure.

Used for multipart file names, archive members and the paths of a manifest. What
passes is a relative path that stays below the directory it is joined to, whoever
joins it, and that can be shown on one line.
"""

from __future__ import annotations

from typing import Final

MAX_PATH_BYTES: Final = 1024  # below PATH_MAX with room for whatever stands before it
MAX_NAME_BYTES: Final = 255  # NAME_MAX of tmpfs and of every disk file system


def safe_relative_path(text: str) -> str:
    """``text`` as a plain relative path: ``./a//b/`` gives ``a/b``.

    Other names are kept byte for byte. Raises ValueError whose text is the reason
    and fits behind the name: "is absolute", "has a '..' segment", ...
    """
    if not text:
        raise ValueError("is empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8") from None
    if size > MAX_PATH_BYTES:
        raise ValueError(f"is {size} bytes long, at most {MAX_PATH_BYTES} are allowed")
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in text):
        raise ValueError("has a control character")
    if "\\" in text:
        raise ValueError("has a backslash")
    if text.startswith("/"):
        raise ValueError("is absolute")
    names = [name for name in text.split("/") if name not in ("", ".")]
    if not names:
        raise ValueError("names no file")
    if ".." in names:
        raise ValueError("has a '..' segment")
    for name in names:
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"has a segment of more than {MAX_NAME_BYTES} bytes")
    return "/".join(names)
