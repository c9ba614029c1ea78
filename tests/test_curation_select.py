"""Selection: scores by hand, exactness, ties, gates, and what is written."""

import csv
import json
import os
from collections import Counter
from hashlib import sha1
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from curation import MODEL, write_names

from data_curation import embed, select
from data_curation.choice import deal
from data_curation.coverage import COVERAGE, check_unchanged, write_coverage
from data_curation.features import SETTINGS, Features, FeaturesError, normalised
from data_curation.joined import open_features
from data_curation.neighbours import by_name, nearest
from data_curation.select import score_pool
from image_data.mixture import open_sources
from image_data.sources import DataError, expand
from models.team08_HATFreq.image_io import write_png
from training.training_set import open_training_set

# Eighths have few bits: the scores below are exact.
QUERIES = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], np.float16)
POOL = np.array([[0.5, 0.25, 0, 0], [0, 0.875, 0.125, 0], [0.25, 0.25, 0.25, 0], [0, 0, -0.5, 0.5], [0.5, 0, 0.5, 0]],
                np.float16)  # fmt: skip


@pytest.fixture(autouse=True)
def images_are_names(monkeypatch):
    """The images of most tests here are names alone."""
    monkeypatch.setattr(select, "check_unchanged", lambda features: None)


@pytest.fixture
def made(tmp_path) -> list[str]:
    """The words of a command on the five images a to e and three queries."""
    write_names(tmp_path / "pool", POOL, [f"/d/{letter}.png" for letter in "abcde"], shard=2)
    write_names(tmp_path / "queries", QUERIES, ["/q/1.png", "/q/2.png", "/q/3.png"])
    return ["--pool", str(tmp_path / "pool"), "--queries", str(tmp_path / "queries"), "--out", str(tmp_path / "out")]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "data_ldcc.csv").open() as file:
        return list(csv.DictReader(file))


def listed(folder: Path) -> list[str]:
    return [line for line in (folder / "data_ldcc.txt").read_text().splitlines() if not line.startswith("#")]


def unit(count: int, dimension: int, seed: int) -> np.ndarray:
    return normalised(np.random.default_rng(seed).standard_normal((count, dimension), np.float32))


# Scores


def test_scores_by_hand():
    scores, which = score_pool([POOL[:2], POOL[2:]], 5, QUERIES)
    assert scores.tolist() == [0.5, 0.875, 0.25, 0, 0.5]
    assert which.tolist() == [0, 1, 0, 0, 0]  # the first of equals


def test_blocks_equal_a_brute_force_to_the_last_bit():
    pool, queries = unit(5000, 64, 0), unit(30, 64, 1)
    products = np.array([[sum(float(x) * float(y) for x, y in zip(row, query, strict=True)) for query in queries]
                         for row in pool[:50]])  # fmt: skip
    scores, which = score_pool([pool[:1777], pool[1777:1777], pool[1777:]], 5000, queries)
    assert scores[:50].tolist() == products.max(axis=1).tolist()
    assert which[:50].tolist() == products.argmax(axis=1).tolist()
    whole = pool.astype(np.float64) @ queries.astype(np.float64).T
    assert scores.tolist() == whole.max(axis=1).tolist()


def test_equal_embeddings_have_equal_scores_wherever_they_lie():
    pool = unit(4001, 96, 2)
    pool[[17, 1023, 1024, 4000]] = pool[5]
    scores, _ = score_pool([pool[:1500], pool[1500:]], 4001, unit(7, 96, 3))
    assert len({scores[row] for row in (5, 17, 1023, 1024, 4000)}) == 1


def test_nearest_of_every_query_equal_a_brute_force_with_ties():
    pool = unit(9000, 32, 4)
    pool[8500:8600] = pool[100]  # a hundred equals, in other blocks
    queries = np.concatenate([unit(5, 32, 5), pool[100:101]])
    names = [f"{number:05}" for number in np.random.default_rng(6).permutation(9000)]
    place = by_name(pa.chunked_array([names[:1000], names[1000:]]))
    assert place.tolist() == [int(name) for name in names]
    eligible = np.random.default_rng(7).random(9000) < 0.8
    products = pool.astype(np.float64) @ queries.astype(np.float64).T
    result = nearest([pool[:1100], pool[1100:]], queries, 40, eligible=eligible, place=place)
    for query, (rows, scores) in enumerate(result):
        wanted = [row for row in range(9000) if eligible[row]]
        expected = sorted(wanted, key=lambda row: (-products[row, query], names[row]))[:40]
        assert rows.tolist() == expected
        assert scores.tolist() == products[expected, query].tolist()
    for query, (rows, _) in enumerate(nearest([pool], queries, 3, least=0.5)):
        near = np.flatnonzero(products[:, query] >= 0.5)
        assert rows.tolist() == sorted(near, key=lambda row: (-products[row, query], row))[:3]


