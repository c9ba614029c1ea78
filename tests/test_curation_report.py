"""The report: its counts against its inputs, its drawings, the same bytes, and what it refuses."""

import csv
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha1
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from curation import BLANK, PHOTOGRAPHS, photograph, write_features, write_images, write_records

from benchmarks.planted_copies import plant
from data_curation import report, select
from data_curation.dedup import run as dedup_run
from data_curation.features import Features, normalised
from data_curation.report.gallery import SIDE, write_gallery
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


def gallery_data(folder: Path) -> dict:
    return json.loads((folder / "gallery.js").read_text().removeprefix("const GALLERY = ").removesuffix(";\n"))


def test_the_gallery_holds_every_chosen_image_with_its_query(stages, made, tmp_path):
    data = gallery_data(made)
    with (stages / "ldcc" / "data_ldcc.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["chosen"] == "1"]
    result = [(name, f"{score:.6f}", data["queries"][k][0], str(rank)) for name, score, k, rank, _ in data["images"]]
    assert result == [
        (row["name"], row["score"], row["nearest_query"], row["rank"]) for row in rows]  # fmt: skip
    files = {path.stem: path for path in (made / "thumbnails").iterdir()}
    assert set(files) == {sha1(Path(name).read_bytes()).hexdigest() for name, *_ in [*data["images"], *data["queries"]]}
    for name, *_, digest in data["images"]:
        shown, image = read_rgb(files[digest]), read_rgb(name)
        assert max(shown.shape) == SIDE and files[digest].stat().st_size < 8000
        small = cv2.resize(image, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert abs(shown.astype(int) - small).mean() < 12
    out = tmp_path / "out"
    (out / "thumbnails").mkdir(parents=True)
    (out / "thumbnails" / f"{'0' * 40}.jpg").write_bytes(b"of a former choice")
    kept = files[data["images"][0][-1]]
    (out / "thumbnails" / kept.name).write_bytes(b"made before")
    report.main([*words(stages, out), "--examples", "6"])
    assert {path.stem for path in (out / "thumbnails").iterdir()} == set(files)
    assert (out / "thumbnails" / kept.name).read_bytes() == b"made before"
    assert (out / "gallery.js").read_bytes() == (made / "gallery.js").read_bytes()


@pytest.fixture(scope="module")
def browser():
    """Chromium, if it is installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A gallery of 300 images of three queries; the third has none."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    images = [cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (160, 120)) for _ in range(300)]
    paths = write_images(folder / "i", {f"<b>{number:03}": image for number, image in enumerate(images)})
    queries = write_images(folder / "q", {f"query{number}": 255 - images[number] for number in range(3)})
    names = {"nearest_query": [str(queries[number % 2]) for number in range(300)], "quota_of": [None] * 300}
    chosen = pa.table({"name": [str(path) for path in paths], "score": np.linspace(0.9, 0.3, 300),
                       "rank": range(1, 301), **names})  # fmt: skip
    pools = [Features(write_features(folder / name, part)) for name, part in (("pool", paths), ("queries", queries))]
    write_gallery(folder / "report", chosen, *pools, workers=2)
    return folder / "report"


@pytest.mark.slow
def test_the_gallery_works_in_a_browser(many, browser):
    page = browser.new_page(viewport={"width": 500, "height": 600})
    page.set_default_timeout(120_000)
    faults, asked = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((many / "gallery.html").as_uri())
    captions = page.locator("figcaption")

    def first() -> str:
        return captions.first.inner_text().split("\n")[0]

    def wait(words: str) -> None:
        page.wait_for_function("words => document.body.innerText.includes(words)", arg=words)

    assert captions.count() == 120 and page.locator("#count").inner_text() == "300 images"
    assert first() == "<b>000.png" and "rank 1\nscore 0.900\nof query0.png" in captions.first.inner_text()
    page.wait_for_function("document.querySelector('figure img').naturalWidth === 96")
    assert len([url for url in asked if url.endswith(".jpg")]) < 120  # the others when they scroll into view
    for words in ("page 2 of 3", "page 3 of 3"):
        page.click("#next")
        wait(words)
    assert captions.count() == 60 and page.locator("#next").is_disabled()
    page.select_option("#sort", "least")
    wait("page 1 of 3")
    assert first() == "<b>299.png"
    page.fill("#search", "b>29")
    wait("10 images")
    assert first() == "<b>299.png" and captions.count() == 10
    page.locator("figure a").first.click()  # of the image's query
    wait("query, 150 images")
    assert first() == "query1.png" and page.locator("#count").inner_text() == "150 images"
    page.go_back()
    wait("10 images")
    page.click("text=Queries")
    wait("3 queries")
    assert "query, 0 images" in captions.nth(2).inner_text()
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not faults and all(url.startswith("file:") for url in asked)


@pytest.mark.parametrize(
    "count", [pytest.param(4_000, marks=pytest.mark.slow), pytest.param(40_000, marks=pytest.mark.artefacts)]
)
def test_a_gallery_takes_at_most_100_mb_for_forty_thousand_images(tmp_path, count):
    """What it measures is printed (pytest -s)."""
    photographs = [photograph(name)[:312, :320] for name in PHOTOGRAPHS]
    places = np.random.default_rng(0).choice(4 * 192 * 160, count, replace=False)
    crops = zip(*np.unravel_index(places, (4, 192, 160)), strict=True)
    images = {f"{n:05}": photographs[k][top : top + 120, left : left + 160] for n, (k, top, left) in enumerate(crops)}
    paths = write_images(tmp_path / "i", images)
    records = [replace(BLANK, name=str(path), sha1=sha1(path.read_bytes()).hexdigest()) for path in paths]
    vectors = normalised(np.random.default_rng(0).standard_normal((count, 8), np.float32))
    pool = Features(write_records(tmp_path / "pool", vectors, records, 2000))
    names = {"nearest_query": [str(paths[0])] * count, "quota_of": [None] * count}
    chosen = pa.table({"name": [str(path) for path in paths], "score": np.linspace(0.9, 0.3, count),
                       "rank": range(1, count + 1), **names})  # fmt: skip
    clock, processor = time.perf_counter(), time.process_time()
    write_gallery(tmp_path / "report", chosen, pool, pool, workers=2)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    files = [path for path in (tmp_path / "report").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{count} images: {clock:.0f} s, {processor:.0f} s of processor time, {size / 1e6:.0f} MB")
    assert len(files) > 0.99 * count and size < 2500 * count


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
        with pytest.raises(SystemExit, match=r"moss\.png"):
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
    result = histogram(scores)
    bars = {bar["title"]: (bar["eligible"], bar["chosen"]) for bar in result["bars"] if bar["eligible"]}
    assert bars == {"0.20 to 0.30: 0 of 30 chosen": (260, 0),
                    "0.70 to 0.80: 10 of 10 chosen": (pytest.approx(260 / 3), pytest.approx(260 / 3))}  # fmt: skip
    assert result["lowest"] == "0.750" and result["cut"] == pytest.approx((0.75 - 0) / (1 - 0))


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
