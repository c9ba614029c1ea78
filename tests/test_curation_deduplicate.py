"""Near-duplicates: hashes, alignment, candidates, decisions, and the command killed at every step."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from curation import PHOTOGRAPHS, photograph, write_features, write_images

from benchmarks.planting import KINDS, plant
from data_curation import candidates, deduplicate, hashing, judging, verify
from data_curation.candidates import Limits
from data_curation.features import Features
from data_curation.localhash import LocalHashes, local_hashes, mirrored
from data_curation.phash import distance
from data_curation.retrieval import Hashes, Index, agreeing, resembling
from image_data.geometry import orient
from image_data.sources import DataError
from models.team08_HATFreq.image_io import read_rgb
from utils.resize import imresize

OUTPUTS = ("duplicates.csv", "duplicates.json", "duplicates.png", "removed.txt")


def bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.bitwise_count(one[:, None] ^ other[None]).sum(2)


def words(pool: Path, evaluation: Path, out: Path) -> list[str]:
    return ["--pool", str(pool), "--evaluation", str(evaluation), "--out", str(out), "--workers", "1"]


def run(pool: Path, evaluation: Path, out: Path, *more: str) -> list[dict[str, str]]:
    """The command in this process: the rows of its table."""
    args = deduplicate.arguments([*words(pool, evaluation, out), *more])
    with ThreadPoolExecutor(1) as workers:
        stage = deduplicate.Deduplication(args, workers)
        deduplicate.write_outputs(stage, stage.run())
    with (out / "duplicates.csv").open() as file:
        return list(csv.DictReader(file))


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def stems(names: list[str]) -> list[str]:
    return [Path(name).stem for name in names]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, Path]:
    """A pool and evaluation images; the embeddings are random and say nothing."""
    folder = tmp_path_factory.mktemp("mixed")
    astronaut, coffee, cat, rocket = (photograph(name) for name in PHOTOGRAPHS)
    pool = {
        "a_copy": astronaut,
        "b_crop": plant(coffee, "cropped, flipped, resized, recompressed", 1),
        "c_rocket": rocket,
        "d_cat_half": plant(np.ascontiguousarray(cat[::2, ::2]), "flipped", 1),
        "e_cat": cat,
        "f_rocket": rocket,
        "g_moon": photograph("moon"),
    }
    paths = write_images(folder / "images", pool)
    evaluation = write_images(folder / "evaluation", {"astronaut": astronaut, "coffee": coffee})
    return write_features(folder / "pool", paths), write_features(folder / "test", evaluation)


@pytest.fixture(scope="module")
def undisturbed(mixed, tmp_path_factory) -> Path:
    """The outputs of a run on `mixed`."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(*mixed, out)
    return out


def test_mirrored_codes_are_those_of_the_mirrored_image():
    image = photograph("coffee")
    ours = local_hashes(image).codes
    theirs = local_hashes(np.ascontiguousarray(image[:, ::-1])).codes
    assert np.median(bits(mirrored(ours), theirs).min(1)) <= 4
    assert np.median(bits(ours, theirs).min(1)) > 15
    assert (mirrored(mirrored(ours)) == ours).all()


def test_bits_of_codes_are_balanced():
    codes = np.concatenate([local_hashes(photograph(name)).codes for name in PHOTOGRAPHS])
    set_bits = np.unpackbits(codes.astype(">u8").view(np.uint8).reshape(-1, 16), axis=1).mean(0)
    assert set_bits.min() > 0.25 and set_bits.max() < 0.75


def test_an_image_without_keypoints_has_no_codes_but_a_thumbnail():
    hashes = local_hashes(np.full((40, 50, 3), 7, np.uint8))
    assert hashes.codes.shape == (0, 2) and (hashes.thumbnail == 7).all()
    assert agreeing(hashes, hashes) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_planted_duplicates_agree_and_are_verified(kind, name):
    image = photograph(name)
    planted = plant(image, kind, 3)
    assert agreeing(local_hashes(planted), local_hashes(image)) >= 20
    verdict = verify.verify(verify.view(planted, 4), verify.view(image, 4))
    assert verdict.duplicate and verdict.psnr > 30 and verdict.detail > 0.9


@pytest.mark.parametrize("orientation", range(8))
def test_every_orientation_is_found_without_keypoints(orientation):
    image = photograph("chelsea")
    ours, theirs = (verify.view(np.ascontiguousarray(one), 4) for one in (orient(image, orientation), image))
    bare = verify.View(ours.grid, ours.points[:0], ours.descriptors[:0])
    verdict = verify.verify(bare, theirs)
    assert verdict.duplicate and verdict.inliers == 0 and verdict.psnr > 40


