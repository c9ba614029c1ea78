"""The memory model, the tiles that it chooses, and what a run really takes."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.memory_table import in_child, line_above
from models.team08_HATFreq import PRESETS, HATFreq, memory, override
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.memory import LARGEST, USABLE, Work, available_memory, choose_tile, read_table
from models.team08_HATFreq.restorer import NetworkRestorer
from models.team08_HATFreq.tiling import tile_starts
from models.team08_HATFreq.weights import save_weights

GB = 2**30
NARROW = override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})
RUN = """
import resource, sys
sys.path.insert(0, {root!r})
import test
code = test.main({words!r})
{after}
sys.exit(code)
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_never_falls_below_a_measured_peak(precision: str) -> None:
    """A size that the table was not made from: no less than measured, and less than twice as much and 40 MB."""
    peak, estimate = (
        in_child("light", precision, "cpu", 112),
        Work(PRESETS["light"], "cpu", precision).bytes_for(112, 112),
    )
    assert peak <= estimate, f"run benchmarks/memory_table.py again: {peak} bytes measured, {estimate} expected"
    assert estimate < 2 * peak + 40e6


def test_the_table_holds_every_preset_and_says_what_was_measured() -> None:
    table = read_table()
    for device in ("cpu", "cuda"):
        assert list(table[device]) == list(PRESETS)
        for preset, precisions in table[device].items():
            for precision, row in precisions.items():
                assert row["channels"] == PRESETS[preset].embed_dim
                assert bool(row["points"]) == row["measured"]
                for pixels, taken in row["points"]:
                    assert row["fixed"] + row["per_pixel"] * pixels >= taken
                if not row["measured"]:  # on the safe side of the CPU's
                    assert row["per_pixel"] >= 1.4 * table["cpu"][preset][precision]["per_pixel"]
    assert all(row["measured"] for precisions in table["cpu"].values() for row in precisions.values())


