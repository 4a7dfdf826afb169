"""What a job hands back: previews, downloads, and when it is gone."""

import base64
import io
import json
import re
import tarfile
import zipfile

import pytest
from playwright.sync_api import expect

from sandrun import config
from sandrun.pool import environments

FILES = r"""
import json, os, struct, zlib

def png(width, height):
    rows = b"".join(b"\0" + bytes([x % 256, y % 256, 120]) * 1 + bytes(3 * (width - 1)) for y, x in zip(range(height), range(height)))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

os.makedirs("out/sub")
open("out/plot.png", "wb").write(png(64, 48))
open("out/vector.svg", "w").write('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><script>parent.document.title="owned"</script><rect width="40" height="30" fill="teal"/></svg>')
open("out/table.csv", "w").write('name,value\n"comma, inside",1.5\n<b>bold</b>,2\n')
json.dump({"list": [1, None], "text": "<i>"}, open("out/data.json", "w"))
open("out/sub/notes.md", "w").write("# Title\n\n<script>document.title='owned'</script> **bold**\n")
open("out/blob.bin", "wb").write(bytes(range(256)))
open("out/empty.txt", "w").close()
"""


def job_id(page):
    return re.search(r"#job=([\w-]+)", page.raw.url)[1]


@pytest.fixture
def done(page):
    page.run(FILES)
    expect(page.outputs).to_have_count(7)
    return page


def test_every_kind_of_file_has_its_preview(done):
    page = done
    for name, width in (("out/plot.png", 64), ("out/vector.svg", 40)):
        page.look_at(name)
        image = page.preview.locator("img")
        expect(image).to_be_visible()
        assert image.evaluate("(e) => e.decode().then(() => e.naturalWidth)") == width
    page.look_at("out/table.csv")
    expect(page.preview.locator("th")).to_have_text(["name", "value"])
    expect(page.preview.locator("td")).to_have_text(["comma, inside", "1.5", "<b>bold</b>", "2"])
    page.look_at("out/data.json")
    expect(page.preview.locator("pre")).to_contain_text('"text": "<i>"')
    page.look_at("out/sub/notes.md")
    expect(page.preview.locator("pre")).to_contain_text(
        "<script>document.title='owned'</script> **bold**"
    )
    page.look_at("out/blob.bin")
    expect(page.preview.locator(".hex")).to_contain_text("40 41 42 43")
    page.look_at("out/empty.txt")
    expect(page.preview).to_contain_text("empty")
    assert page.raw.locator(".preview script, .preview i > i").count() == 0
    assert page.raw.title().startswith("Completed")


def test_sound_and_pdf_are_shown_by_the_browsers_own_means(page):
    page.run(r"""
import wave
with wave.open("tone.wav", "wb") as sound:
    sound.setnchannels(1), sound.setsampwidth(1), sound.setframerate(8000)
    sound.writeframes(bytes(range(256)) * 16)
open("page.pdf", "wb").write(b"%PDF-1.1\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF")
""")
    page.look_at("tone.wav")
    page.eventually("document.querySelector('.preview audio')?.readyState >= 1")
    assert page.preview.locator("audio").evaluate("(e) => e.duration") == pytest.approx(
        0.512, abs=0.01
    )
    page.look_at("page.pdf")
    expect(page.preview.locator("iframe")).to_have_attribute("src", re.compile("^blob:"))


RECORD = """async () => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 64, height: 48 })
  const context = canvas.getContext('2d')
  const recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: 'video/webm' })
  const stopped = new Promise((done) => { recorder.ondataavailable = (event) => done(event.data) })
  recorder.start()
  for (let frame = 0; frame < 10; frame++) {
    context.fillStyle = frame % 2 ? 'teal' : 'orange'
    context.fillRect(0, 0, 64, 48)
    await new Promise(requestAnimationFrame)
  }
  recorder.stop()
  const bytes = new Uint8Array(await (await stopped).arrayBuffer())
  return btoa(String.fromCharCode(...bytes))
}"""


def test_a_video_can_be_watched(page, tmp_path):
    """The browser records a film, a job makes its own of it, and the page plays that."""
    (tmp_path / "input.webm").write_bytes(base64.b64decode(page.raw.evaluate(RECORD)))
    (tmp_path / "main.py").write_text("import shutil\nshutil.copyfile('input.webm', 'film.webm')\n")
    page.raw.get_by_label("Choose files").set_input_files(
        [tmp_path / "input.webm", tmp_path / "main.py"]
    )
    page.run()
    expect(page.outputs).to_have_text(["film.webm"])
    video = page.preview.locator("video")
    assert video.evaluate("(e) => e.play().then(() => [e.videoWidth, e.videoHeight])") == [64, 48]


def test_the_matplotlib_example_draws_a_png(open_page, start_server, tmp_path):
    """A real environment with the real package, if an index can be reached from here."""
    toml = (
        f'[pool]\nready = 1\nenvironments_dir = "{tmp_path}"\n[rate_limit]\nenabled = false\n'
        '[environments.default]\n[environments.plot]\npackages = ["matplotlib"]\n'
    )
    infos = environments.ensure(config.parse(toml), lambda *_: None)[1]
    if fault := next(info.fault for info in infos if info.name == "plot"):
        pytest.skip(f"matplotlib cannot be installed: {fault[:200]}")
    page = open_page(start_server(toml).url)
    page.is_ready()
    page.example("Python: a matplotlib plot")
    page.run()
    page.look_at("plot.png")
    image = page.preview.locator("img")
    assert image.evaluate("(e) => e.decode().then(() => e.naturalWidth)") == 1280
    assert page.log_lines() == ["saved plot.png"]