def test_the_map_of_a_crop_is_its_place():
    image = photograph("astronaut")
    verdict = verify.verify(verify.view(image[80:400, 40:440], 4), verify.view(image, 4))
    assert verdict.transformation == "x1.00, shift +10.0 +20.0" and verdict.common == pytest.approx(1, abs=0.02)
    shrunk = verify.verify(verify.view(np.rot90(image)[::2, ::2].copy(), 4), verify.view(image, 4))
    assert shrunk.transformation.startswith("turned by 90, x2.00")


def test_flips_are_described_as_what_undoes_them():
    image = photograph("coffee")
    for flipped, words in ((image[:, ::-1], "mirrored, x1.00"), (image[::-1], "mirrored, turned by 180, x1.00")):
        verdict = verify.verify(verify.view(flipped.copy(), 4), verify.view(image, 4))
        assert verdict.transformation.startswith(words)


def test_psnr_is_of_what_gain_and_offset_leave():
    image = photograph("coffee").astype(np.float32)
    ours = image.reshape(-1, 3)
    assert verify._fitted_psnr(0.8 * ours + [9, -5, 3], ours) > 80
    noise = np.random.default_rng(0).normal(0, 8, ours.shape).astype(np.float32)
    assert verify._fitted_psnr(ours, ours + noise) == pytest.approx(20 * np.log10(255 / 8), abs=0.05)
    assert verify._fitted_psnr(-ours, ours) == 0 and verify._fitted_psnr(ours, 3 * ours) == 0


def test_parts_of_a_photograph_that_do_not_overlap_are_no_duplicates():
    for name in PHOTOGRAPHS:
        image = photograph(name)
        h, w = image.shape[0] // 2, image.shape[1] // 2
        parts = [verify.view(image[y : y + h, x : x + w].copy(), 4) for y in (0, h) for x in (0, w)]
        for k, one in enumerate(parts):
            for other in parts[k + 1 :]:
                assert not verify.verify(one, other).duplicate


def test_a_part_of_an_evaluation_image_is_a_leak_but_no_duplicate_within_the_pool():
    image = photograph("astronaut")
    ours, theirs = verify.view(image[:, :300].copy(), 4), verify.view(image[:, 200:].copy(), 4)
    within, leak = verify.verify(ours, theirs), verify.verify(ours, theirs, verify.MIN_LEAK)
    assert within.common == pytest.approx(100 / 280, abs=0.02) and within.psnr > 40
    assert not within.duplicate and leak.duplicate


def test_plain_images_are_no_duplicates_however_well_they_fit():
    y, x = np.mgrid[:480, :480] / 480
    rng = np.random.default_rng(0)
    skies = [np.stack([90 + 60 * y + k * x * 9, 120 + 50 * y, 180 + 40 * y], 2) for k in (0, 1)]
    noisy = [verify.view(np.clip(sky + rng.normal(0, 2, sky.shape), 0, 255).astype(np.uint8), 4) for sky in skies]
    verdict = verify.verify(*noisy)
    assert verdict.psnr > 35 and verdict.detail < 0.3 and not verdict.duplicate


