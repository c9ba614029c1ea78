"""Image files of every kind that a user may hand in: the right samples or a clear error."""

import io
import os
import struct
import zlib
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, TiffImagePlugin

from models.team08_HATFreq import image_io
from models.team08_HATFreq.image_io import (
    OUTPUT_SUFFIXES,
    ImageError,
    Metadata,
    Picture,
    list_images,
    read_picture,
    read_rgb,
    size_of,
    write_picture,
    write_png,
    write_rows,
)

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (9, 7, 4), dtype=np.uint16)


def save(path: Path, samples: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(samples)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".TIF"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", RGB)
    np.testing.assert_array_equal(read_rgb(path), RGB)
    assert size_of(path) == (9, 7)


def test_lossless_webp_and_jpeg(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_rgb(save(tmp_path / "a.webp", RGB, lossless=True)), RGB)
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    jpeg = read_rgb(save(tmp_path / "a.jpg", flat, quality=95))
    assert np.abs(jpeg.astype(int) - flat).max() <= 3  # the order of the channels is right


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path, format="PNG")
    np.testing.assert_array_equal(read_rgb(path), RGB)


def test_names_beyond_ascii(tmp_path: Path) -> None:
    path = tmp_path / "Straße 東京.png"
    write_png(path, RGB)
    np.testing.assert_array_equal(read_rgb(path), RGB)
    write_png(path, DEEP[..., :3])
    np.testing.assert_array_equal(read_picture(path).rgb, DEEP[..., :3])


def test_grey_becomes_three_equal_channels_and_back(tmp_path: Path) -> None:
    picture = read_picture(save(tmp_path / "a.png", RGB[..., 0]))
    assert picture.grey
    np.testing.assert_array_equal(picture.rgb, np.repeat(RGB[..., :1], 3, axis=2))
    np.testing.assert_array_equal(picture.samples, RGB[..., 0])


def test_one_bit_images(tmp_path: Path) -> None:
    bits = RGB[..., 0] > 127
    np.testing.assert_array_equal(read_picture(save(tmp_path / "a.png", bits)).samples, bits * np.uint8(255))


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    indexed = Image.fromarray(RGB[:2, :2]).quantize(4)
    expected = np.asarray(indexed.convert("RGB"))
    indexed.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), expected)
    indexed.save(tmp_path / "b.png", transparency=0)
    picture = read_picture(tmp_path / "b.png")
    np.testing.assert_array_equal(picture.alpha, np.where(np.asarray(indexed) == 0, 0, 255))
    with pytest.raises(ImageError, match=r"b\.png is partly transparent: flatten"):
        read_rgb(tmp_path / "b.png")


def test_alpha_is_kept_and_an_opaque_one_dropped(tmp_path: Path) -> None:
    alpha = RGB[..., :1]
    picture = read_picture(save(tmp_path / "a.png", np.dstack([RGB, alpha])))
    np.testing.assert_array_equal(picture.samples, np.dstack([RGB, alpha]))
    opaque = read_picture(save(tmp_path / "b.png", np.dstack([RGB, np.full_like(alpha, 255)])))
    assert opaque.alpha is None
    np.testing.assert_array_equal(opaque.samples, RGB)
    grey = read_picture(save(tmp_path / "c.png", np.dstack([alpha, RGB[..., 1]]), "LA"))
    np.testing.assert_array_equal(grey.alpha, RGB[..., 1])
    assert grey.grey and grey.samples.shape == (9, 7, 2)
    np.testing.assert_array_equal(grey.samples, np.dstack([alpha, RGB[..., 1]]))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, channels: int, suffix: str) -> None:
    samples = DEEP[..., 0] if channels == 1 else DEEP[..., :channels]
    path = tmp_path / f"a{suffix}"
    bgr = samples if channels == 1 else cv2.cvtColor(samples, {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels])
    assert cv2.imwrite(str(path), bgr)
    picture = read_picture(path)
    assert picture.rgb.dtype == np.uint16
    np.testing.assert_array_equal(picture.samples, samples)