def test_hostile_names_are_shown_as_text_and_can_still_be_downloaded(page):
    hostile = "<img src=x onerror=alert(1)>\n\u202egnp.txt"
    page.run(f"open({hostile!r}, 'w').write('harmless')\nopen('..%2f..%2fup', 'w').write('up')\n")
    shown = page.raw.locator(".output bdi", has_text="<img src=x")
    expect(shown).to_have_text("<img src=x onerror=alert(1)>␊⟨202E⟩gnp.txt")
    assert page.raw.locator(".output img").count() == 0
    for start, content in (("<img", b"harmless"), ("..%2f", b"up")):
        with page.raw.expect_download() as download:
            page.raw.locator(".output", has_text=start).get_by_role(
                "button", name=re.compile("Download")
            ).click()
        assert download.value.path().read_bytes() == content


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "tar"])
def test_the_archive_holds_the_files_byte_for_byte_and_the_job_is_gone_afterwards(
    done, server, kind
):
    page = done
    identity = job_id(page)
    files = server.client.get(f"/outputs/{identity}").json()["files"]
    expected = {file["path"]: server.client.get(file["download_url"]).content for file in files}
    page.button("Download all").click()
    page.raw.locator(".segmented label", has_text=re.compile(f"^{re.escape(kind)}$")).click()
    expect(page.raw.get_by_text("are deleted from the server")).to_be_visible()
    with page.raw.expect_download() as download:
        page.button("Download and delete").click()
    data = download.value.path().read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {
                name: archive.read(name) for name in archive.namelist() if not name.endswith("/")
            }
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            found = {
                m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()
            }
    assert found == expected
    expect(page.headline).to_have_text("Downloaded, and deleted from the server")
    assert "#job=" not in page.raw.url
    page.eventually(f"(await fetch('/status/{identity}')).status === 404")


def test_the_archive_can_be_downloaded_and_the_job_kept(done, server):
    page = done
    page.button("Download all").click()
    page.raw.get_by_label("Keep the job on the server").check()
    with page.raw.expect_download():
        page.raw.locator(".download-form button").click()
    expect(page.raw.locator(".toast")).to_contain_text("stays on the server")
    assert server.client.get(f"/status/{job_id(page)}").status_code == 200


def test_chosen_files_come_as_one_archive_and_nothing_is_deleted(done, server):
    page = done
    for name in ("out/table.csv", "out/sub/notes.md"):
        page.raw.get_by_label(f"Choose {name}").check()
    with page.raw.expect_download() as download:
        page.button("2 chosen").click()
    with tarfile.open(download.value.path()) as archive:
        assert sorted(archive.getnames()) == ["out/sub/notes.md", "out/table.csv"]
        assert archive.extractfile("out/table.csv").read().startswith(b"name,value")
    assert server.client.get(f"/status/{job_id(page)}").status_code == 200


def test_one_file_is_downloaded_and_its_hash_checked(done):
    with done.raw.expect_download() as download:
        done.button("Download out/data.json").click()
    assert json.loads(download.value.path().read_text())["text"] == "<i>"
    expect(done.raw.locator(".toast")).to_contain_text("SHA-256 checked")


def test_the_countdown_is_shown_and_delete_now_deletes_now(done, server):
    page = done
    expect(page.raw.locator(".expiry b")).to_have_text(re.compile(r"^(59:\d\d|1:00:00)$"))
    identity = job_id(page)
    page.button("Delete now").click()
    assert server.client.get(f"/status/{identity}").status_code == 200  # it asks first
    page.button("Press again").click()
    expect(page.headline).to_have_text("Deleted from the server")
    assert server.client.get(f"/status/{identity}").status_code == 404
    expect(page.button("Download all")).to_have_count(0)


def test_a_failed_job_hands_back_its_files_too(page):
    page.run(
        "open('partial.txt', 'w').write('so far')\nraise SystemExit(3)\n", "Failed with exit code 3"
    )
    expect(page.outputs).to_have_text(["partial.txt"])
    expect(page.preview.locator("pre")).to_contain_text("so far")


def test_a_job_whose_time_is_up_says_so(open_page, start_server):
    server = start_server("[rate_limit]\nenabled = false\n[retention]\nfinished_seconds = 3\n")
    page = open_page(server.url)
    page.is_ready()
    page.run("print('short lived')\n")
    expect(page.headline).to_have_text("No longer on the server")
    expect(page.log).to_contain_text("short lived")


def test_on_a_phone_a_long_preview_scrolls_in_itself_below_its_list(open_page, server):
    """It was as high as its content: a table of 400 rows pushed its own head off the screen."""
    page = open_page(server.url, width=360, height=740)
    page.is_ready()
    page.run(
        "open('notes.txt', 'w').write('x')\n"
        "open('table.csv', 'w').write('a,b\\n' + '1,2\\n' * 400)\n"
    )
    page.look_at("notes.txt")
    page.look_at("table.csv")
    expect(page.raw.locator(".preview-head")).to_be_in_viewport(ratio=0.9)
    boxes = {name: page.raw.locator(name).bounding_box() for name in (".preview", ".run-bar")}
    assert boxes[".preview"]["height"] < 740
    assert boxes[".preview"]["y"] + boxes[".preview"]["height"] <= boxes[".run-bar"]["y"]
