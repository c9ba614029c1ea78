"""The machine: devices, limits of memory, files written whole; and the tiles that a run chooses for its memory."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.inference import BYTES_PER_PIXEL, LARGEST_TILE, HATFreqRestorer, choose_tile
from models.team08_HATFreq.system import (
    World,
    available_memory,
    choose_device,
    left_by_control_groups,
    peak_memory,
    slow_bf16,
)
from models.team08_HATFreq.tiling import tile_starts
from models.team08_HATFreq.weights import save_weights
from utils.files import (
    HOST,
    TEMPORARY,
    UserError,
    atomic_write,
    command,
    file_sha256,
    listed,
    make_folder,
    refuse_doubled,
)

NARROW = override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("tpu", "cpu:1", "cuda:x", "cuda:-1", ""):
        with pytest.raises(ValueError, match="auto, cpu, cuda or cuda:N"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto") == torch.device("cuda") and choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:3")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="one of the 4 GPUs"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="use --device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("units", [(False, False), (True, False), (False, True)])
def test_bf16_is_slow_without_units_for_it(monkeypatch: pytest.MonkeyPatch, units: tuple[bool, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units[1])
    assert slow_bf16(torch.device("cpu")) != any(units) and not slow_bf16(torch.device("cuda"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on purpose"), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError("on purpose")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with atomic_write(path, sync=True) as file:
        file.write(b"new")
        assert [p.name.startswith(TEMPORARY) for p in sorted(tmp_path.iterdir())] == [True, False]
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match=r"cannot write .*nowhere"), atomic_write(tmp_path / "nowhere" / "a"):
        pass


def test_a_new_folder_is_swept_of_what_killed_processes_left(tmp_path: Path) -> None:
    gone, alive = tmp_path / f"{TEMPORARY}x-{HOST}-999999999", tmp_path / f"{TEMPORARY}x-{HOST}-{os.getpid()}"
    for path in (gone, alive, tmp_path / f"{TEMPORARY}x-elsewher-999999999", tmp_path / "kept"):
        path.touch()
    make_folder(tmp_path)
    assert not gone.exists() and alive.exists() and len(list(tmp_path.iterdir())) == 3


def test_names_in_messages_and_hashes(tmp_path: Path) -> None:
    assert listed(["a", "b"]) == "a, b" and listed(list(range(17))).endswith("8, 9 and 7 more")
    refuse_doubled("abc", "rename them")
    with pytest.raises(UserError, match="a, b: rename them"):
        refuse_doubled("abcab", "rename them")
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_expected_error_of_a_command_is_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> None:
        raise error

    assert command("a.py")(lambda argv: None)([]) == 0 and command("a.py")(lambda argv: 3)([]) == 3
    for error in (UserError("b.png"), OSError("b.png"), KeyError("b.png")):
        with pytest.raises(SystemExit) as stop:
            command("a.py", KeyError)(lambda argv, error=error: raising(error))([])
        assert "a.py" in str(stop.value.code) and "b.png" in str(stop.value.code)
    assert command("a.py")(lambda argv: raising(KeyboardInterrupt()))([]) == 130
    with pytest.raises(KeyError):
        command("a.py")(lambda argv: raising(KeyError()))([])


def test_alone_an_error_is_the_functions_own() -> None:
    with pytest.raises(KeyError):
        World().from_main(lambda: {}["x"])


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def control_group(folder: Path, limit: str, used: int, cached: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    for name, text in zip(names, (limit, str(used)), strict=True):
        (folder / f"memory.{name}").write_text(f"{text}\n")
    (folder / "memory.stat").write_text(
        f"anon 7\n{'inactive_file' if version == 2 else 'total_inactive_file'} {cached}\n"
    )


def test_limits_of_control_groups_count_at_every_level(tmp_path: Path) -> None:
    groups, mount = tmp_path / "cgroup", tmp_path / "mount"
    groups.write_text("0::/system.slice/job.scope\n")
    assert left_by_control_groups(groups, mount) is None
    control_group(mount, "max", 10, 0)
    control_group(mount / "system.slice" / "job.scope", "max", 5, 0)
    assert left_by_control_groups(groups, mount) is None
    control_group(mount / "system.slice", "3000", 1000, 400)  # systemd-run's or SLURM's, above our own
    assert left_by_control_groups(groups, mount) == 2400
    control_group(mount / "system.slice" / "job.scope", "1000", 900, 50)
    assert left_by_control_groups(groups, mount) == 150
    control_group(mount, "100", 500, 0)  # a container sees its own limit at the root
    assert left_by_control_groups(groups, mount) == 0


def test_limits_of_the_first_version_count_too(tmp_path: Path) -> None:
    groups, mount = tmp_path / "cgroup", tmp_path / "mount"
    groups.write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    control_group(mount / "memory" / "docker" / "abc", "1000", 400, 100, version=1)
    assert left_by_control_groups(groups, mount) == 700
    # In a container the path is the host's and not there; its own group is mounted at the root.
    groups.write_text("4:memory:/host/only\n")
    control_group(mount / "memory", "2000", 1000, 0, version=1)
    assert left_by_control_groups(groups, mount) == 1000


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.team08_HATFreq.system.left_by_control_groups", lambda: 6_000_000)
    assert available_memory(torch.device("cpu")) == 6_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_memory(torch.device("cpu")) == 3_000_000


def test_peak_memory_is_this_processs() -> None:
    peak, kind = peak_memory(None)
    assert kind == "memory"
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Tiles
# ---------------------------------------------------------------------------------------------------------------------


def test_every_preset_has_its_bytes_for_every_precision() -> None:
    assert set(BYTES_PER_PIXEL) == set(PRESETS)
    assert all(set(row) == {"fp32", "bf16"} for row in BYTES_PER_PIXEL.values())


@pytest.mark.parametrize("bytes_a_pixel", [4_000, 30_000])
@pytest.mark.parametrize("free", [1.2e9, 7e9, 1e11])
def test_tiles_fit_into_memory(bytes_a_pixel: int, free: float) -> None:
    for height, width in ((339, 510), (1356, 2040), (2000, 3000), (5000, 100)):
        tile = choose_tile(height, width, 32, int(free), bytes_a_pixel, LARGEST_TILE)
        h, w = (min(tile, height), min(tile, width)) if tile else (height, width)
        assert h * w * bytes_a_pixel <= 0.8 * free
        assert h * w <= LARGEST_TILE**2
        assert tile == 0 or (tile % 16 == 0 and tile >= 96)  # small tiles would waste their overlaps


def test_the_tile_grows_with_memory_and_has_a_smallest() -> None:
    tiles = [choose_tile(1356, 2040, 32, free, 29_000, 10**6) for free in (-1, 10**9, 10**10, 10**12)]
    assert tiles[0] == 32 < tiles[1] < tiles[2] and tiles[3] == 0


def test_tiles_are_no_larger_than_their_number_demands() -> None:
    for height, width in ((513, 513), (600, 700), (2000, 3000), (130, 5000)):
        tile = choose_tile(height, width, 32, 10**12, 4_000, LARGEST_TILE)
        assert 0 < tile <= LARGEST_TILE
        for length in (height, width):
            count = len(tile_starts(length, min(tile, length), 32))
            assert count == len(tile_starts(length, min(LARGEST_TILE, length), 32))
    assert choose_tile(513, 513, 32, 10**12, 4_000, LARGEST_TILE) == 288  # two of 273 at least, not of 512


def test_the_restorer_takes_the_tile_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.team08_HATFreq.inference.available_memory", lambda device: 50 * 2**20)
    restorer = HATFreqRestorer(HATFreq(NARROW).eval(), torch.device("cpu"), ensemble=1)
    restored, noted = restorer(np.zeros((200, 260, 3), np.uint8))
    assert restored.shape == (800, 1040, 3) and 32 <= noted["tile"] < 200


RUN = """
import resource, sys, torch
sys.path.insert(0, {root!r})
from models.team08_HATFreq import inference