# The command


def test_top_k_writes_list_table_and_counts(made, tmp_path):
    select.main([*made, "--top_k", "2"])
    assert listed(tmp_path / "out") == ["/d/b.png", "/d/a.png"]  # a and e are equal
    rows = table(tmp_path / "out")
    assert [row["name"][3] for row in rows] == list("baecd")
    assert [row["rank"] for row in rows] == list("12345")
    assert [row["chosen"] for row in rows] == list("11000")
    assert rows[0] == {"name": "/d/b.png", "score": "0.875000", "nearest_query": "/q/2.png", "rank": "1", "chosen": "1",
                       "reason": "", "quota_of": ""}  # fmt: skip
    assert rows[2]["reason"] == "not among the 2 most similar"
    summary = json.loads((tmp_path / "out" / "data_ldcc.json").read_text())
    assert summary["counts"] == {"pool": 5, "readable": 5, "queries": 3, "eligible": 5, "chosen": 2,
                                 "of_full_cells": 0, "left_out": {}}  # fmt: skip
    assert summary["parameters"]["top_k"] == 2
    assert summary["pool"]["model"] == MODEL
    assert (summary["scores"]["highest"], summary["scores"]["lowest_chosen"]) == (0.875, 0.5)
    assert sum(summary["scores"]["histogram_eligible"]) == 5
    edges = summary["scores"]["histogram_edges"]
    result = {edges[bin]: n for bin, n in enumerate(summary["scores"]["histogram_chosen"]) if n}
    assert result == {0.87: 1, 0.5: 1}


def test_per_query_takes_each_querys_nearest(made, tmp_path):
    select.main([*made, "--per_query", "1"])
    # Query 1: a and e are equal, a by its name; 2: b; 3: e.
    assert listed(tmp_path / "out") == ["/d/b.png", "/d/a.png", "/d/e.png"]
    assert table(tmp_path / "out")[3]["reason"] == "not among the 1 nearest of any query"


def test_quotas_are_dealt_in_turn_and_the_rest_goes_by_rank():
    order, near = np.array([0, 1, 2, 3, 4, 5]), [np.array([0, 1, 2]), np.array([0, 2, 1]), np.array([5, 0, 1])]
    # Round 1: 0 to the first query, 2 to the second, whose nearest is gone, 5 to the third; round 2: 1, then nothing.
    assert deal(order, near, 6, 2) == ({0: 0, 2: 1, 5: 2, 1: 0, 3: -1, 4: -1}, [])
    assert deal(order, near, 4, 1) == ({0: 0, 2: 1, 5: 2, 1: -1}, [])
    cells = {0: 7, 1: 7, 2: 7, 3: 8, 4: 8, 5: 9}
    assert deal(order, near, 3, 1, cells, 1) == ({0: 0, 5: 2, 3: -1}, [2, 1])