def test_a_pool_is_compared_with_lr_images_on_their_grid():
    for name in PHOTOGRAPHS:
        image = photograph(name)
        image = image[: image.shape[0] // 4 * 4]
        lr = imresize(image, 0.25)
        planted = plant(image, "recompressed", 2)
        assert verify.verify(verify.view(planted, 4, 4), verify.view(lr, 1)).duplicate
        other = verify.view(photograph("moon"), 4, 4)
        assert not verify.verify(other, verify.view(lr, 1)).duplicate


def test_an_index_finds_shared_hashes_that_moved_alike_and_each_pair_once():
    rng = np.random.default_rng(0)

    def image(codes: np.ndarray, turn: float = 0, reflect: bool = False) -> LocalHashes:
        angles = (180 - turn if reflect else turn) + np.zeros(len(codes))
        places = np.stack([0 * angles, 0 * angles, 0 * angles - 5, angles], axis=1)
        return LocalHashes(mirrored(codes) if reflect else codes, places.astype(np.float16), np.empty(0, np.uint8))

    images = [image(rng.integers(0, 2**64, (100, 2), dtype=np.uint64)) for _ in range(3)]
    first, second, third = (one.codes for one in images)
    images.append(image(first[:4] ^ np.uint64(1 << 9), 90))  # a bit off in both words, turned alike
    images.append(image(second[:50], 0, reflect=True))
    images.append(image(third[:3]))  # too few
    scattered = image(third[:40])
    scattered.places[:, 3] = np.repeat(np.arange(8) * 45, 5)[:40]
    scattered.places[:, 2] = -5 + np.arange(40) % 2 * 2  # 16 motions, no more than three keypoints each
    images.append(scattered)
    hashes = Hashes.of(images)
    assert Index(hashes).sharing(hashes, 4, within=True).tolist() == [[3, 0, 4], [4, 1, 50]]
    queries = Hashes.of([image(first[:0]), image(second)])
    assert Index(hashes).sharing(queries, 4).tolist() == [[1, 1, 100], [1, 4, 50]]


def test_near_hashes_are_all_that_a_comparison_of_all_finds():
    rng = np.random.default_rng(1)
    upright = rng.integers(0, 2**64, 300, dtype=np.uint64)
    oriented = rng.integers(0, 2**64, (300, 8), dtype=np.uint64)
    for row in range(300):  # the hash of another image, with 0 to 14 bits turned over
        flips = rng.permutation(64)[: row % 15]
        oriented[row, row % 8] = upright[-row] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))  # fmt: skip # noqa: E501
    for limit in (0, 8, candidates.MAX_PHASH):
        near = distance(oriented[:, :, None], upright[None, None]).min(1) <= limit
        assert candidates._near_hashes(upright, oriented, limit) == [tuple(pair) for pair in np.argwhere(near).tolist()]


def test_near_embeddings_are_the_nearest_above_the_limit(tmp_path):
    paths = write_images(tmp_path / "i", {str(k): np.full((4, 4, 3), k, np.uint8) for k in range(9)})
    vectors = np.eye(9, 16)
    vectors[3:7, 0] = (3, 2, 5, 4)  # cosines with row 0: .95, .89, .98, .97; of rows 5 and 6: .95
    pool = Features(write_features(tmp_path / "pool", paths, vectors))
    queries = Features(write_features(tmp_path / "queries", paths[:1], vectors[:1]))
    assert candidates._near_embeddings(pool, queries, Limits(cosine=0.94, nearest=3)) == [(0, 0), (5, 0), (6, 0)]
    assert candidates._near_embeddings(pool, None, Limits(cosine=0.975, nearest=1)) == [(5, 0), (0, 5)]


def test_thumbnails_resemble_in_any_orientation():
    image = photograph("rocket")
    assert resembling(local_hashes(np.rot90(image).copy()), local_hashes(image))
    assert not resembling(local_hashes(photograph("coffee")), local_hashes(image))


def test_the_command_removes_what_it_must_and_says_why(mixed, undisturbed):
    with (undisturbed / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(Path(r["pool"]).stem, Path(r["partner"]).stem): r for r in rows if r["decision"] != deduplicate.NO}
    assert sorted(found) == [("a_copy", "astronaut"), ("b_crop", "coffee"), ("d_cat_half", "e_cat"),
                             ("f_rocket", "c_rocket")]  # fmt: skip
    assert {row["decision"] for row in found.values()} == {"removed"}
    copy, crop, half, twin = (found[key] for key in sorted(found))
    assert copy["evidence"] == "sha1+phash+local" and copy["sha1_equal"] == "1" and copy["phash_distance"] == "0"
    assert float(copy["psnr_db"]) > 80 and copy["transformation"] == "x1.00, shift +0.0 +0.0"
    assert crop["evidence"] == "local" and crop["side"] == "evaluation" and float(crop["psnr_db"]) > 28
    assert half["side"] == "pool" and half["transformation"].startswith("mirrored") and "x2.0" in half["transformation"]
    assert twin["sha1_equal"] == "1"
    assert stems((undisturbed / "removed.txt").read_text().split()) == ["a_copy", "b_crop", "d_cat_half", "f_rocket"]
    counts = json.loads((undisturbed / "duplicates.json").read_text())["counts"]
    assert counts["readable"] == 7 and counts["evaluation"] == 2
    assert counts["removed_for_evaluation"] == 2 and counts["removed_within_pool"] == 2


