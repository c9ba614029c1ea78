"""The report: its counts against its inputs, its drawings, the same bytes, and what it refuses."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from curation import PHOTOGRAPHS, photograph, write_features, write_images

from benchmarks.curation import plant
from data_curation import report, select
from data_curation.dedup import run as dedup_run
from data_curation.features import Features
from data_curation.report.run import BOX, Inputs, evenly, histogram, principal_axes
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
    args = dedup_run.arguments(["--pool", features, "--evaluation", queries, "--out", str(folder / "duplicates")])
    with ThreadPoolExecutor(1) as workers:
        stage = dedup_run.Deduplication(args, workers)
        dedup_run.write_outputs(stage, stage.run())
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
    assert re.findall(r"<b>([\d,/ ]+)</b><span>([^<]+)<", text) == [
        ("12", "images in the pool"), ("2", "queries"), ("2", "duplicates removed"), ("4", "chosen"),
        ("2", "queries with images"), ("1 / 2 / 3", "images a query: least, median, most"),
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
    first = read_rgb(made / "chosen.png")[8 : 8 + BOX, 8 : 8 + BOX]
    inputs = Inputs(stages / "ldcc", stages / "duplicates")
    image = read_rgb(inputs.chosen["name"][0].as_py())
    h, w = (round(side * BOX / max(image.shape)) for side in image.shape[:2])
    top, left = (BOX - h) // 2, (BOX - w) // 2
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
        Inputs(tmp_path, stages / "duplicates")


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


def test_axes_are_those_of_plain_numpy(stages):
    pool = Features(stages / "pool")
    vectors = pool.vectors(range(len(pool))).astype(np.float64)
    mean, axes = principal_axes(pool)
    _, values, expected = np.linalg.svd(vectors - vectors.mean(0))
    assert np.allclose(mean, vectors.mean(0)) and values[0] > values[1] * 1.001
    assert abs(axes[:, 0] @ expected[0]) == pytest.approx(1, abs=1e-6)
    assert ((vectors - mean) @ axes).var(0) * len(pool) == pytest.approx(values[:2] ** 2)


def test_evenly_takes_the_first_and_the_last():
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(2, 5).tolist() == [0, 1] and evenly(0, 3).tolist() == []


def test_the_histogram_marks_the_cut():
    scores = {"histogram_edges": [round(k / 10, 1) for k in range(-10, 11)], "histogram_eligible": [0] * 20,
              "histogram_chosen": [0] * 20, "lowest_chosen": 0.75}  # fmt: skip
    scores["histogram_eligible"][12], scores["histogram_eligible"][17], scores["histogram_chosen"][17] = 30, 10, 10
    found = histogram(scores)
    bars = {bar["title"]: (bar["eligible"], bar["chosen"]) for bar in found["bars"] if bar["eligible"]}
    assert bars == {"0.20 to 0.30: 0 of 30 chosen": (260, 0),
                    "0.70 to 0.80: 10 of 10 chosen": (pytest.approx(260 / 3), pytest.approx(260 / 3))}  # fmt: skip
    assert found["lowest"] == "0.750" and found["cut"] == pytest.approx((0.75 - 0) / (1 - 0))


def test_names_are_escaped(stages, tmp_path):
    for folder in ("ldcc", "duplicates"):
        (tmp_path / folder).mkdir()
        for path in (stages / folder).iterdir():
            if path.is_file():
                (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    table = tmp_path / "duplicates" / "duplicates.csv"
    table.write_text(table.read_text().replace("phash", "<script>&"))
    report.main(["--selection", str(tmp_path / "ldcc"), "--duplicates", str(tmp_path / "duplicates"),
                 "--out", str(tmp_path / "out")])  # fmt: skip
    text = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;script&gt;&amp;" in text and "<script" not in text