def test_sixteen_bits_are_rounded_for_metrics(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 65535 - 128, 65535]], np.uint16)
    write_png(tmp_path / "a.png", values)
    assert read_rgb(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, deep: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    plain = Image.fromarray(DEEP[..., 0] if deep else RGB)
    plain.save(path, exif=exif)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # PIL's Transpose numbers: what a viewer does
    upright = plain if orientation == 1 else plain.transpose(Image.Transpose(turn[orientation]))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.samples, np.asarray(upright))
    assert size_of(path) == picture.rgb.shape[:2]


def test_a_phones_jpeg_with_previews_gives_the_photograph(tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[:4, :4])
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_rgb(tmp_path / "a.jpg").shape == RGB.shape


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp"])
def test_truncated_files_are_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"a{suffix}.*(truncated|damaged|not an image)"):
        read_rgb(path)


def test_truncated_sixteen_bits_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"a\.png is damaged or truncated"):
        read_picture(path)


def test_what_cannot_be_restored_is_refused_with_the_remedy(tmp_path: Path) -> None:
    def refused(path: Path, text: str) -> None:
        with pytest.raises(ImageError, match=text) as error:
            read_picture(path)
        assert path.name in str(error.value)

    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "anim.webp", save_all=True, append_images=frames[1:], lossless=True)
    refused(tmp_path / "anim.webp", "2 frames or pages: save each")
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    refused(tmp_path / "pages.tiff", "2 frames or pages")
    refused(save(tmp_path / "cmyk.jpg", RGB, "CMYK"), "CMYK samples: convert")
    refused(save(tmp_path / "float.tiff", RGB[..., 0].astype(np.float32)), "F samples: convert")
    assert cv2.imwrite(str(tmp_path / "float3.tiff"), RGB.astype(np.float32))
    refused(tmp_path / "float3.tiff", "not an image|not unsigned")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty")
    (tmp_path / "text.png").write_text("not an image")
    refused(tmp_path / "text.png", "is not an image")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "is a folder")
    refused(tmp_path / "missing.png", "does not exist")


def test_decompression_bombs_are_refused_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", RGB)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 62)
    with pytest.raises(ImageError, match="7x9 pixels, more than 62: crop"):
        read_picture(path)


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c.txt", ".hidden.png", "d.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.PNG", "d.webp"]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        list_images(tmp_path / "c.txt")


@pytest.mark.parametrize(
    "samples",
    [RGB[..., 0], RGB, np.dstack([RGB, RGB[..., :1]]), DEEP, DEEP[..., 0]],
    ids=["grey", "rgb", "rgba", "rgba16", "grey16"],
)
def test_written_files_read_back(tmp_path: Path, samples: np.ndarray) -> None:
    write_png(tmp_path / "a.png", samples)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").samples, samples)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2), (3, 5, 3), (3, 5, 4), (1, 1, 3), (1, 700, 3), (900, 1200)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rows_written_by_ourselves_are_what_other_readers_see(shape: tuple[int, ...], dtype: type) -> None:
    samples = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    file = io.BytesIO()
    write_rows(file, samples, Metadata())
    decoded = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    if shape[2:] == (2,):  # OpenCV gives grey and alpha as colour and alpha
        decoded = decoded[..., 2:]
    elif shape[2:]:
        decoded = cv2.cvtColor(decoded, {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}[shape[2]])
    np.testing.assert_array_equal(decoded, samples)
    if dtype == np.uint8:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), samples)


def test_samples_that_png_cannot_hold_are_refused(tmp_path: Path) -> None:
    for samples in (np.zeros((2, 2, 5), np.uint8), np.zeros((2, 2, 3), np.float32), np.zeros((0, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match="of shape"):
            write_png(tmp_path / "a.png", samples)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "a.png", RGB)
    monkeypatch.setattr(image_io, "write_rows", lambda file, *_: (file.write(b"begun"), full_disk())[1])
    with pytest.raises(OSError, match=r"a\.png \(No space left on device\): make room") as caught:
        write_png(tmp_path / "a.png", 255 - RGB)
    assert caught.value.errno == 28
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), RGB)


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def test_grey_samples_keep_equal_channels() -> None:
    grey = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(Picture(np.repeat(grey[..., None], 3, 2), grey=True).samples, grey)


# ---------------------------------------------------------------------------------------------------------------------
# Files that a decoder reads wrongly, or stumbles over
# ---------------------------------------------------------------------------------------------------------------------


