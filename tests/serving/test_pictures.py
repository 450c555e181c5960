"""Pictures from strangers: hostile files and hostile addresses."""

import asyncio
import base64
import io
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from crome.errors import InputError
from crome.serving import data_uris, fetching
from crome.serving.fetching import Fetcher, is_public
from crome.serving.pictures import Pictures


def encoded(kind="PNG", size=(8, 6), **settings):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind, **settings)
    return file.getvalue()


def url_of(data, kind="png"):
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def bomb(side=60_000):
    """A PNG of 3.6 gigapixels in a few bytes."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
        + chunk(b"IEND", b"")
    )


def scans(number):
    """A JPEG that goes over its pixels so often, 40 bytes each time."""
    data = encoded("JPEG", (2000, 2000), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * number + data[-2:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_usual_kinds_open(kind):
    assert Pictures().open(url_of(encoded(kind), kind.lower())).size == (8, 6)


def test_a_progressive_jpeg_opens():
    assert Pictures().open(url_of(scans(0))).size == (2000, 2000)


def test_a_polyglot_is_the_picture_it_is():
    data = encoded() + b"<script>alert(1)</script>PK\x03\x04 and more"
    assert Pictures().open(url_of(data)).getpixel((0, 0)) == (255, 0, 0)


def test_of_an_animation_the_first_frame_is_taken():
    blue = Image.new("RGB", (8, 6), "blue")
    data = encoded("GIF", save_all=True, append_images=[blue] * 50)
    assert Pictures().open(url_of(data)).getpixel((0, 0)) == (255, 0, 0)


HOSTILE = {
    "empty": b"",
    "bomb": bomb(),
    "scans": scans(100_000),
    "frame beyond its screen": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;",
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "truncated": encoded("JPEG", (200, 200))[:400],
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage",
    "pdf": b"%PDF-1.7 ...",
    "tiff": encoded("TIFF"),
    "header alone": b"\x89PNG\r\n\x1a\n",
    "noise": bytes(range(256)) * 9,
    "false length": encoded()[:8] + b"\xff\xff\xff\xffIHDR" + encoded()[16:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_quickly(name):
    began = time.process_time()
    with pytest.raises(InputError):
        Pictures().open(url_of(HOSTILE[name]))
    assert time.process_time() - began < 2


def test_too_many_bytes_or_pixels():
    with pytest.raises(InputError, match="megapixels"):
        Pictures(max_megapixels=0.01).open(url_of(encoded(size=(200, 100))))
    with pytest.raises(InputError, match="too large"):
        Pictures(max_bytes=50).open(url_of(encoded("BMP", (99, 99))))


@pytest.mark.parametrize(
    "url",
    [
        "", "data:", "data:,", "data:image/png,%89PNG", "data:image/png;base64,###",
        "data:text/html;base64,PGI+", "file:///etc/passwd", "/etc/passwd", "ftp://example.com/a",
        "gopher://127.0.0.1/", "http://", "http://[", "http://example.com:99999/",
        "https://example.com/a.png", "http://localhost/a.png", "http://169.254.169.254/latest/",
        "javascript:alert(1)", "http:\\\\example.com", "HTTP://EXAMPLE.COM/", "é" * 9,
    ],
)  # fmt: skip
def test_urls_that_are_no_pictures_or_not_allowed(url):
    """By default nothing is fetched, from anywhere."""
    with pytest.raises(InputError):
        Pictures().open(url)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("127.0.0.1", False),
        ("10.0.0.1", False), ("192.168.1.1", False), ("172.16.0.1", False), ("0.0.0.0", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("::1", False),
        ("::", False), ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_addresses_of_ones_own_network_are_not_public(address, public):
    assert is_public(address) is public


@pytest.fixture
def site():
    """A web server whose paths each misbehave."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/redirect":
                self.send_response(302)
                self.send_header("Location", "/a.png")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            if self.path == "/a.png?x=1":
                self.wfile.write(encoded())
            elif self.path == "/endless":
                self.drip(b"x" * 100_000, 0)
            elif self.path == "/slow":
                self.drip(b"x", 0.02)

        def drip(self, data, pause):
            try:
                for _ in range(300):
                    self.wfile.write(data)
                    time.sleep(pause)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(url, **settings):
    async def work():
        return await Fetcher(**{"hosts": {"localhost"}} | settings).fetch(url)

    return asyncio.run(work())


