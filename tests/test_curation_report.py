"""The report: its counts against its inputs, its drawings, the same bytes, and what it refuses."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from curation import PHOTOGRAPHS, photograph, write_features, write_images

from benchmarks.planting import plant
from data_curation import deduplicate, drawing, page, report, select
from data_curation.features import Features
from image_data.sources import DataError
from models.team08_HATFreq.image_io import read_rgb

PICTURES = ("chosen.png", "borderline.png", "rejected.png", "gates.png", "neighbours.png", "duplicates.png")


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    """Features, duplicates and a selection: of 12 images one is an evaluation image, one a twin, one too small."""
    folder = tmp_path_factory.mktemp("stages")
    photographs = [photograph(name) for name in PHOTOGRAPHS]
    crops = {
        f"{k}_{side}": image[:, side * 240 :][:280, :200] for k, image in enumerate(photographs) for side in (0, 1)
    }
    pool = {**crops, "leak": plant(photograph("moon"), "flipped", 1), "moss": photograph("grass"),
            "tiny": photograph("gravel")[:40, :60], "twin": crops["1_0"]}  # fmt: skip
    paths = write_images(folder / "images", pool)
    evaluation = write_images(folder / "evaluation", {"coins": photograph("coins"), "moon": photograph("moon")})
    vectors = np.eye(12, 12) + 0.1 * np.arange(12)[:, None] * np.eye(1, 12)
    write_features(folder / "pool", paths, vectors)
    write_features(folder / "queries", evaluation, np.eye(2, 12) + 0.01)
    features, queries = str(folder / "pool"), str(folder / "queries")
    args = deduplicate.arguments(["--pool", features, "--evaluation", queries, "--out", str(folder / "duplicates")])
    with ThreadPoolExecutor(1) as workers:
        stage = deduplicate.Deduplication(args, workers)
        deduplicate.write_outputs(stage, stage.run())
    select.main(["--pool", features, "--queries", queries, "--top_k", "4", "--min_side", "64",
                 "--exclude", str(folder / "duplicates" / "removed.txt"), "--out", str(folder / "ldcc")])  # fmt: skip
    return folder


def words(stages: Path, out: Path) -> list[str]:
    return ["--selection", str(stages / "ldcc"), "--duplicates", str(stages / "duplicates"), "--out", str(out)]


@pytest.fixture(scope="module")
def made(stages, tmp_path_factory) -> Path:
    """The report of `stages`."""
    out = tmp_path_factory.mktemp("report")
    report.main([*words(stages, out), "--examples", "6"])
    return out


def test_the_flow_has_the_counts_of_the_inputs(made):
    text = (made / "index.html").read_text()
    assert re.findall(r'class="count">([\d,]+)<', text) == ["12", "12", "11", "10", "9", "4"]
    losses = re.findall(r'class="loss">([^<]+)<', text)
    assert losses == ["none lost", "1 near-duplicates of evaluation images", "1 near-duplicates of larger images",
                      "1 side below 64", "5 less similar"]  # fmt: skip
    assert re.findall(r"<b>([\d,]+)</b><span>([^<]+)<", text) == [
        ("12", "images in the pool"), ("2", "queries"), ("2", "duplicates removed"), ("4", "chosen")
    ]  # fmt: skip


def test_the_page_shows_every_picture_and_needs_no_network(made):
    text = (made / "index.html").read_text()
    assert tuple(re.findall(r'<img src="([^"]+)"', text)) == PICTURES
    assert all(read_rgb(made / name).std() > 10 for name in PICTURES)
    assert "http" not in text and "<script" not in text
    assert "leak.png" in text and "twin.png" in text and "mirrored" in text


def test_the_map_has_every_image_once(made):
    text = (made / "index.html").read_text()
    names = re.findall(r"<circle [^>]+><title>([^<]+)</title>", text)
    assert len(names) == 14 and len(set(names)) == 14
    assert "pool: 8 of 8 drawn" in text and "chosen: 4 of 4 drawn" in text and "queries: 2 of 2 drawn" in text


def test_sheets_show_images_in_the_order_of_their_rank(stages, made):
    first = read_rgb(made / "chosen.png")[8 : 8 + report.BOX, 8 : 8 + report.BOX]
    inputs = report.Inputs(stages / "ldcc", stages / "duplicates")
    image = read_rgb(inputs.chosen[0].name)
    h, w = (round(side * report.BOX / max(image.shape)) for side in image.shape[:2])
    top, left = (report.BOX - h) // 2, (report.BOX - w) // 2
    shrunk = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    assert (first[top : top + h, left : left + w] == shrunk).all()


def test_the_same_inputs_give_the_same_bytes(stages, made, tmp_path):
    (tmp_path / "gates.png").write_bytes(b"of a former run")
    report.main([*words(stages, tmp_path), "--examples", "6"])
    for name in ("index.html", *PICTURES):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_stages_of_different_runs_are_refused(stages, tmp_path):
    for name in ("data_ldcc.json", "data_ldcc.csv"):
        (tmp_path / name).write_bytes((stages / "ldcc" / name).read_bytes())
    summary = json.loads((tmp_path / "data_ldcc.json").read_text())
    summary["counts"]["left_out"]["duplicate"] = 1
    (tmp_path / "data_ldcc.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match=r"duplicates left out: 1 for data_ldcc\.json, 2 for the other files"):
        report.Inputs(tmp_path, stages / "duplicates")


def test_what_is_missing_is_named(stages, tmp_path):
    with pytest.raises(SystemExit, match=r"data_ldcc\.json cannot be read .*: run data_curation\.select"):
        report.main(["--selection", str(tmp_path), "--duplicates", str(tmp_path), "--out", str(tmp_path / "out")])
    hidden = stages / "images" / "moss.png"
    content = hidden.read_bytes()
    hidden.unlink()
    try:
        with pytest.raises(SystemExit, match=r"moss\.png cannot be read"):
            report.main([*words(stages, tmp_path / "out"), "--examples", "100"])
    finally:
        hidden.write_bytes(content)
    assert not (tmp_path / "out" / "index.html").exists()


def test_nearest_and_axes_are_those_of_plain_numpy(stages):
    pool = Features(stages / "pool")
    vectors = pool.vectors(range(len(pool))).astype(np.float64)
    queries = Features(stages / "queries").vectors([0, 1])
    for query, rows in zip(queries, report.nearest(pool, queries, 3), strict=True):
        cosines = vectors @ query.astype(np.float64)
        assert [row for row, _ in rows] == np.argsort(-cosines, kind="stable")[:3].tolist()
        assert [cosine for _, cosine in rows] == pytest.approx(cosines[[row for row, _ in rows]])
    mean, axes = report.principal_axes(pool)
    _, values, expected = np.linalg.svd(vectors - vectors.mean(0))
    assert np.allclose(mean, vectors.mean(0)) and values[0] > values[1] * 1.001
    assert abs(axes[:, 0] @ expected[0]) == pytest.approx(1, abs=1e-6)
    assert ((vectors - mean) @ axes).var(0) * len(pool) == pytest.approx(values[:2] ** 2)


def test_evenly_takes_the_first_and_the_last():
    assert report.evenly(list(range(10)), 4) == [0, 3, 6, 9] and report.evenly([1, 2], 5) == [1, 2]


def test_the_histogram_marks_the_cut():
    edges = [round(k / 10, 1) for k in range(-10, 11)]
    eligible, chosen = [0] * 20, [0] * 20
    eligible[12], eligible[17], chosen[17] = 30, 10, 10
    text = drawing.histogram(edges, eligible, chosen, 0.75)
    assert "0.20 to 0.30: 0 of 30 chosen" in text and "0.70 to 0.80: 10 of 10 chosen" in text
    heights = [float(tall) for tall in re.findall(r'<rect [^>]*height="([\d.]+)"', text)]
    assert heights == pytest.approx([260, 260 / 3, 260 / 3], abs=0.1)
    assert "lowest chosen: 0.750" in text


def test_names_are_escaped():
    assert "&lt;b&gt;" in page.table(("a",), [("<b>",)]) and "&amp;" in drawing.flow([("a&b", 3)], [])