def exif_of_type(kind: int, value: bytes) -> bytes:
    """An EXIF block whose only tag is the orientation, of a TIFF type."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, kind, 1, value, 0)


@pytest.mark.parametrize(("kind", "value"), [(1, b"\6"), (2, b"6\0"), (7, b"\6"), (3, b"\x99"), (12, b"\6")])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_an_orientation_of_another_type_stops_nothing(tmp_path: Path, kind: int, value: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RGB).save(path, exif=exif_of_type(kind, value.ljust(4, b"\0")), quality=95)
    assert sorted(size_of(path)) == [7, 9] and read_rgb(path).size == RGB.size


def test_links_that_lead_to_themselves_or_nowhere_are_named(tmp_path: Path) -> None:
    for name, target in (("loop.png", "loop.png"), ("dangling.png", "nowhere.png")):
        (tmp_path / name).symlink_to(tmp_path / target)
        for read in (size_of, read_picture):
            with pytest.raises(ImageError, match=name):
                read(tmp_path / name)


def test_messages_hold_no_address_of_memory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    for read in (lambda path: read_picture(path), lambda path: read_picture("in a shard", path.read_bytes())):
        with pytest.raises(ImageError) as caught:
            read(tmp_path / "a.png")
        assert "0x" not in str(caught.value) and "BytesIO" not in str(caught.value)


def tiff(path: Path, samples: np.ndarray, **options: object) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, samples, **options)
    return path


KINDS = {1: DEEP[..., 0], 3: DEEP[..., :3], 4: DEEP}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiffs_are_what_tifffile_wrote(
    tmp_path: Path, bits: int, channels: int, byteorder: str, compression: str | None
) -> None:
    samples = KINDS[channels] if bits == 16 else (KINDS[channels] >> 8).astype(np.uint8)
    options = {"photometric": "minisblack" if channels == 1 else "rgb", "byteorder": byteorder}
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    path = tiff(tmp_path / "a.tif", samples, compression=compression, **options)
    np.testing.assert_array_equal(read_picture(path).samples, samples)


def test_planes_of_their_own_are_read_right_or_refused(tmp_path: Path) -> None:
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    eight = tiff(tmp_path / "8.tif", np.moveaxis(RGB, 2, 0), **planes)
    np.testing.assert_array_equal(read_picture(eight).rgb, RGB)
    with pytest.raises(ImageError, match=r"16\.tif keeps its channels in separate planes: save"):
        read_picture(tiff(tmp_path / "16.tif", np.moveaxis(DEEP[..., :3], 2, 0), **planes))
    two = {"photometric": "minisblack", "planarconfig": "separate", "extrasamples": ["unassalpha"]}
    with pytest.raises(ImageError, match=r"la\.tif keeps its channels in separate planes: save"):
        read_picture(tiff(tmp_path / "la.tif", np.moveaxis(RGB[..., :2], 2, 0), **two))


@pytest.mark.parametrize("extra", ["assocalpha", "unspecified"])
def test_other_channels_of_16_bits_are_refused(tmp_path: Path, extra: str) -> None:
    path = tiff(tmp_path / "a.tif", DEEP, photometric="rgb", extrasamples=[extra])
    with pytest.raises(ImageError, match=r"a\.tif holds 16-bit samples other than grey, RGB"):
        read_picture(path)


def packed(samples: np.ndarray, colour_type: int, bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of any colour type and depth, written by the specification: no library writes them all."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = []
    for row in samples.reshape(len(samples), -1):
        numbers = "".join(f"{int(value):0{bits}b}" for value in row)
        numbers += "0" * (-len(numbers) % 8)
        rows.append(bytes([0, *(int(numbers[i : i + 8], 2) for i in range(0, len(numbers), 8))]))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


PNG_KINDS = (
    [(0, b) for b in (1, 2, 4, 8, 16)] + [(3, b) for b in (1, 2, 4, 8)] + [(t, b) for t in (2, 4, 6) for b in (8, 16)]
)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(("colour_type", "bits"), PNG_KINDS)
def test_every_kind_of_png_is_read_as_it_was_written(colour_type: int, bits: int, transparent: bool) -> None:
    rng, most = np.random.default_rng(bits), 2**bits - 1
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    stored = rng.integers(0, most + 1, (9, 7, channels))
    if colour_type == 3:
        palette = rng.integers(0, 256, (most + 1, 4)).astype(np.uint8)
        chunks = [(b"PLTE", palette[:, :3].tobytes()), (b"tRNS", palette[:, 3].tobytes())]
        expected = palette[stored[..., 0]][..., : 4 if transparent else 3]
        chunks = chunks[: 2 if transparent else 1]
    else:
        full = 65535 if bits == 16 else 255
        expected = (stored * (full // most)).astype(np.uint16 if bits == 16 else np.uint8)
        chunks = []
        if transparent:
            if colour_type in (4, 6):
                pytest.skip("has alpha of its own")
            key = stored[0, 0]
            chunks = [(b"tRNS", struct.pack(f">{channels}H", *map(int, key)))]
            alpha = np.where((stored == key).all(-1), 0, full).astype(expected.dtype)
            expected = np.dstack([expected, alpha])
    samples = read_picture("a.png", packed(stored, colour_type, bits, *chunks)).samples
    np.testing.assert_array_equal(samples, expected[..., 0] if expected.shape[2] == 1 else expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_an_orientation_in_a_tiff_is_applied_once(tmp_path: Path, orientation: int, bits: int) -> None:
    samples = DEEP[..., :3] if bits == 16 else RGB
    path = tiff(tmp_path / "a.tif", samples, photometric="rgb", extratags=[(274, "H", 1, orientation, False)])
    turned = samples.swapaxes(0, 1) if orientation >= 5 else samples
    rows, columns = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    np.testing.assert_array_equal(read_picture(path).rgb, turned[::rows, ::columns])
    assert size_of(path) == turned.shape[:2]


def test_other_formats_and_pipes_are_not_opened(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", format="GIF")
    os.mkfifo(tmp_path / "pipe.png")
    for name, cause in (("a.png", "holds GIF"), ("pipe.png", "is not a regular file")):
        for read in (size_of, read_picture):
            with pytest.raises(ImageError, match=rf"{name} {cause}"):
                read(tmp_path / name)


@pytest.mark.parametrize("samples", [RGB[..., 0], DEEP[..., 0]], ids=["8", "16"])
def test_white_is_zero_comes_out_positive(tmp_path: Path, samples: np.ndarray) -> None:
    path = tiff(tmp_path / "a.tif", samples, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(path).samples, np.iinfo(samples.dtype).max - samples)


def test_grey_with_alpha_of_16_bits_stays_grey(tmp_path: Path) -> None:
    samples = np.dstack([DEEP[..., 0], DEEP[..., 1]])
    write_png(tmp_path / "a.png", samples)
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey
    np.testing.assert_array_equal(picture.samples, samples)


def test_a_transparent_grey_of_16_bits_is_kept(tmp_path: Path) -> None:
    samples = DEEP[..., 0].copy()
    samples[2, 3] = samples[0, 0]
    file = io.BytesIO()
    write_rows(file, samples, Metadata())
    content = file.getvalue()
    chunk = b"tRNS" + struct.pack(">H", int(samples[0, 0]))
    trns = struct.pack(">I", 2) + chunk + struct.pack(">I", image_io.zlib.crc32(chunk))
    after_header = 8 + 25
    picture = read_picture("a.png", content[:after_header] + trns + content[after_header:])
    np.testing.assert_array_equal(picture.alpha, np.where(samples == samples[0, 0], 0, 65535))
    np.testing.assert_array_equal(picture.samples[..., 0], samples)


# ---------------------------------------------------------------------------------------------------------------------
# What a file holds beside its samples
# ---------------------------------------------------------------------------------------------------------------------


@cache  # a profile holds the second in which it was made
def profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_profile_resolution_and_exif_are_kept(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    Image.fromarray(RGB).save(tmp_path / "in.jpg", icc_profile=profile(), dpi=(300, 300), exif=exif, quality=95)
    picture = read_picture(tmp_path / "in.jpg")
    assert picture.rgb.shape == (7, 9, 3) and picture.metadata.lost == ()
    write_picture(tmp_path / f"out{suffix}", picture)
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert out.info["icc_profile"] == profile()
        assert out.getexif()[0x010F] == "a camera" and 0x0112 not in out.getexif()
        if suffix != ".webp":  # which has no field for it
            assert out.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    again = read_picture(tmp_path / f"out{suffix}")
    assert again.rgb.shape == (7, 9, 3)  # not turned twice


def test_a_profile_of_another_kind_of_samples_is_said_to_be_lost(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png", icc_profile=profile())
    metadata = read_picture(tmp_path / "a.png").metadata
    assert metadata.icc is None and "colour profile" in metadata.lost[0]


def test_other_formats_are_written_with_their_quality(tmp_path: Path) -> None:
    photo = cv2.resize(RGB, (64, 64), interpolation=cv2.INTER_CUBIC)
    for quality in (60, 95):
        write_picture(tmp_path / f"{quality}.jpg", Picture(photo), quality)
    assert (tmp_path / "60.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size
    assert np.abs(read_rgb(tmp_path / "95.jpg").astype(int) - photo).mean() < 3
    write_picture(tmp_path / "a.webp", Picture(photo, photo[..., 0]), 100)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.webp").samples, np.dstack([photo, photo[..., 0]]))
    with pytest.raises(ValueError, match="no transparency"):
        write_picture(tmp_path / "a.jpg", Picture(photo, photo[..., 0]))
    assert not (tmp_path / "a.jpg").exists()


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "n" * 251 + ".png"
    write_png(tmp_path / name, RGB)
    np.testing.assert_array_equal(read_rgb(tmp_path / name), RGB)


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*a\.png .*a folder has that name"):
        write_png(tmp_path / "a.png", RGB)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# ---------------------------------------------------------------------------------------------------------------------
# Fuzzing
# ---------------------------------------------------------------------------------------------------------------------


def seeds() -> dict[str, bytes]:
    """A small file of every kind that can be read."""
    made = {}

    def add(name: str, samples: np.ndarray, kind: str, **options: object) -> None:
        file = io.BytesIO()
        Image.fromarray(samples).save(file, format=kind, **options)
        made[name] = file.getvalue()

    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    more = {"exif": exif, "icc_profile": profile()}
    photo = cv2.resize(RGB, (40, 32), interpolation=cv2.INTER_CUBIC)
    add("jpeg", photo, "JPEG", dpi=(72, 72), **more)
    add("progressive", photo, "JPEG", progressive=True)
    add("png", photo, "PNG", **more)
    add("rgba", np.dstack([photo, photo[..., 0]]), "PNG")
    add("palette", np.asarray(Image.fromarray(photo).quantize(16)), "PNG", transparency=0)
    add("bmp", photo, "BMP")
    add("webp", photo, "WEBP", **more)
    add("webp_lossless", photo, "WEBP", lossless=True)
    for compression in (None, "tiff_lzw", "jpeg", "tiff_deflate"):
        add(f"tiff_{compression}", photo, "TIFF", compression=compression)
    for name, samples in (("deep", DEEP[..., :3]), ("deep_grey", DEEP[..., 0])):
        file = io.BytesIO()
        write_rows(file, samples, Metadata(profile(), (300, 300)))
        made[name] = file.getvalue()
        made[f"{name}_tiff"] = cv2.imencode(".tiff", samples)[1].tobytes()
    return made


def fuzz(mutations: int) -> tuple[int, int]:
    """Read mutated files; returns how many were read and how many were refused. Anything else is a failure."""
    draw, outcome = np.random.default_rng(0), [0, 0]
    for name, content in seeds().items():
        for number in range(mutations):
            mutated = bytearray(content)
            for _ in range(int(draw.integers(1, 6))):  # half of them in the header, where decoders stumble
                place = int(draw.integers(len(mutated) if draw.random() < 0.5 else min(len(mutated), 220)))
                mutated[place] = int(draw.integers(256))
            if draw.random() < 0.15:
                del mutated[int(draw.integers(len(mutated))) :]
            for read in (size_of, read_picture):
                try:
                    read(f"{name}-{number}", bytes(mutated))
                    outcome[0] += 1
                except ImageError as error:
                    assert f"{name}-{number}" in str(error)
                    outcome[1] += 1
    return outcome[0], outcome[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutations", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused_by_name(mutations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "MAX_PIXELS", 1 << 20)
    before = image_io_peak()
    read, refused = fuzz(mutations)
    assert read + refused == 2 * mutations * len(seeds()) and min(read, refused) > 0.1 * (read + refused)
    assert image_io_peak() - before < 50e6  # a million pixels of 16 bits, decoded and converted


def image_io_peak() -> int:
    from models.team08_HATFreq.system import peak_memory

    return peak_memory(None)[0] or 0


def png_with(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG file with more chunks behind its header."""
    write_png(path, RGB)
    content = path.read_bytes()
    for kind, data in chunks:
        chunk = len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        content = content[:33] + chunk + content[33:]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"gAMA", (100_000).to_bytes(4, "big")),
        (b"cICP", bytes([9, 16, 0, 1])),
        (b"tEXt", b"parameters\0a cat, Steps: 20"),
        (b"zTXt", b"workflow\0\0" + zlib.compress(np.random.default_rng(0).bytes(1 << 20).hex().encode())),
    ],
    ids=["gamma", "HDR", "text", "text of 2 MiB"],
)
def test_colours_and_texts_of_a_png_stay_or_are_named(tmp_path: Path, kind: bytes, data: bytes) -> None:
    picture = read_picture(png_with(tmp_path / "a.png", (kind, data)))
    assert picture.metadata.chunks == ((kind, data),)
    write_picture(tmp_path / "b.png", picture)
    assert read_picture(tmp_path / "b.png").metadata == picture.metadata
    assert picture.metadata.lost_in(Path("b.png")) == () and kind.decode() in picture.metadata.lost_in(Path("b.webp"))