def test_total_and_quota_starve_no_query(tmp_path):
    """By score alone the first query takes the whole choice."""
    queries, rng = np.eye(6, 12), np.random.default_rng(3)
    pool = np.concatenate([
        queries[number] * pull + 0.1 * rng.standard_normal((30, 12)) for number, pull in enumerate([9, 1, 1, 1, 1, 1])
    ])  # fmt: skip
    names = [f"/d/{number:03}.png" for number in range(180)]
    write_names(tmp_path / "p", normalised(pool.astype(np.float32)), names)
    write_names(tmp_path / "q", normalised(queries.astype(np.float32)), [f"/q/{number}.png" for number in range(6)])
    argv = ["--pool", str(tmp_path / "p"), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "o"), "--top_k"]
    result = {}
    for quota in (0, 2, 5):
        out = tmp_path / f"o{quota}"
        more = ["--per_query", str(quota)] if quota else []
        select.main([*argv, "30", "--out", str(out), *more])
        result[quota] = json.loads((out / "data_ldcc.json").read_text())["images_per_query"]
        assert len(listed(out)) == 30
    assert result == {0: {"min": 0, "median": 0, "max": 30, "without": 5},
                     2: {"min": 2, "median": 2, "max": 20, "without": 0},
                     5: {"min": 5, "median": 5, "max": 5, "without": 0}}  # fmt: skip
    quotas = [row["quota_of"] for row in table(tmp_path / "o2") if row["chosen"] == "1"]
    assert Counter(quotas) == {"": 18, **{f"/q/{number}.png": 2 for number in range(6)}}
    with pytest.raises(SystemExit, match=r"6 queries are 36 images, --top_k is 30: .* at most --per_query 5"):
        select.main([*argv, "30", "--per_query", "6"])