def test_the_line_lies_above_all_points() -> None:
    points = [(1, 30), (2, 20), (4, 80)]
    fixed, per_pixel = line_above(points)
    assert all(fixed + per_pixel * pixels >= taken for pixels, taken in points)
    assert line_above([(100, 1000), (200, 2000)]) == (0, 12.0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ensemble", [1, 8])
@pytest.mark.parametrize(("device", "free"), [("cuda", 7.2 * GB), ("cpu", 1.2 * GB)], ids=["8GB-card", "2GB-laptop"])
def test_small_machines_get_tiles_that_fit(
    preset: str, precision: str, ensemble: int, device: str, free: float
) -> None:
    work = Work(PRESETS[preset], device, precision, ensemble)
    for height, width in ((339, 510), (1356, 2040), (2000, 3000), (5000, 100)):
        tile = choose_tile(work, height, width, 32, int(free))
        h, w = (min(tile, height), min(tile, width)) if tile else (height, width)
        assert work.bytes_for(h, w) <= USABLE * free
        assert tile == 0 or (tile % 16 == 0 and tile >= 96)  # small tiles would waste their overlaps


def test_the_tile_grows_with_memory_and_shrinks_with_need() -> None:
    base, free = Work(PRESETS["base"], "cuda"), int(8 * GB)
    assert choose_tile(base, 352, 400, 32, free) == 0
    tile = choose_tile(base, 1356, 2040, 32, free)
    assert choose_tile(Work(PRESETS["base"], "cuda", "bf16"), 1356, 2040, 32, free) > tile
    assert choose_tile(base, 1356, 2040, 32, 4 * free) > tile > choose_tile(base, 1356, 2040, 32, free // 4) >= 64
    assert choose_tile(base, 1356, 2040, 32, -1) == 64  # nothing is left: the smallest, and the retry after it


def test_tiles_are_no_larger_than_their_number_demands() -> None:
    light, plenty = Work(PRESETS["light"]), 64 * GB
    for height, width in ((513, 513), (600, 700), (2000, 3000), (130, 5000)):
        tile = choose_tile(light, height, width, 32, plenty)
        assert 0 < tile <= LARGEST["cpu"]
        for length in (height, width):
            count = len(tile_starts(length, min(tile, length), 32))
            assert count == len(tile_starts(length, min(LARGEST["cpu"], length), 32))
    assert choose_tile(light, 513, 513, 32, plenty) == 288  # two of 273 at least, not of 512


def test_a_shape_that_is_no_preset_is_given_enough() -> None:
    wide = override(PRESETS["base"], {"depths": (6,), "num_heads": (6,)})
    for precision in ("fp32", "bf16"):
        at_most = Work(wide, "cpu", precision).bytes_for(128, 128)
        assert at_most >= Work(PRESETS["base"], "cpu", precision).bytes_for(128, 128)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_memory(torch.device("cpu"))
    assert free > 2**20
    for name, text in (("max", f"{2**21}"), ("current", f"{2**20 + 2**19}"), ("stat", "anon 7\ninactive_file 4096\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_memory(torch.device("cpu")) == 2**19 + 4096
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_memory(torch.device("cpu")) == (2**19 + 4096) // 2
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(torch.device("cpu")) > 2**20


def test_the_restorer_takes_the_tile_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.team08_HATFreq.restorer.available_memory", lambda device: 100 * 2**20)
    restorer = NetworkRestorer(HATFreq(NARROW).eval(), torch.device("cpu"), "fp32", None, 32, 1, {})
    restored, noted = restorer(np.zeros((200, 260, 3), np.uint8))
    images = 2 * 17 * 200 * 260 * 3
    assert noted["tile"] == choose_tile(Work(NARROW), 200, 260, 32, 100 * 2**20 - images) > 0
    assert restored.shape == (800, 1040, 3)


@pytest.fixture
def narrow_run(root: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs test.py's main on one image with a narrow network; `after` is executed before it exits."""
    save_weights(HATFreq(NARROW), tmp_path / "narrow.safetensors", {})

    def run(height: int, width: int, after: str, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
        folder = tmp_path / f"{width}x{height}"
        folder.mkdir()
        write_png(folder / "a.png", np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        line = ["--test_dir", str(folder), "--save_dir", str(folder / "out"), "--device", "cpu", "--ensemble", "1"]
        line += ["--weights", str(tmp_path / "narrow.safetensors"), *words]
        code = before + RUN.format(root=str(root), words=line, after=after)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    return run


def test_memory_grows_by_the_images_own_size_only(
    narrow_run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """At one tile size, 14 times the pixels cost their samples, the strips that rows of tiles share, and a quarter for
    what decoding (noise does not compress) leaves in the heap; a second copy of the result would be twice as much."""
    after = "from models.team08_HATFreq.memory import peak_memory; print(peak_memory(None)[0])"
    peaks = []
    for height, width in ((176, 256), (656, 976)):  # tiles every 80 pixels fit exactly
        done = narrow_run(height, width, after, "--tile", "96", "--tile_overlap", "16")
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    own, strips = (656 * 976 - 176 * 256) * 3 * 17, 2 * (16 * 4) * (976 - 256) * 4 * 3 * 4
    assert peaks[1] - peaks[0] < 1.25 * own + strips + 2e6


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data works on Linux only")
def test_a_small_budget_that_the_system_enforces_needs_no_retry(
    narrow_run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Told that 150 MB are free, and given no byte more by the system."""
    before = f"""
import resource, sys, torch
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from models.team08_HATFreq import restorer

def limited(device):
    data = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData")][0]
    resource.setrlimit(resource.RLIMIT_DATA, (data + {150 * 10**6}, resource.RLIM_INFINITY))
    return {150 * 10**6}

restorer.available_memory = limited
"""
    done = narrow_run(400, 600, "pass", before=before)
    assert done.returncode == 0, done.stderr
    assert "1 images restored" in done.stdout and "retrying" not in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize(("preset", "precision"), [("base", "bf16"), ("base", "fp32"), ("large", "bf16")])
def test_an_8_gb_card_needs_no_retry(preset: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, budget = torch.device("cuda"), int(7.2 * GB)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
    monkeypatch.setattr("models.team08_HATFreq.restorer.available_memory", lambda device: budget)
    try:
        model = HATFreq(PRESETS[preset]).to(device).eval()
        restorer = NetworkRestorer(model, device, precision, None, 32, 1, {})
        assert restorer(np.zeros((700, 900, 3), np.uint8))[0].shape == (2800, 3600, 3)
        assert restorer.limit is None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_peak_memory_is_this_processs() -> None:
    peak, kind = memory.peak_memory(None)
    assert kind == "memory"
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05)
