"""Forms: the same parts however they are cut, and only paths that stay inside."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandrun.errors import RequestError
from sandrun.http.multipart import End, FormParser, PartStart

TYPE = "multipart/form-data; boundary=XX"


def part(disposition, body=b"x", *more):
    lines = [b"Content-Disposition: " + disposition, *more]
    return b"--XX\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body + b"\r\n"


def parse(data, cuts=(), content_type=TYPE, max_parts=100):
    """[(name, path, content type, body)], cut at ``cuts``."""
    parser = FormParser(content_type, max_parts=max_parts)
    found, at, is_open = [], 0, False
    for cut in [*sorted(cuts), len(data)]:
        for event in parser.feed(data[at:cut]):
            if isinstance(event, PartStart):
                assert not is_open
                is_open = True
                found.append([*event, b""])
            elif event is End.PART:
                is_open = False
            else:
                assert is_open
                found[-1][-1] += event
        at = cut
    parser.finish()
    assert not is_open
    return [tuple(each) for each in found]


FORM = (
    part(b'form-data; name="files"; filename="src/a b.py"', b"print(1)\r\n--X", b"Content-Type: Text/X-Python; charset=x")
    + part(b"form-data; name=manifest", b"{}")
    + part(b'form-data; name="files"; filename="empty"', b"")
    + b"--XX--\r\n"
)  # fmt: skip
PARTS = [
    ("files", "src/a b.py", "text/x-python", b"print(1)\r\n--X"),
    ("manifest", None, "", b"{}"),
    ("files", "empty", "", b""),
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(FORM)), max_size=10))
def test_cutting_changes_nothing(cuts):
    assert parse(FORM, cuts) == PARTS


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=6))
def test_content_comes_through_byte_for_byte(body, cuts):
    body = body.replace(b"--XX", b"--XY")
    data = part(b'form-data; name="f"; filename="a"', body) + b"--XX--"
    assert parse(data, [min(cut, len(data)) for cut in cuts])[0][-1] == body


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_request_error(junk):
    for data in (
        junk,
        b"--XX\r\n" + junk,
        b'--XX\r\nContent-Disposition: form-data; name="' + junk,
    ):
        with pytest.raises(RequestError):
            parse(data)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (b'filename="a.py"', "a.py"),
        (b"filename=a.py", "a.py"),
        (b'filename="./a//b/./c.py"', "a/b/c.py"),
        (b'FILENAME="a.py"', "a.py"),
        ('filename="é/日本.py"'.encode(), "é/日本.py"),
        (b"filename*=UTF-8''%c3%a9.py", "é.py"),
        (b"filename=\"x\"; filename*=utf-8'de'a%20b", "a b"),
        (b'filename="a%22b"', 'a"b'),
        (b'filename="a\\"b"', 'a"b'),
        (b'filename="100%25"', "100%25"),
        (b'filename="-rf"', "-rf"),
        (b'filename="<img onerror=x>;.txt"', "<img onerror=x>;.txt"),
        (b'filename="C:/a"', "C:/a"),
    ],
)
def test_file_names_are_kept(given, path):
    data = part(b'form-data; name="files"; ' + given) + b"--XX--\r\n"
    assert parse(data)[0][1] == path


@pytest.mark.parametrize(
    "given",
    [
        b'filename="../a"', b'filename="a/../../b"', b'filename=".."', b'filename="/etc/passwd"',
        b'filename="//a"', b'filename=""', b'filename="."', b'filename="./"', b'filename="a/"',
        b'filename="a\\b"', b'filename="C:\\dir\\a"', b'filename="a%0D%0ASet-Cookie: x"',
        b'filename="a\tb"', b"filename*=UTF-8''a%00b", b"filename*=UTF-8''..%2fa",
        b"filename*=UTF-8''%2fetc%2fpasswd", b"filename=x; filename*=UTF-8''",
        b'filename="' + b"a" * 256 + b'"', b'filename="' + b"a/" * 600 + b'b"',
        b"filename*=UTF-8''%c2%85",
    ],
)  # fmt: skip
def test_file_names_that_lead_elsewhere_are_refused_by_name(given):
    with pytest.raises(RequestError) as caught:
        parse(part(b'form-data; name="files"; ' + given) + b"--XX--\r\n")
    assert (caught.value.status, caught.value.code) == (400, "bad_path")
    assert "path" in caught.value.details


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"--XX",
        b"preamble\r\n" + FORM,
        FORM[:-8],
        FORM.replace(b"--XX\r\n", b"--XX\n"),
        part(b"form-data; filename=a") + b"--XX--",
        part(b'form-data; name=""') + b"--XX--",
        part(b"form-data") + b"--XX--",
        part(b"attachment; name=a") + b"--XX--",
        part(b"form-data; name=a; name=b") + b"--XX--",
        part(b"form-data; name=a; filename=b; filename=c") + b"--XX--",
        part(b'form-data; name="a; filename=b') + b"--XX--",
        part(b"form-data; name=a b") + b"--XX--",
        part(b"form-data; name=a", b"x", b"Content-Disposition: form-data; name=b") + b"--XX--",
        part(b"form-data; name=a", b"eA==", b"Content-Transfer-Encoding: base64") + b"--XX--",
        part(b"form-data; name=a", b"x", b"Content-Length: 2") + b"--XX--",
        part(b"form-data; name=a; filename*=iso-8859-1''a") + b"--XX--",
        part(b"form-data; name=a; filename*=UTF-8''%ff") + b"--XX--",
        part(b"form-data; name=a; filename=\xff") + b"--XX--",
        part(b"form-data; name=" + b"a" * 129) + b"--XX--",
        b"--XX\r\n\r\nno headers\r\n--XX--",
    ],
)
def test_forms_that_are_none_are_refused(data):
    with pytest.raises(RequestError) as caught:
        parse(data)
    assert (caught.value.status, caught.value.code) == (400, "bad_form")


def test_what_follows_the_last_boundary_is_ignored_however_it_is_cut():
    for cut in range(len(FORM) - 4, len(FORM) + 5):
        assert parse(FORM + b"epilogue\r\n--XX\r\n", [cut]) == PARTS


@pytest.mark.parametrize("control", [b"\n", b"\r", b"\0", b"\x0b", b"\x7f"])
@pytest.mark.parametrize("place", [b"form-data@; name", b'"a@.py"', b"text/@plain"])
def test_a_control_character_in_a_parts_head_is_refused_however_it_is_cut(control, place):
    """Found by fuzzing: a bare line feed passed when the form came in one read."""
    form = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.py"\r\n'
        b"Content-Type: text/plain\r\n\r\nx\r\n--b--\r\n"
    )
    form = form.replace(place.replace(b"@", b""), place.replace(b"@", control))
    for step in (1, 2, 7, len(form)):
        parser = FormParser("multipart/form-data; boundary=b", max_parts=5)
        with pytest.raises(RequestError) as caught:
            for at in range(0, len(form), step):
                list(parser.feed(form[at : at + step]))
        assert caught.value.code == "bad_form"


def test_parts_and_their_heads_are_bounded():
    many = part(b"form-data; name=a") * 10_000 + b"--XX--"
    with pytest.raises(RequestError) as caught:
        parse(many)
    assert (caught.value.status, caught.value.code) == (413, "too_many_parts")
    for data in (
        part(b"form-data; name=a", b"x", b"X: " + b"a" * 1_000_000),
        part(b"form-data; name=a", b"x", *(b"X%d: a" % n for n in range(20))),
        b"--XX\r\n" + b"a" * 100_000,
    ):
        for cuts in ((), range(0, min(len(data), 20_000), 7)):
            with pytest.raises(RequestError) as caught:
                parse(data, cuts)
            assert (caught.value.status, caught.value.code) == (413, "part_head_too_large")


@pytest.mark.parametrize(
    "content_type",
    [
        "", "text/plain", "multipart/mixed; boundary=XX", "multipart/form-data",
        "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "a" * 71,
        'multipart/form-data; boundary="a\r\nb"', 'multipart/form-data; boundary="é"',
        "multipart/form-data; boundary=a; boundary=b", "multipart/form-data; boundary=XX , x",
    ],
)  # fmt: skip
def test_content_types_without_one_valid_boundary_are_refused(content_type):
    with pytest.raises(RequestError):
        FormParser(content_type, max_parts=1)


def test_a_quoted_boundary_and_other_parameters_are_fine():
    assert parse(FORM, (), 'Multipart/Form-Data; charset=utf-8; boundary="XX"') == PARTS
