"""The server's own log, as lines that nobody can forge. Pure, but for :func:`set_up`.

What a message quotes may come from elsewhere: a package index, an interpreter's last
words, a module that does not load. Its line ends are shown as such, so that every line
that begins with a time is ours, and it cannot paint on the terminal that shows it.
"""

from __future__ import annotations

import logging
from typing import Final

CONTINUED: Final = "\n    | "


def set_up(level: int, shape: str) -> None:
    """Log to stderr in this ``shape``, one of :mod:`logging`'s."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(shape))
    logging.basicConfig(level=level, handlers=[handler])


class Lines(logging.Formatter):
    """Tracebacks are left as they are: they come after the message, and are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, with what the message quotes made harmless."""
        record.message = harmless(record.message)
        return super().formatMessage(record)


def harmless(text: str) -> str:
    """Lines after the first are marked, what does not print is spelt out. Pure."""
    return CONTINUED.join(
        "".join(c if c.isprintable() or c == "\t" else spelt(c) for c in line)
        for line in text.splitlines() or [""]
    )


def spelt(char: str) -> str:
    r"""``\x1b`` and its like. By hand: http cannot load a codec any more."""
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"  # more digits beyond
