"""Image files of every kind that a user may hand in: the right samples or a clear error."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from models.team08_HATFreq import image_io
from models.team08_HATFreq.image_io import ImageError, Picture, list_images, read_picture, read_rgb, size_of, write_png
from models.team08_HATFreq.png import write_rows

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
    assert grey.grey and grey.samples.shape == (9, 7, 4)


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
    with pytest.raises(ImageError, match=rf"a{suffix}.*(truncated|damaged|no image)"):
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
    refused(tmp_path / "float3.tiff", "no image|not unsigned")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty")
    (tmp_path / "text.png").write_text("not an image")
    refused(tmp_path / "text.png", "no image that can be read")
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
    write_rows(file, samples)
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
    monkeypatch.setattr(image_io, "write_rows", lambda file, samples: (file.write(b"begun"), full_disk())[1])
    with pytest.raises(OSError, match="No space left"):
        write_png(tmp_path / "a.png", 255 - RGB)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), RGB)


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def test_grey_samples_keep_equal_channels() -> None:
    grey = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(Picture(np.repeat(grey[..., None], 3, 2), grey=True).samples, grey)