def test_killed_at_any_write_and_started_again_it_ends_with_the_same_bytes(mixed, undisturbed, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    writes = 0

    def dying(write):
        def write_or_die(path, content):
            nonlocal writes
            writes += 1
            if writes == dies_at:
                path.with_name(f".partial-{path.name}").write_bytes(b"half")
                raise Killed
            write(path, content)

        return write_or_die

    for module in (hashing, judging, deduplicate):
        monkeypatch.setattr(module, "write_bytes", dying(module.write_bytes))
    finished = False
    dies_at = 0
    while not finished:
        dies_at, writes = dies_at + 1, 0
        try:
            run(*mixed, tmp_path)
            finished = True
        except Killed:
            continue
    assert dies_at > 4  # each run got one write further than the one before: what was done was kept
    assert outputs(tmp_path) == outputs(undisturbed)


def test_killed_for_real_and_with_two_processes_the_bytes_are_the_same(mixed, undisturbed, tmp_path):
    command = [sys.executable, "-m", "data_curation.deduplicate", *words(*mixed, tmp_path)]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "work" / "local_pool_00000.npz").exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "removed.txt").exists()
    deduplicate.main([*words(*mixed, tmp_path)[:-1], "2"])
    assert outputs(tmp_path) == outputs(undisturbed)


def test_pool_duplicates_are_kept_on_demand(mixed, tmp_path):
    rows = run(*mixed, tmp_path, "--keep_pool_duplicates")
    assert {row["side"] for row in rows} == {"evaluation"}
    assert stems((tmp_path / "removed.txt").read_text().split()) == ["a_copy", "b_crop"]


def test_decisions_keep_what_only_resembles_an_image_that_goes(mixed):
    """b is a duplicate of a, c of b alone: b goes, c stays."""
    pool = Features(mixed[0])
    rank = np.argsort(candidates.by_size(pool))  # rows, the largest first
    yes = verify.Verdict(True, 40.0, 1.0, 1.0, 9, "")
    a, b, c = (int(row) for row in rank[:3])
    findings = [
        deduplicate.Finding(one, other, pool, "pool", candidates.Candidate(["local"]), yes)
        for one, other in ((c, b), (b, a))
    ]
    deduplicate.decide(findings, pool)
    assert [one.decision for one in findings] == [deduplicate.LARGER, deduplicate.REMOVED]


def test_a_changed_image_and_another_encoder_are_refused(mixed, tmp_path):
    paths = write_images(tmp_path / "images", {"one": photograph("moon")})
    pool = write_features(tmp_path / "pool", paths)
    write_images(tmp_path / "images", {"one": photograph("coffee")})
    with pytest.raises(DataError, match=r"one\.png has changed since it was embedded"):
        run(pool, mixed[1], tmp_path / "out")
    settings = (pool / "features.json").read_text()
    (pool / "features.json").write_text(settings.replace("hand:made", "other"))
    with pytest.raises(SystemExit, match=r"data_curation\.deduplicate: .*other"):
        deduplicate.main(words(pool, mixed[1], tmp_path / "out"))
    assert not (tmp_path / "out" / "removed.txt").exists()


def test_an_evaluation_image_that_was_unreadable_is_refused(mixed, tmp_path):
    test = write_features(tmp_path / "test", write_images(tmp_path / "images", {"one": photograph("moon")}))
    (test / "shard_00000.unreadable.csv").write_text("name,reason\n/e/broken.png,it is empty\n")
    with pytest.raises(DataError, match=r"/e/broken\.png could not be read .*it is empty"):
        run(mixed[0], test, tmp_path / "out")


def test_damaged_work_is_done_again(mixed, undisturbed, tmp_path):
    run(*mixed, tmp_path)
    for name in ("local_pool_00000.npz", "verdicts_pool_00000.json"):
        (tmp_path / "work" / name).write_bytes(b"{damaged")
    run(*mixed, tmp_path)
    assert outputs(tmp_path) == outputs(undisturbed)


def test_the_known_overlap_is_found(shared, tmp_path):
    """The BSDS photograph 302003 is Set5's woman."""
    woman = shared / "data" / "bench" / "Set5" / "HR" / "img_005.png"
    lr = woman.parents[1] / "LRbicx4" / "img_005x4.png"
    others = sorted((shared / "data" / "train" / "bsds-sun").iterdir())[:5]
    planted = write_images(tmp_path / "images", {"302003": plant(read_rgb(woman), "recompressed", 1)})
    for name, evaluation, downscale in (("hr", woman, 1), ("lr", lr, 4)):
        pool = write_features(tmp_path / f"pool_{name}", [*others, *planted], None, downscale)
        test = write_features(tmp_path / f"test_{name}", [evaluation])
        run(pool, test, tmp_path / name)
        assert (tmp_path / name / "removed.txt").read_text() == f"{planted[0]}\n"
