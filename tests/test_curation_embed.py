"""Embedding: bad files, restarts, ranks, encoders, and the numbers that go with every image."""

import csv
import fcntl
import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from hashlib import sha1
from pathlib import Path

import cv2
import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from curation import alive
from PIL import Image
from safetensors.torch import save_file

from data_curation import embed
from data_curation.embed import run as embed_run
from data_curation.embed.decode import MAX_ASPECT
from data_curation.embed.encoders import EncoderError, backbone_encoder, clip_encoder
from data_curation.embed.keypoints import find_keypoints, hashed
from data_curation.embed.phash import distance, phash8
from data_curation.embed.preprocess import Preprocess
from data_curation.embed.quality import blockiness, sharpness
from data_curation.embed.reader import read
from data_curation.features import SCHEMA, SETTINGS, Features, FeaturesError, Settings, finished_inputs, normalised
from image_data.geometry import orient
from image_data.sources import ImageFile, expand
from models.team08_HATFreq.image_io import write_png
from utils.resize import imresize

CPU = torch.device("cpu")
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def photograph(seed: int, h: int = 60, w: int = 80) -> np.ndarray:
    """Smooth colours with some texture: uint8 `h w 3`."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(0, 255, (5, 6, 3)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 4, (h, w, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Twenty photographs of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(20):
        write_png(folder / f"{seed:02}.png", photograph(seed, 60 + seed, 80 - seed))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A model folder of open_clip: a CLIP of 30,000 parameters, fresh."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {"size": 32}}))
    torch.manual_seed(0)
    model = open_clip.CLIP(TINY["embed_dim"], open_clip.CLIPVisionCfg(**TINY["vision_cfg"]),
                           open_clip.CLIPTextCfg(**TINY["text_cfg"]))  # fmt: skip
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def words(images: Path | str, clip: Path, out: Path, *more: str) -> list[str]:
    return [str(images), "--model", f"local-dir:{clip}", "--out", str(out), "--workers", "1", "--shard_size", "4",
            "--batch", "3", *more]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(pictures, clip, tmp_path_factory) -> Path:
    """The features of an undisturbed run."""
    out = tmp_path_factory.mktemp("features") / "whole"
    embed.main(words(pictures, clip, out))
    return out


# What a features folder holds


def test_records_and_embeddings_are_those_of_the_images(pictures, clip, whole):
    features = Features(whole)
    table = features.columns(*SCHEMA.names).to_pylist()
    assert len(features) == len(table) == 20
    assert [row["name"] for row in table] == [str(pictures / f"{n:02}.png") for n in range(20)]
    assert [(row["height"], row["width"]) for row in table] == [(60 + n, 80 - n) for n in range(20)]
    content = (pictures / "07.png").read_bytes()
    assert (table[7]["bytes"], table[7]["sha1"]) == (len(content), sha1(content).hexdigest())
    pixels = photograph(7, 67, 73)
    assert table[7]["phash"] == phash8(pixels).tolist() == features.phashes()[7].tolist()
    assert table[7]["keypoints"] == hashed(find_keypoints(pixels), 67, 73).tobytes() != b""
    assert abs(features.thumbnails()[7].mean((0, 1)) - pixels.mean((0, 1))).max() < 2
    assert table[7]["sharpness"] == np.float32(sharpness(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    with torch.inference_mode():
        expected = model.eval().encode_image(transform(Image.fromarray(pixels))[None], normalize=True)[0].numpy()
    assert np.abs(features.vectors([7])[0] - expected).max() < 1e-3  # float16
    assert np.abs(np.linalg.norm(features.vectors(range(20)), axis=1) - 1).max() < 1e-3
    shards = list(features.shards())
    assert [len(shard) for shard in shards] == [4] * 5
    assert isinstance(shards[0], np.memmap)
    np.testing.assert_array_equal(features.vectors([19, 3, 4]), np.concatenate(shards)[[19, 3, 4]].astype(np.float32))


def test_downscale_embeds_what_imresize_makes_of_the_cropped_image(pictures, clip, tmp_path):
    for name in ("hr", "lr"):
        (tmp_path / name).mkdir()
    write_png(tmp_path / "hr" / "a.png", photograph(3, 203, 162))
    write_png(tmp_path / "lr" / "a.png", imresize(photograph(3, 203, 162)[:200, :160], 1 / 4))
    embed.main(words(tmp_path / "hr", clip, tmp_path / "small", "--downscale", "4"))
    embed.main(words(tmp_path / "lr", clip, tmp_path / "given"))
    np.testing.assert_array_equal(Features(tmp_path / "small").vectors([0]), Features(tmp_path / "given").vectors([0]))
    assert Features(tmp_path / "small").column("height") == [203]


def test_tar_shard_folder_and_list_give_the_same_embeddings(pictures, clip, whole, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for path in sorted(pictures.iterdir())[:8]:
            shard.add(path, path.name)
    (tmp_path / "list.txt").write_text("".join(f"{pictures}/{n:02}.png\n" for n in range(8, 20)))
    embed.main([str(tmp_path / "list.txt"), *words(tmp_path / "a.tar", clip, tmp_path / "out")])
    ours, other = Features(tmp_path / "out"), Features(whole)
    order = [*range(8, 20), *range(8)]
    assert ours.columns("sha1")["sha1"].to_pylist() == [other.columns("sha1")["sha1"][n].as_py() for n in order]
    assert ours.columns("name")["name"][12].as_py() == f"{tmp_path}/a.tar::00.png"
    np.testing.assert_allclose(ours.vectors(range(20)), other.vectors(order), atol=1e-3)


# Files that cannot be read


def png(width: int, height: int) -> bytes:
    """A PNG's header that promises more than follows."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def make_bad_files(folder: Path) -> dict[str, str]:
    """One of every kind among good ones; returns a word of the reason for each."""
    good = (folder / "good.png").read_bytes()
    rgb = Image.fromarray(photograph(1))
    (folder / "truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png(100_000, 100_000))
    rgb.save(folder / "animated.webp", save_all=True, append_images=[Image.fromarray(photograph(2))])
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "text.png").write_text("no image at all")
    write_png(folder / "two\nlines.png", photograph(1))
    write_png(folder / "we::ird.png", photograph(1))
    write_png(folder / "strip.png", np.zeros((4, 30_000, 3), np.uint8))
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "hanging.png")  # reading it waits for a writer, for ever
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    os.symlink(folder / "good.png", os.fsencode(folder) + b"/latin-\xe9.png")
    rgba = np.dstack([photograph(1), np.full((60, 80), 128, np.uint8)])
    write_png(folder / "transparent.png", rgba)
    return {"truncated.png": "truncated", "zero.png": "empty", "bomb.png": "pixels", "animated.webp": "frames",
            "cmyk.jpg": "CMYK", "text.png": "image", "folder.png": "not a file", "hanging.png": "not a file",
            "broken.png": "not a file", "latin-\\udce9.png": "UTF-8", "transparent.png": "transparent",
            "two\nlines.png": "line break", "we::ird.png": ":: in its", "strip.png": f"{MAX_ASPECT}:1"}  # fmt: skip