def limited(device):
    data = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData")][0]
    resource.setrlimit(resource.RLIMIT_DATA, (data + {limit}, resource.RLIM_INFINITY))
    return {limit}

if {limit}:
    inference.available_memory = limited
import test
from models.team08_HATFreq.system import peak_memory
code = test.main({words!r})
print(peak_memory(None)[0])
sys.exit(code)
"""


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs test.py's main on one image with a narrow network, perhaps under a limit, and prints its peak."""
    save_weights(HATFreq(NARROW), tmp_path / "narrow.safetensors", {})

    def start(height: int, width: int, *words: str, limit: int = 0) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / f"{width}x{height}"
        folder.mkdir()
        write_png(folder / "a.png", np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        line = ["--test_dir", str(folder), "--save_dir", str(folder / "out"), "--device", "cpu", "--ensemble", "1"]
        line += ["--weights", str(tmp_path / "narrow.safetensors"), *words]
        code = RUN.format(root=str(root), words=line, limit=limit)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    return start


@pytest.mark.slow
def test_memory_grows_by_the_images_own_size_only(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """At one tile size, 14 times the pixels cost their samples, the strips that rows of tiles share, and two fifths for
    what decoding (noise does not compress) leaves in the heap; a second copy of the result would be twice as much."""
    peaks = []
    for height, width in ((176, 256), (656, 976)):  # tiles every 80 pixels fit exactly
        done = run(height, width, "--tile", "96", "--tile_overlap", "16")
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    own, strips = (656 * 976 - 176 * 256) * 3 * 17, 2 * (16 * 4) * (976 - 256) * 4 * 3 * 4
    assert peaks[1] - peaks[0] < 1.4 * own + strips + 2e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data works on Linux only")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_budget_that_the_system_enforces_suffices(
    run: Callable[..., subprocess.CompletedProcess[str]], precision: str
) -> None:
    """Told that 240 MB are free and given no byte more, it ends with the result."""
    done = run(400, 600, "--precision", precision, limit=240 * 10**6)
    assert done.returncode == 0, done.stderr
    assert "1 image restored" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize(("preset", "precision"), [("base", "bf16"), ("base", "fp32"), ("large", "bf16")])
def test_an_8_gb_card_needs_no_retry(preset: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, budget = torch.device("cuda"), int(7.2 * 2**30)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
    monkeypatch.setattr("models.team08_HATFreq.inference.available_memory", lambda device: budget)
    try:
        model = HATFreq(PRESETS[preset]).to(device).eval()
        restorer = HATFreqRestorer(model, device, precision, ensemble=1)
        assert restorer(np.zeros((700, 900, 3), np.uint8))[0].shape == (2800, 3600, 3)
        assert restorer.limit is None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
