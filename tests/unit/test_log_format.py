"""What a message quotes cannot pass for a line of the server's own."""

from __future__ import annotations

import io
import logging

from sandrun.log_format import Lines, harmless


def logged(message: str, *arguments: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines("%(levelname)s %(message)s"))
    record = logging.LogRecord("test", logging.ERROR, __file__, 1, message, arguments, None)
    handler.handle(record)
    return stream.getvalue()


def test_an_ordinary_message_stays_as_it_is() -> None:
    assert logged("zygote %d of %s: ünï\t1", 7, "default") == "ERROR zygote 7 of default: ünï\t1\n"


def test_a_quoted_line_end_does_not_begin_a_line_of_ours() -> None:
    for end in ("\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"):
        text = logged("pip: %s", f"no{end}ERROR all jobs are lost")
        assert text == "ERROR pip: no\n    | ERROR all jobs are lost\n"


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    assert harmless("\x1b]0;x\x07\x9b2J\x00\u202e\udc80") == (
        "\\x1b]0;x\\x07\\x9b2J\\x00\\u202e\\udc80"
    )
    assert harmless("") == ""