def full_exif() -> Image.Exif:
    """Model, date, place; orientation 6 and the sizes before an enlargement."""
    exif = Image.Exif()
    exif[0x110], exif[0x112], exif[0x100] = "Camera", 6, 20
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0xA002: 20, 0xA003: 16})
    exif.get_ifd(0x8825)[1] = "N"
    return exif


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png", "a.tif", "raw.png"])
def test_exif_of_every_format_stays_without_sizes_and_orientation(tmp_path: Path, name: str) -> None:
    path, exif = tmp_path / name, full_exif()
    if name == "a.tif":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x110], tags[0x112] = "Camera", 6
        tags[0x8769], tags[0x8825] = {0x9003: "2020:01:01 00:00:00", 0xA002: 20}, {1: "N"}
        Image.fromarray(RGB).save(path, tiffinfo=tags)
    elif name == "raw.png":  # as ImageMagick writes it
        block = exif.tobytes()
        png_with(path, (b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"))
    else:
        Image.fromarray(RGB).save(path, exif=exif)
    picture = read_picture(path)
    assert picture.rgb.shape[:2] == RGB.shape[1::-1] and picture.metadata.dpi is None
    write_picture(tmp_path / "b.png", picture)
    kept = Image.open(tmp_path / "b.png").getexif()
    assert kept[0x110] == "Camera" and not {0x100, 0x101, 0x112} & set(kept)
    assert dict(kept.get_ifd(0x8769)) == {0x9003: "2020:01:01 00:00:00"} and kept.get_ifd(0x8825)[1] == "N"


def test_exif_that_jpeg_cannot_hold_is_named_and_the_rest_written(tmp_path: Path) -> None:
    exif = full_exif()
    exif.get_ifd(0x8769)[0x927C] = bytes(100_000)
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    picture = read_picture(tmp_path / "a.png")
    assert any("EXIF" in name for name in picture.metadata.lost_in(Path("b.jpg")))
    write_picture(tmp_path / "b.jpg", picture)
    assert not Image.open(tmp_path / "b.jpg").getexif()
    write_picture(tmp_path / "b.png", picture)
    assert len(read_picture(tmp_path / "b.png").metadata.exif or b"") > 100_000


def test_large_profiles_are_read_again_and_thumbnail_pages_do_not_count(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(1_600_000)
    Image.fromarray(RGB).save(tmp_path / "a.jpg", icc_profile=profile)
    write_picture(tmp_path / "b.png", read_picture(tmp_path / "a.jpg"))
    assert read_picture(tmp_path / "b.png").metadata.icc == profile
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB, photometric="rgb")
        file.write(np.ascontiguousarray(RGB[::4, ::4]), photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), RGB)