@pytest.mark.slow
def test_bad_files_are_named_and_neither_stop_nor_hang_the_run(clip, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    write_png(folder / "good.png", photograph(1))
    write_png(folder / "sixteen.png", photograph(1).astype(np.uint16) * 257)
    Image.fromarray(photograph(1)).save(folder / "wrongly-named.png", "JPEG", quality=95)
    Image.fromarray(photograph(1)).convert("L").save(folder / "grey.jpg")
    expected = make_bad_files(folder)
    runs = []
    for out in (tmp_path / "one", tmp_path / "two"):
        embed.main(words(folder, clip, out, "--seconds", "1", "--workers", "2"))
        runs.append(contents(out))
    assert runs[0] == runs[1]
    features = Features(tmp_path / "one")
    names = [Path(row["name"]).name for row in features.columns("name").to_pylist()]
    assert names == ["good.png", "grey.jpg", "sixteen.png", "wrongly-named.png"]
    vectors = features.vectors(range(4))
    assert (vectors[0] @ vectors[2:].T > 0.99).all()
    result = {Path(name).name: reason for name, reason in features.unreadable()}
    assert set(result) == set(expected)
    for name, word in expected.items():
        assert word in result[name], (name, result[name])


def test_an_image_that_kills_its_decoder_is_named_and_the_next_are_read(pictures):
    preprocess = Preprocess(32, 32, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)
    images = list(expand(str(pictures)))
    images[3] = ImageFile(_Deadly(images[3].path))
    outcomes = list(read(images, preprocess, 1, 2, 60, 8))
    assert [number for number, result in enumerate(outcomes) if isinstance(result, str)] == [3]
    assert outcomes[3] == "ended the decoder that read it (signal SIGKILL)"
    assert outcomes[4].record.name == str(images[4].path)


class _Deadly(type(Path())):
    """A file that ends the process that reads it, as a fault in a decoder does."""

    def open(self, *_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


def test_a_run_without_a_single_readable_image_fails(clip, tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.png").write_bytes(b"")
    with pytest.raises(SystemExit, match="no embedding: none of its 1 images"):
        embed.main(words(tmp_path / "pool", clip, tmp_path / "out"))


# Restarts and ranks


@pytest.mark.slow
def test_two_ranks_give_the_bytes_of_one(pictures, clip, whole, tmp_path, root):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "-m", "data_curation.embed", *words(pictures, clip, tmp_path / "out")]  # fmt: skip
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=600)
    assert contents(tmp_path / "out") == contents(whole)


def leased(path: Path) -> int:
    """A new file, open here, whose lease keeps every other process waiting that opens it (45 s at most)."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel tells of the other's open
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return descriptor


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_bytes(pictures, clip, whole, tmp_path, root):
    out = tmp_path / "out"
    gate = leased(tmp_path / "gate.png")  # the run waits at it, its first shards finished
    pool = tmp_path / "pool"
    pool.mkdir()
    for path in pictures.iterdir():
        (pool / path.name).symlink_to(tmp_path / "gate.png" if path.name == "09.png" else path)
    command = [sys.executable, "-m", "data_curation.embed", *words(pool, clip, out, "--seconds", "300")]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (out / "shard_00001.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(alive(process.pid)) >= 3  # itself, the fork server, a worker that hangs in its image
    process.send_signal(signal.SIGKILL)
    process.wait()
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.close(gate)
    assert not alive(process.pid)
    assert (out / "shard_00001.parquet").exists()
    assert not (out / "shard_00002.parquet").exists()
    (out / "shard_00002.npy").write_bytes(b"half a shard")  # what a kill between two files leaves
    before = (out / "shard_00000.npy").stat().st_mtime_ns
    (pool / "09.png").unlink()
    (pool / "09.png").symlink_to(pictures / "09.png")
    embed.main(words(pool, clip, out))
    assert (out / "shard_00000.npy").stat().st_mtime_ns == before  # skipped
    embed.main(words(pool, clip, tmp_path / "undisturbed"))
    assert contents(out) == contents(tmp_path / "undisturbed")


def ray_tasks() -> list[int]:
    """The processes that tasks run in: Ray names them so."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_ray_task(path)]


def is_ray_task(path: Path) -> bool:
    try:
        return path.read_bytes().startswith(b"ray::_embed")
    except OSError:  # it has just ended
        return False


@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_a_worker_is_killed(pictures, clip, whole, tmp_path, root):
    pytest.importorskip("ray", reason="ray is not installed (pip install -e .[cluster])")
    gate = leased(tmp_path / "gate.png")  # a task waits at it
    pool = tmp_path / "pool"
    pool.mkdir()
    for path in pictures.iterdir():
        (pool / path.name).symlink_to(tmp_path / "gate.png" if path.name == "09.png" else path)
    command = [sys.executable, "-m", "data_curation.embed", *words(pool, clip, tmp_path / "out", "--ray", "local")]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not ((tmp_path / "out" / "shard_00001.parquet").exists() and (tasks := ray_tasks())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (pool / "09.png").unlink()
    (pool / "09.png").symlink_to(pictures / "09.png")
    for pid in tasks:
        os.kill(pid, signal.SIGKILL)
    os.close(gate)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "20 embeddings" in text
    embed.main(words(pool, clip, tmp_path / "undisturbed"))
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_what_ray_runs_elsewhere_has_absolute_paths(tmp_path, monkeypatch):
    cluster = pytest.importorskip(
        "data_curation.embed.cluster", reason="ray is not installed (pip install -e .[cluster])"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").touch()
    args = embed_run.arguments(["i", "--out", "o", "--model", "local-dir:m", "--pretrained", "w.pt"])
    result = cluster.with_absolute_paths(args)
    assert (result.out, result.model) == (tmp_path / "o", f"local-dir:{tmp_path}/m")
    assert result.pretrained == str(tmp_path / "w.pt")
    plain = embed_run.arguments(["i", "--out", "o", "--backbone", "alexnet", "--weights", "w.pt"])
    result = cluster.with_absolute_paths(plain)
    assert (result.weights, result.model, result.pretrained) == (tmp_path / "w.pt", "ViT-L-14", "openai")


def test_a_ray_cluster_that_is_not_there_is_named(pictures, clip, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed (pip install -e .[cluster])")
    with pytest.raises(SystemExit, match=r"no Ray cluster at 127\.0\.0\.1:1 "):
        embed.main(words(pictures, clip, tmp_path / "out", "--ray", "127.0.0.1:1"))


def test_other_settings_and_changed_images_are_refused_with_the_remedy(pictures, clip, whole, tmp_path):
    out, pool = tmp_path / "out", tmp_path / "pool"
    pool.mkdir()
    for path in sorted(pictures.iterdir())[:6]:
        (pool / path.name).write_bytes(path.read_bytes())
    embed.main(words(pool, clip, out))
    with pytest.raises(SystemExit, match=r"other settings: downscale 1 \(now 4\); choose another --out, or delete"):
        embed.main(words(pool, clip, out, "--downscale", "4"))
    write_png(pool / "05.png", photograph(99))
    with pytest.raises(SystemExit, match=r"shard 1 .* have changed since: .* delete .*/shard_00001.parquet to embed"):
        embed.main(words(pool, clip, out))
    (out / "shard_00001.parquet").unlink()
    embed.main(words(pool, clip, out))
    assert Features(out).columns("sha1")["sha1"][5].as_py() == sha1((pool / "05.png").read_bytes()).hexdigest()
    with pytest.raises(SystemExit, match="6 images are named twice"):
        embed.main([str(pool), *words(pool, clip, tmp_path / "twice")])


def test_incomplete_and_damaged_folders_are_refused(whole, tmp_path):
    for name, content in contents(whole).items():
        (tmp_path / name).write_bytes(content)
    assert finished_inputs(tmp_path, 2) is not None
    npy = tmp_path / "shard_00003.npy"
    npy.write_bytes(npy.read_bytes()[:-2])
    with pytest.raises(FeaturesError, match=r"shard_00003\.npy is missing or damaged"):
        Features(tmp_path)
    (tmp_path / "shard_00002.parquet").unlink()
    with pytest.raises(FeaturesError, match=r"shard_00002.parquet is missing: run data_curation.embed again"):
        Features(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"model": "other"}))
    with pytest.raises(FeaturesError, match=r"made with .*, not with other"):
        Features(tmp_path)
    assert Settings(**settings | {"images": 21}).shards == 6
    with pytest.raises(FeaturesError, match="zero or not finite"):
        normalised(np.zeros((2, 4), np.float32))


def test_shards_of_other_folders_are_refused(pictures, clip, whole, tmp_path):
    """A shard of another downscale, or of more images, was taken for this folder's."""
    embed.main(words(pictures, clip, tmp_path / "small", "--downscale", "4"))
    embed.main(words(pictures, clip, tmp_path / "long", "--shard_size", "5"))
    for other, message in (("small", "made with .* downscale 4, .* not with .* downscale 1"), ("long", "4 images")):
        folder = tmp_path / f"with_{other}"
        folder.mkdir()
        for name, content in contents(whole).items():
            (folder / name).write_bytes(content)
        for suffix in ("npy", "parquet"):
            (folder / f"shard_00001.{suffix}").write_bytes((tmp_path / other / f"shard_00001.{suffix}").read_bytes())
        with pytest.raises(FeaturesError, match=message):
            Features(folder)


def test_damaged_and_compressed_shards_are_refused(pictures, clip, tmp_path):
    """Everything behind a damaged header in the middle of a tar was dropped without a word."""
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for path in sorted(pictures.iterdir())[:8]:
            shard.add(path, path.name)
    with tarfile.open(tmp_path / "a.tar") as shard:
        offset = shard.getmembers()[4].offset
    content = bytearray((tmp_path / "a.tar").read_bytes())
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))
    content[offset : offset + 200] = bytes(200)
    (tmp_path / "a.tar").write_bytes(content)
    for name, message in (("a.tar", r"a\.tar .*damaged"), ("a.tar.gz", "compressed")):
        with pytest.raises(SystemExit, match=message):
            embed.main(words(tmp_path / name, clip, tmp_path / "out"))


