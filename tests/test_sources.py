"""Folders, trees, lists and tar shards as sources of images: the same bytes whichever way, and clear refusals."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from image_data.sources import DataError, ImageFile, ImageList, expand
from models.team08_HATFreq.image_io import ImageError, write_png


def noise(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`tree/{a,b}/{0,1}.png`, one image a seed, with files beside them that are no images."""
    for number, name in enumerate(["a/0.png", "a/1.png", "b/0.png", "b/1.png"]):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "tree" / name, noise(number))
    (tmp_path / "tree" / "a" / "notes.txt").write_text("x")
    (tmp_path / "tree" / "a" / ".hidden.png").write_text("x")
    return tmp_path / "tree"


def pack(shard: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(shard, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return shard


@pytest.fixture
def shard(tree: Path, tmp_path: Path) -> Path:
    files = {f"{path.parent.name}{path.name}": path.read_bytes() for path in sorted(tree.rglob("[01].png"))}
    return pack(tmp_path / "shard-0.tar", {**files, "a0.json": b"{}"})


def test_a_folder_holds_its_own_images_and_a_tree_those_below(tree: Path) -> None:
    assert [image.name for image in expand(str(tree / "a"))] == [str(tree / "a/0.png"), str(tree / "a/1.png")]
    names = [str(tree / name) for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png")]
    assert [image.name for image in expand(f"{tree}/**")] == names
    with pytest.raises(DataError, match=r"tree holds no images: give a folder of PNG or JPEG files"):
        expand(str(tree))


def test_a_shard_gives_the_same_pixels_as_the_files_in_any_order(tree: Path, shard: Path) -> None:
    images = expand(str(shard))
    assert [image.member for image in images] == ["a0.png", "a1.png", "b0.png", "b1.png"]
    assert images[1].name == f"{shard}::a1.png" and images[1].stem == "a1"
    for number in (2, 0, 3, 1):
        np.testing.assert_array_equal(images[number].read_rgb(), noise(number))
    assert images[0].content() == (tree / "a" / "0.png").read_bytes()


def test_a_list_names_images_folders_and_shards_relative_to_itself(tree: Path, shard: Path, tmp_path: Path) -> None:
    lines = ["# chosen", "", "tree/b/1.png", "shard-0.tar::a1.png", str(tree / "a/0.png"), "tree/b", "shard-0.tar"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    images = expand(str(tmp_path / "list.txt"))
    assert images[:3] == [
        ImageFile(tmp_path / "tree/b/1.png"), expand(f"{shard}::a1.png")[0], ImageFile(tree / "a/0.png")
    ]  # fmt: skip
    assert images[3:] == [*expand(str(tree / "b")), *expand(str(shard))]
    np.testing.assert_array_equal(images[1].read_rgb(), noise(1))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("none", "none does not exist: give a folder of images"),
        ("none/**", "none is not a folder"),
        ("shard-0.tar::c.png", "shard-0.tar holds no image c.png: make the list again"),
        ("empty.txt", "empty.txt holds no images"),
        ("lost.txt", r"lost.txt, line 2: .*none does not exist"),
        ("nested.txt", "line 1: a list cannot name another list"),
        ("packed.tgz", "packed.tgz is a compressed archive: unpack it"),
        ("shut.tar", "shut.tar is not a tar shard that can be read .*the mark of its end is missing"),
        ("doubled.tar", "doubled.tar holds several images of one name"),
        ("packed.tar", "packed.tar is not a tar shard that can be read .*plain, not compressed"),
        ("cut.tar", "cut.tar is not a tar shard that can be read"),
        ("binary.txt", "binary.txt is not a list of images"),
    ],
)
def test_words_that_lead_nowhere_are_refused(shard: Path, tmp_path: Path, word: str, message: str) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "lost.txt").write_text("tree/a\nnone\n")
    (tmp_path / "nested.txt").write_text("empty.txt\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    pack(tmp_path / "packed.tar", {"a.png": b"x" * 100}, "w:gz")
    (tmp_path / "packed.tgz").write_bytes((tmp_path / "packed.tar").read_bytes())
    item = pack(tmp_path / "one.tar", {"a.png": b"x"}).read_bytes()[:1024]
    (tmp_path / "shut.tar").write_bytes(item)
    (tmp_path / "doubled.tar").write_bytes(item + item + bytes(1024))
    (tmp_path / "cut.tar").write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=message):
        expand(str(tmp_path / word))


def test_a_lost_or_cut_image_is_named(shard: Path, tmp_path: Path) -> None:
    image = expand(str(shard))[3]
    shard.write_bytes(shard.read_bytes()[: image.offset + 5])
    with pytest.raises(ImageError, match=r"shard-0.tar::b1.png is cut short"):
        image.read_rgb()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe.png is not a file that can be read"):
        ImageFile(tmp_path / "pipe.png").read_rgb()
    with pytest.raises(ImageError, match=r"gone.png is not a file"):
        ImageFile(tmp_path / "gone.png").read_rgb()


@pytest.mark.parametrize("damage", ["flipped", "zeroed", "cut"])
def test_a_damaged_header_in_the_middle_of_a_shard_is_noticed(shard: Path, damage: str) -> None:
    """tarfile takes it for the end: what stands behind it would be gone without a word."""
    place = expand(str(shard))[2].offset - 512
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        content[place + 120] ^= 4
    if damage == "zeroed":
        content[place : place + 512] = bytes(512)
    shard.write_bytes(content[:place] if damage == "cut" else content)
    with pytest.raises(DataError, match=r"shard-0.tar is not a tar shard that can be read"):
        expand(str(shard))


def test_links_to_folders_are_followed_once_and_loops_end(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_png(tmp_path / "elsewhere" / "9.png", noise(9))
    (tree / "c").symlink_to(tmp_path / "elsewhere")
    (tree / "again").symlink_to(tmp_path / "elsewhere")
    (tree / "b" / "loop").symlink_to(tree)
    (tree / "dangling").symlink_to(tmp_path / "none")
    (tree / "self").symlink_to(tree / "self")
    names = ["a/0.png", "a/1.png", "again/9.png", "b/0.png", "b/1.png"]
    assert [image.name for image in expand(f"{tree}/**")] == [str(tree / name) for name in names]


def test_names_in_lists_are_bytes_behind_a_byte_order_mark(tree: Path, tmp_path: Path) -> None:
    names = [b"\xe9t\xe9.png", "été\u2028.png".encode(), b"b\x0b\x1c.png"]
    for number, name in enumerate(names):
        os.rename(os.fsencode(tree / "a" / "0.png"), os.path.join(os.fsencode(tmp_path), name))
        write_png(tree / "a" / "0.png", noise(number + 1))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(names))
    for number, image in enumerate(expand(str(tmp_path / "list.txt"))):
        np.testing.assert_array_equal(image.read_rgb(), noise(number))


def test_a_list_needs_no_suffix_to_name_folders(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen").write_text("tree/a\ntree/b\n")
    assert len(expand(str(tmp_path / "chosen"))) == 4


def test_an_image_list_is_a_sequence_of_files(tree: Path, shard: Path) -> None:
    files = [*expand(f"{tree}/**"), *expand(str(shard))]
    images = pickle.loads(pickle.dumps(ImageList(files)))
    joined = ImageList(files[:3])
    joined.extend(ImageList(files[3:]))
    assert images == files == joined and len(images) == 8 and images[-1] == files[-1] and images[2:5] == files[2:5]
    with pytest.raises(IndexError):
        images[8]


def test_a_size_is_read_from_the_beginning_of_a_file_or_of_a_member(tree: Path, shard: Path) -> None:
    for image in (*expand(str(tree / "a")), *expand(str(shard))):
        assert image.size_in_pixels() == (8, 8)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard", "symbolic"])
def test_a_shard_with_links_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = kind, "a.png"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"a\.tar holds b\.png, a link"):
        expand(str(tmp_path / "a.tar"))