def test_fetching_is_bounded_and_never_inside(site):
    here = {"max_bytes": 1 << 20, "timeout": 1, "may_connect": lambda _: True}
    assert Pictures().decode(fetch(site + "/a.png?x=1", **here)).size == (8, 6)
    with pytest.raises(InputError, match="private network"):  # allowed by name, not by address
        fetch(site + "/a.png?x=1")
    with pytest.raises(InputError, match="302"):
        fetch(site + "/redirect", **here)
    with pytest.raises(InputError, match="too large"):
        fetch(site + "/endless", **here)
    with pytest.raises(InputError, match="more than 1 s"):
        fetch(site + "/slow", **here)
    with pytest.raises(InputError, match="does not fetch"):
        fetch(site.replace("localhost", "localhost@127.0.0.1"), **here)
    with pytest.raises(InputError, match="percent-encoded"):
        fetch(site + "/a\r\nX: 1", **here)
    for url in ("http://", "http://[", "http://localhost:99999/", "https://example.com/a.png"):
        with pytest.raises(InputError):
            fetch(url, **here)


def test_the_next_address_is_tried_when_one_does_not_answer(site, monkeypatch):
    """Of a name with several addresses, and of both kinds."""
    port = int(site.rsplit(":", 1)[1])
    kind = socket.SOCK_STREAM
    addresses = [
        (socket.AF_INET6, kind, 6, "", ("::1", port, 0, 0)),  # nobody listens there
        (socket.AF_INET, kind, 6, "", ("127.0.0.2", port)),
        (socket.AF_INET, kind, 6, "", ("127.0.0.1", port)),
    ]

    async def found(self, host, *args, **kwargs):
        return addresses

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", found)
    data = fetch(site + "/a.png?x=1", may_connect=lambda _: True)
    assert Pictures().decode(data).size == (8, 6)
    with pytest.raises(InputError, match="private network"):  # one of them is enough
        fetch(site + "/a.png?x=1", may_connect=lambda address: address != "127.0.0.2")


def test_slow_hosts_hold_up_nobody_else(site):
    """Fetches run beside each other, and one that is given up ends at once."""

    async def work():
        fetcher = Fetcher({"localhost"}, timeout=5, may_connect=lambda _: True)
        slow = [asyncio.ensure_future(fetcher.fetch(site + "/slow")) for _ in range(6)]
        began = time.monotonic()
        await fetcher.fetch(site + "/a.png?x=1")
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return time.monotonic() - began

    assert asyncio.run(work()) < 2


@pytest.mark.parametrize("block", [1 << 20, 64])
def test_base64_as_encoders_write_it(monkeypatch, block):
    """With line breaks, without padding, in the alphabet for URLs, percent-encoded."""
    monkeypatch.setattr(data_uris, "BLOCK", block)
    data = encoded("JPEG", (33, 17))
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    safe = base64.urlsafe_b64encode(data).decode()
    for written in (text, lines, text.rstrip("="), safe.rstrip("="), text.replace("+", "%2B"),
                    text.replace("=", "%3D")):  # fmt: skip
        assert Pictures().open("data:image/jpeg;base64," + written).size == (33, 17)
        assert data_uris.from_base64(written) == data
    for head in ("data:image/jpeg;charset=utf-8;name=a.jpg;base64", "DATA:IMAGE/JPEG;BASE64",
                 "data:;base64", "data:image/jpeg; base64"):  # fmt: skip
        assert Pictures().open(f"{head},{text}").size == (33, 17)
    raw = "".join(f"%{byte:02X}" for byte in data)
    assert Pictures().open("data:image/jpeg," + raw).size == (33, 17)


def test_escapes_are_read_wherever_a_block_ends(monkeypatch):
    data = bytes(range(256))
    text = base64.b64encode(data).decode().replace("+", "%2B").replace("/", "%2f")
    for block in range(4, 100, 4):
        monkeypatch.setattr(data_uris, "BLOCK", block)
        for start in range(4):
            assert data_uris.from_base64("\n" * start + text) == data


@pytest.mark.parametrize(
    "url",
    ["data:image/png," + "%41" * 500_000, "data:image/png;base64," + "%41" * 500_000,
     "data:" + "x" * 2000 + ",x"],
)  # fmt: skip
def test_data_that_would_take_long_is_refused(url):
    with pytest.raises(InputError):
        Pictures().open(url)


def test_an_address_of_megabytes_is_not_even_taken_apart(monkeypatch):
    """Python keeps the parts of the last addresses, however long they are."""
    monkeypatch.setattr(fetching, "urlsplit", None)
    with pytest.raises(InputError, match="8,192"):
        fetch("http://localhost/" + "a" * 1_000_000)