# Encoders


def test_clip_weights_load_by_path_and_are_known_by_their_hash(clip, tmp_path):
    (tmp_path / "Tiny-8.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "Tiny-8.json")
    model, _, transform = open_clip.create_model_and_transforms("Tiny-8")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    encoder = clip_encoder("Tiny-8", str(tmp_path / "weights.pt"), CPU, False, 2)
    assert encoder.model.startswith("Tiny-8:sha256-")
    assert len(encoder.weights) == 64
    image = photograph(5)
    with torch.inference_mode():
        expected = model.eval().encode_image(transform(Image.fromarray(image))[None]).numpy()
    np.testing.assert_allclose(encoder.embed(encoder.preprocess.apply(image)[None]), expected, atol=1e-5)
    with pytest.raises(EncoderError, match=r"did you mean ViT-L-14"):
        clip_encoder("ViT-L14", "openai", CPU, False, 2)
    with pytest.raises(EncoderError, match="neither a file nor pretrained weights of ViT-B-32"):
        clip_encoder("ViT-B-32", "nowhere.pt", CPU, False, 2)


def test_weights_that_cannot_be_downloaded_name_the_local_file(monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to huggingface.co")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(EncoderError, match=r"openai of ViT-L-14 cannot be downloaded .*--pretrained /path/to/weights"):
        clip_encoder("ViT-L-14", "openai", CPU, False, 2)


@pytest.mark.parametrize(
    ("mode", "interpolation"), [("shortest", "bicubic"), ("shortest", "bilinear"), ("squash", "bicubic")]
)
@pytest.mark.parametrize("size", [(33, 47), (301, 200), (32, 32), (64, 64), (20, 90)])
def test_preprocess_is_open_clips_preprocessing(mode, interpolation, size):
    image = photograph(4, *size)
    preprocess = Preprocess(32, 32, mode, interpolation, (0.0,) * 3, (1.0,) * 3)
    reference = open_clip.image_transform(
        32, False, (0.0,) * 3, (1.0,) * 3, resize_mode=mode, interpolation=interpolation
    )
    expected = (reference(Image.fromarray(image)).numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(preprocess.apply(image), expected)


def test_timm_backbone_gives_the_features_before_its_classifier(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    encoder = backbone_encoder("test_vit", tmp_path / "vit.safetensors", CPU, False, 2)
    data = timm.data.resolve_model_data_config(model)
    image = photograph(6, 200, 170)
    x = timm.data.create_transform(**data, is_training=False)(Image.fromarray(image))[None]
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(x), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder.embed(encoder.preprocess.apply(image)[None]), expected, atol=1e-4)
    with pytest.raises(EncoderError, match="does not fit alexnet"):
        backbone_encoder("alexnet", tmp_path / "vit.safetensors", CPU, False, 2)


def test_alexnet_is_the_mean_of_its_last_convolution(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.alexnet().features.eval()
    save_file({f"features.{key}": value for key, value in reference.state_dict().items()}, tmp_path / "a.safetensors")
    encoder = backbone_encoder("alexnet", tmp_path / "a.safetensors", CPU, False, 2)
    pixels = photograph(6, 224, 224)
    preprocess = torchvision.models.AlexNet_Weights.DEFAULT.transforms()
    normalised_pixels = preprocess(Image.fromarray(cv2.copyMakeBorder(pixels, 16, 16, 16, 16, cv2.BORDER_REFLECT)))
    with torch.inference_mode():
        expected = reference[:12](normalised_pixels[None]).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(encoder.embed(pixels[None]), expected, atol=1e-5)
    assert encoder.dimension == 256


def test_an_embedding_does_not_depend_on_its_neighbours(clip):
    encoder = clip_encoder(f"local-dir:{clip}", "", CPU, False, 4)
    pixels = np.stack([photograph(seed, 32, 32) for seed in range(4)])
    together = encoder.embed(pixels)
    np.testing.assert_array_equal(encoder.embed(pixels[:3]), together[:3])
    np.testing.assert_array_equal(encoder.embed(np.stack([pixels[0], pixels[1] * 0]))[0], together[0])


# Hashes and measures


def test_hashes_of_the_eight_orientations_are_the_hash_of_the_oriented_image():
    image = photograph(11, 90, 70)
    hashes = phash8(image)
    for orientation in range(8):
        turned = phash8(np.ascontiguousarray(orient(image, orientation)))
        assert distance(turned[0], hashes[orientation]) <= 1  # the thumbnail of a turned image is rounded otherwise
    assert distance(hashes[:1], phash8(photograph(12, 90, 70))).min() > 10
    coded = cv2.imdecode(cv2.imencode(".jpg", cv2.resize(image, (140, 180)), [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1)
    assert distance(hashes[0], phash8(coded)[0]) <= 4
    assert distance(np.uint64(0b1011), np.uint64(0b0010)) == 2


def test_blockiness_finds_the_grid_wherever_it_lies():
    stairs = np.repeat(np.repeat(np.arange(0, 240, 16, np.uint8), 8)[None], 120, axis=0)  # 15 flat blocks
    noise = np.random.default_rng(0).integers(100, 156, (128, 128), np.uint8)
    assert blockiness(noise) == pytest.approx(1, abs=0.1)
    assert blockiness(np.full((64, 64), 7, np.uint8)) == 1
    assert blockiness(stairs) == (8 + 1) / 2  # no step off the grid: the most there is; no step the other way: 1
    rgb = photograph(2, 256, 256)
    coded = {q: cv2.imdecode(cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, q])[1], 0) for q in (10, 30, 90)}
    assert blockiness(coded[10]) > blockiness(coded[30]) > blockiness(coded[90])
    assert blockiness(coded[10][3:, 5:]) == pytest.approx(blockiness(coded[10]), rel=0.1)


def test_sharpness_is_the_variance_of_the_laplacian():
    point = np.zeros((5, 5), np.uint8)
    point[2, 2] = 10
    # One -40, four 10, twenty 0: mean 0, mean of squares (1600 + 400) / 25.
    assert sharpness(point) == pytest.approx(80, rel=1e-12)
    image = cv2.cvtColor(photograph(1), cv2.COLOR_RGB2GRAY)
    assert sharpness(cv2.GaussianBlur(image, (0, 0), 2)) < sharpness(image) / 10


def test_unreadable_file_of_an_earlier_try_goes_when_they_can_be_read(clip, tmp_path):
    pool, out = tmp_path / "pool", tmp_path / "out"
    pool.mkdir()
    write_png(pool / "a.png", photograph(1))
    (pool / "b.png").write_bytes(b"")
    embed.main(words(pool, clip, out))
    rows = list(csv.reader(io.StringIO((out / "shard_00000.unreadable.csv").read_text())))
    assert rows == [["name", "reason"], [str(pool / "b.png"), "is empty: replace it or take it out of the folder"]]
    write_png(pool / "b.png", photograph(2))
    (out / "shard_00000.parquet").unlink()
    embed.main(words(pool, clip, out))
    assert len(Features(out)) == 2
    assert not (out / "shard_00000.unreadable.csv").exists()