def test_diversity_limits_the_images_of_a_cell(tmp_path):
    """Five groups of twenty like images: the nearest group would be the whole choice."""
    rng = np.random.default_rng(4)
    centres = np.eye(6)[1:] + np.linspace(0.9, 0.7, 5)[:, None] * np.eye(1, 6)
    pool = (np.repeat(centres, 20, axis=0) + 0.01 * rng.standard_normal((100, 6))).astype(np.float32)
    write_names(tmp_path / "p", normalised(pool), [f"/d/{number:03}.png" for number in range(100)])
    write_names(tmp_path / "q", np.eye(1, 6, dtype=np.float16), ["/q/1.png"])

    def groups(*more: str) -> Counter[int]:
        select.main(["--pool", str(tmp_path / "p"), "--queries", str(tmp_path / "q"), "--top_k", "20",
                     "--out", str(tmp_path / "o"), *more])  # fmt: skip
        return Counter(int(name[3:6]) // 20 for name in listed(tmp_path / "o"))

    assert groups() == {0: 20}
    diverse = groups("--diversity", "4")
    assert diverse.total() == 20 and len(diverse) > 1 and max(diverse.values()) < 20
    full = json.loads((tmp_path / "o" / "data_ldcc.json").read_text())["counts"]["of_full_cells"]
    reasons = Counter(row["reason"] for row in table(tmp_path / "o"))
    assert full == reasons["its cell of like images is full"] > 0
    assert groups("--diversity", "4") == diverse
    with pytest.raises(SystemExit, match=r"--diversity 1 leaves \d+ images of 100 for --top_k 100"):
        groups("--diversity", "1", "--top_k", "100")


def test_gates_and_exclusions_leave_out_and_are_counted_once(tmp_path, made):
    names = [f"/d/{letter}.png" for letter in "abcde"]
    known = {"height": [480, 100, 480, 480, 480], "blockiness": [1.0, 2.0, 1.0, 1.3, 1.0],
             "sharpness": [100.0, 1.0, 100.0, 100.0, 5.0]}  # fmt: skip
    write_names(tmp_path / "gated", POOL, names, **known)
    write_coverage(tmp_path, Features(tmp_path / "gated"), [Features(tmp_path / "queries")])
    (tmp_path / "removed.txt").write_text("# left out\n/d/a.png\n")
    argv = ["--min_side", "320", "--max_blockiness", "1.2", "--min_sharpness", "5", "--top_k", "2",
             "--exclude", str(tmp_path / "removed.txt")]  # fmt: skip
    select.main([*made, "--pool", str(tmp_path / "gated"), *argv])
    assert listed(tmp_path / "out") == ["/d/e.png", "/d/c.png"]
    reasons = {row["name"][3]: (row["rank"], row["reason"]) for row in table(tmp_path / "out")}
    assert reasons == {"e": ("1", ""), "c": ("2", ""), "a": ("", "duplicate"), "b": ("", "side below 320"),
                       "d": ("", "blockiness above 1.2")}  # fmt: skip
    counts = json.loads((tmp_path / "out" / "data_ldcc.json").read_text())["counts"]
    assert list(counts["left_out"].values()) == [1, 1, 1, 0]
    assert (counts["eligible"], counts["chosen"]) == (2, 2)
    with pytest.raises(SystemExit, match="--top_k 3 of 2 images that pass"):
        select.main([*made, "--pool", str(tmp_path / "gated"), *argv, "--top_k", "3"])


def test_a_list_of_duplicates_has_to_cover_the_pool_and_the_queries(tmp_path, made):
    pool, queries = Features(tmp_path / "pool"), Features(tmp_path / "queries")
    out, argv = tmp_path / "dup", [*made, "--top_k", "2", "--duplicates", str(tmp_path / "dup")]
    out.mkdir()
    half = Features(write_names(tmp_path / "half", POOL[:2], ["/d/a.png", "/d/b.png"]))
    other = Features(write_names(tmp_path / "other", QUERIES[:2], ["/q/1.png", "/q/2.png"]))

    def refused(name: str) -> None:
        with pytest.raises(SystemExit, match=rf"{name}.*data_curation\.dedup"):
            select.main(argv)
        assert not (tmp_path / "out").exists()

    refused(r"removed\.txt")
    (out / "removed.txt").write_text("")
    refused(COVERAGE.replace(".", r"\."))  # an empty list that nobody made
    write_coverage(out, half, [queries])
    refused("/d/c.png first")  # of a part of the pool
    write_coverage(out, pool, [other])
    refused("/q/3.png first")
    write_coverage(out, pool, [other, queries])
    (out / COVERAGE).write_bytes((out / COVERAGE).read_bytes()[:-30])
    refused(COVERAGE.replace(".", r"\."))
    write_coverage(out, pool, [other, queries])
    (out / "removed.txt").write_text("/d/b.png\n")
    select.main(argv)
    assert listed(tmp_path / "out") == ["/d/a.png", "/d/e.png"]
    select.main([*made, "--top_k", "2", "--exclude", str(out / "removed.txt")])
    assert listed(tmp_path / "out") == ["/d/a.png", "/d/e.png"]
    select.main(
        [*made, "--pool", str(half.folder), "--top_k", "1", "--duplicates", str(out)]
    )  # a part of what is covered
    assert listed(tmp_path / "out") == ["/d/a.png"]


def test_a_query_that_is_not_finite_is_named(tmp_path, made):
    vectors = QUERIES.copy()
    vectors[1, 0] = np.nan
    write_names(tmp_path / "nan", vectors, ["/q/1.png", "/q/2.png", "/q/3.png"])
    with pytest.raises(SystemExit, match=r"nan holds an embedding of /q/2\.png"):
        select.main([*made, "--queries", str(tmp_path / "nan"), "--top_k", "1"])


def test_images_that_changed_since_they_were_embedded_are_refused(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        write_png(path, np.zeros((8, 8, 3), np.uint8))
    features = Features(write_names(tmp_path / "p", POOL[:2], list(map(str, paths)),
                                    bytes=[path.stat().st_size for path in paths]))  # fmt: skip
    check_unchanged(features)
    paths[1].write_bytes(b"x")
    with pytest.raises(DataError, match=r"^1 images .*b\.png"):
        check_unchanged(features)
    paths[0].unlink()
    with pytest.raises(DataError, match=r"^2 images .*a\.png"):
        check_unchanged(features)


def test_same_bytes_whatever_the_shards_and_the_order_of_the_queries(made, tmp_path):
    names = [f"/d/{number:04}.png" for number in range(700)]
    pool = unit(700, 16, 8)
    pool[300:400] = pool[200]
    queries, query_names = unit(9, 16, 9), [f"/q/{number}.png" for number in range(9)]
    outs = []
    for number, (shard, order) in enumerate([(700, range(9)), (13, [4, 2, 8, 0, 1, 3, 7, 6, 5])]):
        p = write_names(tmp_path / f"p{number}", pool, names, shard)
        q = write_names(tmp_path / f"q{number}", queries[list(order)], [query_names[n] for n in order])
        out = tmp_path / f"o{number}"
        select.main(["--pool", str(p), "--queries", str(q), "--out", str(out), "--per_query", "60"])
        outs.append(((out / "data_ldcc.csv").read_bytes(), listed(out)))
    assert outs[0] == outs[1]


def test_list_opens_from_anywhere_and_may_be_relative(tmp_path, monkeypatch, made):
    data, out = tmp_path / "data", tmp_path / "out"
    for folder in (data, out):
        folder.mkdir()
    paths = [data / "b.png", out / "#a.png", data / "c d.png"]
    for path in paths:
        write_png(path, np.zeros((8, 8, 3), np.uint8))
    write_names(tmp_path / "p", POOL[:3], [str(path) for path in paths])
    for argv in ([], ["--relative"]):
        select.main([*made, "--pool", str(tmp_path / "p"), "--top_k", "3", *argv])
        monkeypatch.chdir("/")
        images = expand(str(out / "data_ldcc.txt"))
        assert [Path(os.path.normpath(image.path)) for image in images] == [out / "#a.png", data / "b.png",
                                                                            data / "c d.png"]  # fmt: skip
        assert images[0].read_rgb().shape == (8, 8, 3)
    assert (out / "data_ldcc.txt").read_text().splitlines()[2:] == ["./#a.png", "../data/b.png", "../data/c d.png"]


def test_a_list_moves_along_with_its_folder(tmp_path, made):
    """Also where the folder of the list was reached by a link: `..` led from the link's place, where nothing is."""
    data, real = tmp_path / "data", tmp_path / "elsewhere" / "deep" / "real"
    for folder in (data, real):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [data / f"{name}.png" for name in "abc"]
    for path in paths:
        write_png(path, rng.integers(0, 256, (64, 64, 3), np.uint8))
    write_names(tmp_path / "p", POOL[:3], [str(path) for path in paths])
    (tmp_path / "link").symlink_to(real)
    for out in ("link", "data/ldcc"):
        select.main([*made, "--pool", str(tmp_path / "p"), "--top_k", "3", "--relative", "--out", str(tmp_path / out)])
        assert [image.read_rgb().shape for image in expand(str(tmp_path / out / "data_ldcc.txt"))] == [(64, 64, 3)] * 3
    data.rename(tmp_path / "another machine")
    sources = open_sources((str(tmp_path / "another machine" / "ldcc" / "data_ldcc.txt"),))
    assert len(open_training_set(sources, 16, [], False, tmp_path)) == 3


def test_images_that_are_trained_on_anyway_are_left_out(tmp_path, made):
    """By their file, whatever link leads there, and by their bytes."""
    data, df2k = tmp_path / "data", tmp_path / "df2k"
    for number, folder in enumerate((data, df2k)):
        folder.mkdir()
        for name in "abc":
            write_png(folder / f"{name}.png", np.full((8, 8, 3), 40 * ord(name) % 256 + number, np.uint8))
    (data / "c.png").write_bytes((df2k / "b.png").read_bytes())
    (tmp_path / "link").symlink_to(df2k)
    paths = [data / "a.png", tmp_path / "link" / "a.png", data / "c.png"]
    contents = [path.read_bytes() for path in paths]
    known = {"bytes": [len(content) for content in contents], "sha1": [sha1(one).hexdigest() for one in contents]}
    write_names(tmp_path / "p", POOL[:3], [str(path) for path in paths], **known)
    argv = [*made, "--pool", str(tmp_path / "p"), "--trained_on", str(df2k)]
    select.main([*argv, "--top_k", "1"])
    assert listed(tmp_path / "out") == [str(data / "a.png")]
    assert {row["name"]: row["reason"] for row in table(tmp_path / "out")} == dict(
        zip(map(str, paths), ["", "trained on anyway", "trained on anyway"], strict=True)
    )
    assert f"--trained_on {df2k}" in (tmp_path / "out" / "data_ldcc.txt").read_text()
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        select.main([*argv, "nowhere", "--top_k", "1"])


def test_several_folders_are_one_pool(made, tmp_path):
    """Whatever their order, the choice is that of one folder with all images."""
    argv = ["--per_query", "2", "--queries", str(tmp_path / "queries")]
    write_names(tmp_path / "a", POOL[3:], ["/d/d.png", "/d/e.png"], shard=1)
    write_names(tmp_path / "b", POOL[:3], [f"/d/{letter}.png" for letter in "abc"])
    select.main([*made, *argv])
    for number, parts in enumerate((["a", "b"], ["b", "a"])):
        out = tmp_path / f"o{number}"
        select.main(["--pool", *(str(tmp_path / part) for part in parts), *argv, "--out", str(out)])
        assert listed(out) == listed(tmp_path / "out") and table(out) == table(tmp_path / "out")
        result = json.loads((out / "data_ldcc.json").read_text())
        assert result["counts"]["pool"] == 5 and result["parameters"]["pool"] == [
            str(tmp_path / part) for part in parts
        ]
    joined = open_features([tmp_path / "a", tmp_path / "b"])
    assert joined.vectors([4, 0, 2]).tolist() == POOL[[2, 3, 0]].tolist() and joined.column("name")[1] == "/d/e.png"
    assert [len(shard) for shard in joined.shards()] == [1, 1, 3]


def test_folders_that_cannot_be_one_pool_are_refused(made, tmp_path, monkeypatch):
    write_names(tmp_path / "again", POOL[:1], ["/d/c.png"])
    with pytest.raises(SystemExit, match=r"1 images are in several of the folders, /d/c\.png first"):
        select.main([*made, "--pool", str(tmp_path / "pool"), str(tmp_path / "again"), "--top_k", "1"])
    monkeypatch.setattr("curation.MODEL", "another")
    write_names(tmp_path / "other", POOL[:1], ["/d/x.png"])
    with pytest.raises(SystemExit, match=r"other was made with another, .*pool with hand:made"):
        select.main([*made, "--pool", str(tmp_path / "pool"), str(tmp_path / "other"), "--top_k", "1"])


def test_flipped_bytes_and_embeddings_that_are_not_finite_are_noticed(made, tmp_path):
    """A flipped bit in a shard went unnoticed, and the image of a NaN was chosen."""
    path = tmp_path / "pool" / "shard_00001.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x7C  # the exponent of a number: infinite or not a number
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"shard_00001\.npy is damaged: .*shard_00001\.parquet"):
        select.main([*made, "--top_k", "1"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(FeaturesError, match=r"row 3 .* not finite"):
        score_pool([np.where(np.arange(5)[:, None] == 3, np.nan, POOL).astype(np.float16)], 5, QUERIES)
    parquet = tmp_path / "pool" / "shard_00000.parquet"
    content = bytearray(parquet.read_bytes())
    content[60] ^= 0xFF
    parquet.write_bytes(content)
    with pytest.raises(SystemExit, match=r"shard_00000\.parquet is damaged"):
        select.main([*made, "--top_k", "1"])


def test_names_may_begin_and_end_with_blanks(made, tmp_path):
    write_names(tmp_path / "p", POOL[:3], ["/d/a.png ", "/d/b.png", " c.png"])
    write_coverage(tmp_path, Features(tmp_path / "p"), [Features(tmp_path / "queries")])
    (tmp_path / "removed.txt").write_text("/d/a.png \n c.png\n")
    select.main([*made, "--pool", str(tmp_path / "p"), "--top_k", "1", "--exclude", str(tmp_path / "removed.txt")])
    assert listed(tmp_path / "out") == ["/d/b.png"]


def test_likely_mistakes_are_said_and_queries_are_never_chosen(made, tmp_path, capsys):
    def warnings() -> list[str]:
        return json.loads((tmp_path / "out" / "data_ldcc.json").read_text())["warnings"]

    select.main([*made, "--top_k", "2"])
    assert len(warnings()) == 1 and "no --duplicates" in warnings()[0]
    assert "warning: no --duplicates" in capsys.readouterr().err
    write_names(tmp_path / "small", QUERIES, list("xyz"), height=[120] * 3, width=[80] * 3)
    select.main([*made, "--top_k", "2", "--queries", str(tmp_path / "small")])
    assert len(warnings()) == 2 and "320 pixels a side from the pool and of 80" in warnings()[1]
    write_names(tmp_path / "near", np.eye(3, 4, dtype=np.float16), list("abc"))
    select.main([*made, "--top_k", "2", "--pool", str(tmp_path / "near")])
    assert len(warnings()) == 2 and "2 of the chosen images have a score of 0.98" in warnings()[1]
    write_names(tmp_path / "same", POOL[:2], ["/d/a.png", "/q/2.png"])
    with pytest.raises(SystemExit, match=r"1 of the chosen images are queries themselves, /q/2\.png first"):
        select.main([*made, "--top_k", "2", "--pool", str(tmp_path / "same")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--top_k"),
        (["--per_query", "1", "--diversity", "1"], "--diversity"),
        (["--top_k", "0"], "--top_k"),
        (["--top_k", "1", "--max_blockiness", "nan"], "--max_blockiness"),
        (["--top_k", "1", "--duplicates", "a", "--exclude", "a/removed.txt"], "--exclude"),
    ],
)
def test_arguments_that_contradict_are_refused(made, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        select.main([*made, *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_chosen_and_other_encoders_fail(made, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no image is chosen"):
        select.main([*made, "--per_query", "1", "--min_side", "1000"])
    empty = tmp_path / "empty"
    empty.mkdir()
    content = json.loads((tmp_path / "queries" / SETTINGS).read_text())
    (empty / SETTINGS).write_text(json.dumps(content | {"images": 0}))
    with pytest.raises(SystemExit, match="holds no embedding"):
        select.main([*made, "--queries", str(empty), "--top_k", "1"])
    monkeypatch.setattr("curation.MODEL", "another")
    write_names(tmp_path / "other", QUERIES, list("abc"))
    with pytest.raises(SystemExit, match=r"was embedded by hand:made, .* by another"):
        select.main([*made, "--queries", str(tmp_path / "other"), "--top_k", "1"])


def test_a_kill_leaves_no_half_written_list(made, tmp_path, monkeypatch):
    select.main([*made, "--top_k", "2"])
    before = (tmp_path / "out" / "data_ldcc.txt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert select.main([*made, "--top_k", "3"]) == 130
    assert (tmp_path / "out" / "data_ldcc.txt").read_bytes() == before
    select.main([*made, "--top_k", "3"])
    select.main([*made, "--out", str(tmp_path / "fresh"), "--top_k", "3"])
    assert listed(tmp_path / "out") == listed(tmp_path / "fresh")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data_ldcc.csv", "data_ldcc.json", "data_ldcc.txt"]  # fmt: skip


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory) -> tuple[Path, Path]:
    """Pool features of 12 images of BSD100, 40 of BSDS and 80 others, and of BSD100's LR images: AlexNet, x1/4."""
    folder = tmp_path_factory.mktemp("real")
    hr, train = sorted((shared / "data" / "bench" / "BSD100" / "HR").iterdir()), shared / "data" / "train"
    bsds = sorted(path for path in (train / "bsds-sun").iterdir() if path.stem.isdigit())[::10]
    pool = [*hr[:12], *bsds, *sorted((train / "hq480-a").iterdir())[::6]]
    (folder / "pool.txt").write_text("".join(f"{path}\n" for path in pool))
    lr = shared / "data" / "bench" / "BSD100" / "LRbicx4"
    weights = ["--backbone", "alexnet", "--weights", str(shared / "iqa" / "alexnet_features.safetensors")]
    embed.main([str(folder / "pool.txt"), *weights, "--downscale", "4", "--out", str(folder / "pool")])
    embed.main([str(lr), *weights, "--out", str(folder / "queries")])
    return folder / "pool", folder / "queries"


@pytest.mark.slow
def test_images_are_nearest_to_their_own_lr_with_alexnet(real, tmp_path):
    pool, queries = real
    select.main(["--pool", str(pool), "--queries", str(queries), "--out", str(tmp_path), "--top_k", "12"])
    first = table(tmp_path)[:12]
    assert {Path(row["name"]).stem for row in first} == {f"img_{number:03}" for number in range(1, 13)}
    for row in first:
        assert Path(row["nearest_query"]).stem == Path(row["name"]).stem + "x4"
        assert float(row["score"]) > 0.99


@pytest.mark.slow
def test_bsds_images_are_nearer_to_bsd100_than_chance_with_alexnet(real, tmp_path):
    pool, queries = real
    names = Features(pool).columns("name")["name"].to_pylist()
    (tmp_path / "removed.txt").write_text("".join(f"{name}\n" for name in names if "BSD100" in name))
    write_coverage(tmp_path, Features(pool), [Features(queries)])
    select.main(["--pool", str(pool), "--queries", str(queries), "--out", str(tmp_path), "--top_k", "30",
                 "--exclude", str(tmp_path / "removed.txt")])  # fmt: skip
    chosen = ["bsds-sun" in name for name in listed(tmp_path)]
    assert len(names) == 12 + 40 + 80
    assert sum(chosen) >= 20, f"{sum(chosen)} of 30; chance gives 10"
