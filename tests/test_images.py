"""Loading pictures: upright, opaque RGB, or a refusal that names the file."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from crome.errors import InputError
from crome.images import MAX_MEGAPIXELS, load_image


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("red", (0, 0, 20, 20))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: left becomes top
    image.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.size == (20, 40)
    assert loaded.getpixel((10, 5)) == (255, 0, 0)
    assert loaded.getpixel((10, 35)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 5, 10))
    image.convert(mode).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.mode == "RGB"
    assert loaded.getpixel((1, 5)) == (0, 0, 0)
    assert loaded.getpixel((8, 5)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "a.tiff")
    assert load_image(str(tmp_path / "a.tiff")).getpixel((4, 4)) == (255, 255, 255)


def test_an_opened_picture(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert load_image(image).getpixel((4, 4)) == (255, 255, 255)
    assert image.mode == "RGBA"  # the caller's own is left alone


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_of_size(10_000, 9_000), f"10000 × 9000 pixels; expected at most {MAX_MEGAPIXELS}"),
        (png_of_size(60_000, 60_000), f"too large: more than {MAX_MEGAPIXELS} megapixels"),
        (png_of_size(100, 100), "cannot be decoded"),
        (b"", "it is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"hello world", "it starts with b'hello wo'"),
        (b"\0\0\0\x18ftypheic", "convert it to JPEG"),
        (b"\n<!DOCTYPE html><p>404", "a web page: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
    ids=["large", "bomb", "truncated", "empty", "svg", "eps", "text", "heic", "html", "lfs"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_refused_is_named(tmp_path, content, message):
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_image(file)
    assert str(file) in str(caught.value)


def test_an_absent_file(tmp_path):
    with pytest.raises(InputError, match=r"no picture .*a\.png"):
        load_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="cannot be decoded"):
        load_image(tmp_path)  # a folder


def test_a_large_picture_object_is_refused():
    class Huge(Image.Image):
        size = (100_000, 100_000)
        width = height = 100_000

    with pytest.raises(InputError, match="100000 × 100000"):
        load_image(Huge())


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + b"\xff" * 8, b"Exif\0\0", b"\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_broken_orientation_is_passed_over(tmp_path, exif, ending):
    Image.new("RGB", (8, 6), "red").save(tmp_path / f"a.{ending}", exif=exif)
    loaded = load_image(tmp_path / f"a.{ending}")
    assert loaded.size == (8, 6)
    assert load_image(loaded).tobytes() == loaded.tobytes()  # and is not met again
    with Image.open(tmp_path / f"a.{ending}") as opened:
        assert load_image(opened).tobytes() == loaded.tobytes()


def test_an_orientation_is_applied_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(load_image(tmp_path / "a.jpg")).size == (20, 40)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_values_of_fewer_bits_in_files_of_16(tmp_path, bits, ending):
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    grey = np.asarray(load_image(tmp_path / f"a.{ending}"))[..., 0]
    assert np.array_equal(grey, values >> (bits - 8))


@pytest.mark.parametrize("most", [255, 4095, 65535])
def test_pgm_of_up_to_16_bits(tmp_path, most):
    values = np.linspace(0, most, 64).astype(">u2").reshape(8, 8)
    data = values.tobytes() if most > 255 else values.astype(np.uint8).tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 %d\n" % most + data)
    grey = np.asarray(load_image(tmp_path / "a.pgm"))[..., 0]
    assert np.abs(grey.astype(int) - values.astype(int) * 255 // most).max() <= 1


def test_values_that_need_more_are_refused(tmp_path):
    for name, values in (("i.tif", np.full((4, 4), 1 << 20, np.int32)),
                         ("f.tif", np.zeros((4, 4), np.float32))):  # fmt: skip
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name} has .* pixels; expected 8 or 16 bits"):
            load_image(tmp_path / name)


def test_a_long_strip_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_size(1, 60_000))
    for shown in (tmp_path / "a.png", Image.new("L", (60_000, 1))):
        with pytest.raises(InputError, match=r"60000.* pixels; expected at most 200 times"):
            load_image(shown)
    assert load_image(Image.new("L", (2, 400))).size == (2, 400)


SAVED = [
    ("jpg", "RGB", {}), ("jpg", "L", {}), ("jpg", "CMYK", {}),
    ("jpg", "RGB", {"progressive": True}),
    ("png", "RGB", {}), ("png", "P", {}), ("png", "1", {}), ("png", "LA", {}), ("png", "I;16", {}),
    ("png", "RGBA", {"save_all": True}), ("webp", "RGBA", {}), ("webp", "RGB", {"lossless": True}),
    ("gif", "P", {"save_all": True}), ("bmp", "RGB", {}), ("bmp", "1", {}), ("tif", "CMYK", {}),
    ("tif", "RGB", {"compression": "tiff_lzw"}), ("tif", "P", {}), ("jp2", "RGB", {}),
    ("ppm", "RGB", {}), ("ppm", "L", {}),
]  # fmt: skip


@pytest.mark.parametrize(("ending", "mode", "settings"), SAVED)
def test_a_damaged_picture_is_read_or_refused_in_one_line(tmp_path, ending, mode, settings):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    path = tmp_path / f"a.{ending}"
    if settings.get("save_all"):
        settings = settings | {"append_images": [image.rotate(90)]}
    image.save(path, **settings)
    whole = path.read_bytes()
    for damage in range(30):
        content = bytearray(whole)
        if damage % 3 == 0:
            del content[rng.integers(len(whole)) :]
        else:
            span = 64 if damage % 3 == 1 else len(whole)
            for at in rng.integers(0, min(span, len(whole)), 5):
                content[at] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            assert load_image(path).mode == "RGB"
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_libraries_write_nothing_of_damaged_tiffs(tmp_path, capfd):
    whole = io.BytesIO()
    Image.effect_noise((32, 32), 60).convert("RGB").save(whole, "TIFF", compression="tiff_lzw")
    draw = np.random.default_rng(0)
    for number in range(60):
        content = bytearray(whole.getvalue())
        for place in draw.integers(8, len(content), 3):
            content[place] = draw.integers(256)
        path = tmp_path / f"{number}.tif"
        path.write_bytes(content)
        with suppress(InputError):
            load_image(path)
    assert capfd.readouterr() == ("", "")
