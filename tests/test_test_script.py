"""test.py as an organiser and a newcomer run it: outputs, continuation, kills, bad files, memory."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import test as organisers_script
from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.folder import RECORD, RestorationError, read_lines, restore_inputs
from models.team08_HATFreq.image_io import read_picture, read_rgb, write_png
from models.team08_HATFreq.inference import HATFreqRestorer, load_restorer
from models.team08_HATFreq.tiling import self_ensemble, to_samples, to_tensor
from models.team08_HATFreq.weights import save_weights
from utils.files import HOST, TEMPORARY
from utils.resize import imresize

TINY = override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})


def tiny_network() -> HATFreq:
    torch.manual_seed(0)
    model = HATFreq(TINY).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def picture(seed: int, height: int = 12, width: int = 17) -> np.ndarray:
    """A smooth colour image."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(tiny_network(), tmp_path / "tiny.safetensors", {})
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def lq(tmp_path: Path) -> Path:
    folder = tmp_path / "LR"
    folder.mkdir()
    for number in range(3):
        write_png(folder / f"090{number}x4.png", picture(number))
    return folder


def run_script(*argv: object) -> SimpleNamespace:
    """test.py's main in this process: its status and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = organisers_script.main(["--device", "cpu", *map(str, argv)])
        except SystemExit as stop:
            code = 1
            print(stop.code, file=err)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def test_outputs_are_the_networks(root: Path, tmp_path: Path, lq: Path, weights: Path) -> None:
    argv = ["--test_dir", lq, "--valid_dir", lq, "--save_dir", tmp_path / "out", "--weights", weights]
    command = [sys.executable, root / "test.py", "--device", "cpu", *argv]  # as a person would, from another folder
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Model 08_HATFreq runtime (Including I/O):" in done.stdout
    assert "3 images restored" in done.stdout and "s an image, peak memory" in done.stdout
    for mode in ("valid", "test"):
        folder = tmp_path / "out" / "08_HATFreq" / mode
        assert sorted(p.name for p in folder.iterdir()) == [*(f"090{n}x4.png" for n in range(3)), RECORD]
        with torch.no_grad():
            expected = to_samples(self_ensemble(tiny_network(), to_tensor(picture(1))), np.dtype(np.uint8))
        np.testing.assert_array_equal(read_rgb(folder / "0901x4.png"), expected)
    first, *lines = read_lines(folder / RECORD)
    assert first["settings"]["ensemble"] == 8 and first["settings"]["precision"] == "fp32"
    entry = next(line for line in lines if line.get("name") == "0901x4.png")
    assert (entry["input_size"], entry["output_size"], entry["tile"]) == ([17, 12], [68, 48], 0)
    assert lines[-1]["run"]["restored"] == 3 and lines[-1]["run"]["peak_memory_bytes"] > 1e6


def test_bicubic_is_matlabs(tmp_path: Path, lq: Path) -> None:
    assert run_script("--model_id", 0, "--test_dir", lq, "--save_dir", tmp_path / "out").returncode == 0
    restored = read_rgb(tmp_path / "out" / "00_Bicubic" / "test" / "0900x4.png")
    np.testing.assert_array_equal(restored, imresize(picture(0), 4, "clamp"))


def test_bad_files_are_named_and_the_others_restored(tmp_path: Path, lq: Path, weights: Path) -> None:
    whole = (lq / "0901x4.png").read_bytes()
    (lq / "0901x4.png").write_bytes(whole[: len(whole) // 2])
    argv = ("--test_dir", lq, "--save_dir", tmp_path / "out", "--weights", weights, "--ensemble", 1)
    first = run_script(*argv)
    assert first.returncode == 1
    assert "1 of 3 images could not be restored" in first.stderr and "0901x4.png is damaged" in first.stderr
    assert "2 images restored" in first.stdout
    folder = tmp_path / "out" / "08_HATFreq" / "test"
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert sorted(kept) == ["0900x4.png", "0902x4.png"]
    (lq / "0901x4.png").write_bytes(whole)
    second = run_script(*argv)
    assert second.returncode == 0 and "1 image restored" in second.stdout and "2 finished before" in second.stdout
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


def test_a_bad_file_in_one_folder_does_not_keep_the_other_from_being_restored(tmp_path: Path, lq: Path) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "cut.png").write_bytes(b"cut")
    write_png(tmp_path / "valid" / "whole.png", picture(0))
    (lq / "0901x4.png").write_bytes(b"cut")
    argv = ("--model_id", 0, "--valid_dir", tmp_path / "valid", "--test_dir", lq, "--save_dir", tmp_path / "out")
    done = run_script(*argv)
    assert done.returncode == 1
    assert "1 of 2 images" in done.stderr and "cut.png" in done.stderr
    assert "1 of 3 images" in done.stderr and "0901x4.png" in done.stderr
    restored = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert restored == ["0900x4.png", "0902x4.png", "whole.png"]


@pytest.mark.slow
def test_a_kill_loses_nothing(root: Path, tmp_path: Path, weights: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out" / "08_HATFreq" / "test"
    folder.mkdir()
    for number in range(12):
        write_png(folder / f"{number:02}.png", picture(number, 40, 40))
    argv = ["--test_dir", folder, "--save_dir", tmp_path / "out", "--weights", weights, "--device", "cpu"]
    command = [sys.executable, str(root / "test.py"), *map(str, argv)]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("[0-9]*.png"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.png")}
    assert 4 <= len(finished) < 12
    assert all(read_rgb(out / name).shape == (160, 160, 3) for name in finished)
    (out / f"{TEMPORARY}abc-{HOST}-999999999").write_bytes(b"cut off")
    done = run_script(*argv)
    assert done.returncode == 0, done.stderr
    recorded = int(done.stdout.split(" finished before")[0].split()[-1])
    assert len(finished) - 1 <= recorded <= len(finished)  # at most the image between its file and its record
    unchanged = sum((out / name).stat().st_mtime_ns == stamp for name, stamp in finished.items())
    assert unchanged == recorded
    assert sorted(path.name for path in out.iterdir()) == [*(f"{n:02}.png" for n in range(12)), RECORD]


def test_changed_inputs_are_restored_anew(tmp_path: Path, lq: Path) -> None:
    restorer = network_restorer()
    restore_inputs(restorer, lq, tmp_path / "out")
    write_png(lq / "0901x4.png", picture(9))
    restore_inputs(restorer, lq, tmp_path / "out")
    expected, _ = restorer(picture(9))
    np.testing.assert_array_equal(read_rgb(tmp_path / "out" / "0901x4.png"), expected)


def test_results_of_other_settings_are_not_mixed(tmp_path: Path, lq: Path, weights: Path) -> None:
    argv = ("--test_dir", lq, "--save_dir", tmp_path / "out", "--weights", weights)
    assert run_script(*argv, "--ensemble", 1).returncode == 0
    refused = run_script(*argv)
    assert refused.returncode == 1
    assert "holds results of other settings (ensemble was 1 and is now 8): use --overwrite" in refused.stderr
    assert run_script(*argv, "--overwrite").returncode == 0
    (tmp_path / "out" / "08_HATFreq" / "test" / RECORD).unlink()
    unknown = run_script(*argv)
    assert unknown.returncode == 1 and f"no {RECORD} that tells how it was made" in unknown.stderr


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "name a folder of low-resolution images"),
        (["--test_dir", "nowhere"], "nowhere does not exist"),
        (["--test_dir", ".", "--model_id", "3"], "model 3 does not exist: 0 is bicubic, 8 is HATFreq"),
        (["--test_dir", ".", "--model_id", "0"], "holds no images"),
        (["--test_dir", ".", "--model_id", "0", "--weights", "w"], "model 0 is bicubic, which has no --weights"),
        (["--test_dir", ".", "--model_id", "0", "--ensemble", "1"], "model 0 is bicubic, which has no --ensemble"),
        (["--test_dir", ".", "..", "--model_id", "0"], ". is a folder, and not the only input: give one folder, or"),
        (["--test_dir", ".", "--tile", "many"], "'auto' or a number of pixels"),
        (["--test_dir", ".", "--device", "tpu"], "device must be auto, cpu, cuda"),
        (["--test_dir", ".", "--device", "cuda:99"], "device cuda:99: PyTorch finds"),
        (["--test_dir", ".", "--precision", "fp16"], "activations overflow in fp16"),
        (["--test_dir", ".", "--weights", "none.pth"], "none.pth does not exist; there are no weights in"),
        (["--test_dir", ".", "--preset", "large"], "hatfreq_large_x4.safetensors does not exist; there are"),
    ],
    ids=str,
)
def test_errors_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, argv: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        organisers_script.main(argv)
    assert text in (str(stop.value.code) if stop.value.code != 2 else capsys.readouterr().err)


def test_weights_of_another_scale_are_refused(tmp_path: Path, lq: Path) -> None:
    save_weights(HATFreq(override(TINY, {"scale": 2})), tmp_path / "x2.safetensors", {})
    argv = ["--test_dir", str(lq), "--save_dir", str(tmp_path / "out"), "--weights", str(tmp_path / "x2.safetensors")]
    with pytest.raises(SystemExit, match="is for x2"):
        organisers_script.main(argv)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_one_line(lq: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(organisers_script, "select_model", stop)
    assert organisers_script.main(["--test_dir", str(lq)]) == 130
    assert capsys.readouterr().err.splitlines() == ["test.py: stopped"]


@pytest.mark.parametrize("units", [False, True])
def test_slow_bf16_is_said(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
    load_restorer(weights, torch.device("cpu"), precision="bf16")
    assert ("several times as fast" in capsys.readouterr().out) != units


def network_restorer(tile: int | None = 0, **options: object) -> HATFreqRestorer:
    values = {"precision": "fp32", "overlap": 4, "ensemble": 1, "settings": {"test": 1}, **options}
    return HATFreqRestorer(tiny_network(), torch.device("cpu"), tile=tile, **values)


def test_every_kind_of_file_comes_out_as_it_went_in(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rgb = picture(0)
    deep = rgb.astype(np.uint16) * 256 + 100
    inputs = {
        "grey": rgb[..., 0],
        "rgb": rgb,
        "rgba": np.dstack([rgb, picture(1)[..., :1]]),
        "deep": deep,
        "deepgrey": deep[..., 0],
        "greyalpha": rgb[..., :2],
        "deepgreyalpha": deep[..., :2],
    }
    for name, samples in inputs.items():
        write_png(folder / f"{name}.png", samples)
    restorer = network_restorer()
    restore_inputs(restorer, folder, tmp_path / "out")
    for name, samples in inputs.items():
        out = read_picture(tmp_path / "out" / f"{name}.png")
        assert out.samples.dtype == samples.dtype, name
        assert out.samples.shape == (48, 68, *samples.shape[2:]), name
    colour = read_rgb(tmp_path / "out" / "rgb.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "rgba.png").rgb, colour)
    eight, sixteen = colour.astype(float) / 255, read_picture(tmp_path / "out" / "deep.png").rgb / 65535
    assert np.abs(eight - sixteen).max() < 1.5 / 255
    assert len(np.unique(sixteen)) > 256  # really sixteen bits
    alpha = read_picture(tmp_path / "out" / "rgba.png").alpha
    assert np.abs(alpha[2::4, 2::4].astype(int) - picture(1)[..., 0]).mean() < 12


def test_memory_that_runs_out_makes_tiles_smaller(tmp_path: Path, lq: Path, capsys: pytest.CaptureFixture) -> None:
    write_png(lq / "0901x4.png", picture(1, 100, 130))
    restorer = network_restorer(tile=0)
    whole = network_restorer(tile=0)(picture(1, 100, 130))[0]
    forward, sizes = restorer.model.forward, []

    def scarce(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape[-2:]))
        if x.shape[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(x)

    restorer.model.forward = scarce
    record = restore_inputs(restorer, lq, tmp_path / "out")
    said = capsys.readouterr().out
    assert "out of memory with the whole image: retrying with tiles of 64x64" in said
    assert "out of memory with tiles of 64x64: retrying with tiles of 32x32" in said
    assert record.images["0901x4.png"]["tile"] == 32
    assert record.images["0900x4.png"]["tile"] == 0  # small enough to stay whole
    restored = read_rgb(tmp_path / "out" / "0901x4.png")
    assert restored.shape == whole.shape
    assert np.abs(restored.astype(int) - whole).mean() < 12
    assert sizes[1:3] == [(100, 130), (64, 64)]


def test_a_terminal_sees_a_bar_with_the_time_left(
    tmp_path: Path, lq: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    restore_inputs(network_restorer(), lq, tmp_path / "quiet")
    assert capsys.readouterr().err == ""  # no bar in a log file
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    restore_inputs(network_restorer(), lq, tmp_path / "out")
    bar = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert bar.startswith("0902x4.png: 100%") and "612/612 [00:0" in bar and "<00:00" in bar  # 3 x 17 x 12 pixels


def test_progress_is_told_pass_by_pass() -> None:
    told = []
    restorer = network_restorer(tile=32, ensemble=8)
    restorer.progress = lambda done, total: told.append((done, total))
    restorer(picture(0, 40, 60))
    assert told == [(n, 32) for n in range(1, 33)]  # two by two tiles of eight passes


def test_memory_that_never_suffices_ends_with_the_remedy(tmp_path: Path, lq: Path) -> None:
    restorer = network_restorer(tile=32)

    def none_left(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")

    restorer.model.forward = none_left
    with pytest.raises(
        RestorationError, match=r"3 of 3 images could not be restored:\n.*0900x4.png: out of memory even"
    ):
        restore_inputs(restorer, lq, tmp_path / "out")


def test_other_errors_are_not_taken_for_memory(tmp_path: Path, lq: Path) -> None:
    restorer = network_restorer()

    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    restorer.model.forward = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        restore_inputs(restorer, lq, tmp_path / "out")


def test_results_that_are_not_finite_are_never_written(tmp_path: Path, lq: Path) -> None:
    restorer = network_restorer()
    nn.init.constant_(restorer.model.upsample[0].bias, float("nan"))
    with pytest.raises(RestorationError, match=r"3 of 3 .*\n.*0900x4\.png: the network's result is not finite"):
        restore_inputs(restorer, lq, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORD]


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("bf16", True)])
def test_fp32_means_fp32_and_cudnn_stays_on(precision: str, tf32: bool) -> None:
    seen = []
    restorer = network_restorer(precision=precision)
    restorer.model.register_forward_pre_hook(
        lambda *_: seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
    )
    restorer(picture(0))
    assert seen == [(True, tf32)]


def test_bf16_is_close_to_fp32() -> None:
    exact, quick = network_restorer()(picture(0))[0], network_restorer(precision="bf16")(picture(0))[0]
    assert 0 < np.abs(exact.astype(int) - quick).max() <= 8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "fp16"}, "fp16 overflows"),
        ({"ensemble": 4}, "ensemble must be 1 or 8"),
        ({"tile": 64, "overlap": 33}, "tile_overlap must be at most half the tile, 32 of 64, got 33"),
        ({"tile": 7}, "at least 32"),
        ({"tile": None, "overlap": -5}, "tile_overlap must be 0 or more"),
        ({"tile": -5}, "tile must be 0 .* got -5"),
    ],
)
def test_unusable_settings_are_refused(options: dict, text: str) -> None:
    with pytest.raises(RestorationError, match=text):
        network_restorer(**options)


@pytest.mark.parametrize(("tile", "overlap"), [(None, 32), (0, 32), (48, 24), (64, 32), (200, 32)])
def test_tiles_share_32_pixels_or_half_of_one(tile: int | None, overlap: int) -> None:
    assert network_restorer(tile=tile, overlap=None).overlap == overlap


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_runs_the_same_path(tmp_path: Path, lq: Path, precision: str) -> None:
    device = torch.device("cuda")
    restorer = HATFreqRestorer(tiny_network().to(device), device, precision, 0, 4, 8)
    expected = network_restorer(ensemble=8)(picture(1))[0]
    restored = restorer(picture(1))[0]
    assert np.abs(restored.astype(int) - expected).max() <= (1 if precision == "fp32" else 8)
    record = restore_inputs(restorer, lq, tmp_path / "out", device=device)
    assert record.content["run"]["peak_memory_kind"] == "GPU memory"
    assert record.content["run"]["peak_memory_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("script", ["test", "train"])
@pytest.mark.parametrize("own", [None, "7"])
def test_threads_spin_briefly_unless_told_otherwise(root: Path, script: str, own: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    if own:
        environment["GOMP_SPINCOUNT"] = own
    # Printed by libgomp itself, which has read it when PyTorch was loaded.
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    argv = [sys.executable, "-c", f"import {script}"]
    done = subprocess.run(argv, cwd=root, env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this PyTorch's threads are not GNU's")
    assert f"GOMP_SPINCOUNT = '{own or 1000}'" in done.stderr
