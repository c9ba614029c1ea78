"""Several processes as one trainer: the same batches and losses, deaths, a NaN on one rank, signals, bad shares."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

import train
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.weights import read_state_dict
from training.checkpoint import load_checkpoint
from training.config import ConfigError
from training.data import StepBatches, by_step
from training.distributed import World, choose_device, joined

skimage_data = pytest.importorskip("skimage.data")
CPU = torch.device("cpu")
# No stochastic depth: it is drawn anew in every process, so that equal results could not be expected.
TINY = ["embed_dim=12", "depths=1", "num_heads=2", "window_size=8", "drop_path_rate=0.0"]
Launch = Callable[..., subprocess.CompletedProcess[str]]

# Patches the trainer in one process, then runs it: argv[1] is the patch, the rest train.py's command line.
DRIVER = """
import os, signal, sys
from pathlib import Path

import train

patch, rank = sys.argv[1], int(os.environ["RANK"])
honest_step, honest_input = train.train_step, train.to_pair
steps = []


def dying(run, parts):
    marker = Path(run.config.out) / "died"
    if run.step == 3 and rank == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return honest_step(run, parts)


def counting(run, parts):
    steps.append(run.step)
    return honest_step(run, parts)


def spoiling(batch, device):
    factor = float("nan") if rank == 1 and steps[-1] == 2 else 1.0
    return [part * factor for part in honest_input(batch, device)]


if patch == "dies":
    train.train_step = dying
if patch == "nan":
    train.train_step, train.to_pair = counting, spoiling
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("train", "valid"):
        (tmp_path / name).mkdir()
    for number in range(4):
        write_png(tmp_path / "train" / f"{number}.png", skimage_data.astronaut()[:, number * 128 : number * 128 + 128])
    for number in range(3):
        write_png(tmp_path / "valid" / f"{number}.png", skimage_data.chelsea()[60:124, number * 64 : number * 64 + 64])
    return tmp_path


def words(folders: Path, name: str, *more: str) -> list[str]:
    fixed = (
        "--batch 4 --patch 16 --warmup 2 --grad_clip 1 --workers 0 --device cpu --threads 1 --steps 6 --save_every 1"
    )
    paths = ["--data", str(folders / "train"), "--valid_hr", str(folders / "valid"), "--out", str(folders / name)]
    return [*paths, *fixed.split(), "--valid_every", "1", "--model_overrides", *TINY, *more]


def launcher(root: Path, folders: Path, script: list[str], restarts: int = 0) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*torchrun, "--max_restarts", str(restarts), *script]


@pytest.fixture
def two_processes(root: Path, folders: Path) -> Launch:
    """Runs a script under torchrun with two processes on the CPU (gloo)."""

    def launch(script: list[str], restarts: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = launcher(root, folders, script, restarts)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return launch


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, validation and averaged weights agree within float tolerance."""
    assert [row["step"] for row in log(one)] == [row["step"] for row in log(other)] == [str(n) for n in range(1, 7)]
    for a, b in zip(log(one), log(other), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
        assert float(a["psnr"]) == pytest.approx(float(b["psnr"]), abs=0.01)
    weights, others = read_state_dict(one / "last.safetensors"), read_state_dict(other / "last.safetensors")
    for key, tensor in weights.items():
        torch.testing.assert_close(tensor, others[key], rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_two_processes_with_accumulation_train_as_one(root: Path, folders: Path, two_processes: Launch) -> None:
    assert train.main(words(folders, "one")) == 0
    done = two_processes([str(root / "train.py"), *words(folders, "two", "--micro_batch", "1")])
    assert done.returncode == 0, done.stderr
    assert "a step: 4 patches = 2 process(es) x 2 pass(es) x 1" in done.stdout
    assert done.stdout.count("done: ") == 1  # one process speaks
    assert_same_run(folders / "one", folders / "two")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(root: Path, folders: Path, two_processes: Launch) -> None:
    assert train.main(words(folders, "one")) == 0
    done = two_processes([str(root / "train.py"), *words(folders, "moved", "--max_minutes", "1e-9")])
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(folders / "moved")[0]["step"] == 1
    assert train.main(words(folders, "moved")) == 0
    assert_same_run(folders / "one", folders / "moved")


@pytest.mark.slow
def test_torchruns_restart_goes_on_after_a_rank_died(folders: Path, two_processes: Launch) -> None:
    assert train.main(words(folders, "one")) == 0
    (folders / "driver.py").write_text(DRIVER)
    done = two_processes([str(folders / "driver.py"), "dies", *words(folders, "two")], restarts=1)
    assert done.returncode == 0, done.stderr
    assert (folders / "two" / "died").exists()
    assert "resuming" in done.stdout
    assert_same_run(folders / "one", folders / "two")


@pytest.mark.slow
def test_a_nan_on_one_rank_stops_all_with_step_rate_and_files(folders: Path, two_processes: Launch) -> None:
    (folders / "driver.py").write_text(DRIVER)
    done = two_processes([str(folders / "driver.py"), "nan", *words(folders, "two")])
    assert done.returncode != 0
    for rank in (0, 1):
        assert f"[rank{rank}]" in done.stderr or "loss is nan at step 2, lr 0.00" in done.stderr
    assert done.stderr.count("loss is nan at step 2, lr 0.00") == 2  # every process says so and leaves
    assert "train/0.png" in done.stderr or "train/1.png" in done.stderr
    assert load_checkpoint(folders / "two")[0]["step"] == 2


@pytest.mark.slow
def test_preemption_ends_with_a_checkpoint(root: Path, folders: Path) -> None:
    script = [str(root / "train.py"), *words(folders, "two", "--steps", "100000")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        launcher(root, folders, script), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (folders / "two" / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "stopped at step " in output
    state, _ = load_checkpoint(folders / "two")
    assert state["step"] == int(output.split("stopped at step ")[1].split()[0])


def test_shares_follow_one_another_in_the_global_batch() -> None:
    whole = list(islice(StepBatches(5, micro=4), 2))
    assert whole == [[(step, index) for index in range(4)] for step in (5, 6)]
    for size, micro in [(2, 2), (2, 1), (4, 1)]:
        passes = 4 // size // micro
        ranks = [list(islice(by_step(StepBatches(5, micro, passes, rank), passes), 2)) for rank in range(size)]
        for number in range(2):
            assert [key for rank in ranks for part in rank[number] for key in part] == whole[number]


@pytest.mark.parametrize(
    ("size", "batch", "micro", "expected"),
    [(1, 16, 0, (16, 1)), (1, 16, 4, (4, 4)), (4, 16, 0, (4, 1)), (4, 16, 2, (2, 2))],
)
def test_shares(size: int, batch: int, micro: int, expected: tuple[int, int]) -> None:
    assert World(0, size, CPU).share(batch, micro) == expected


@pytest.mark.parametrize(
    ("size", "batch", "micro", "text"),
    [
        (3, 16, 0, "3 processes cannot share a global batch of 16 evenly: set batch to 15 or 18"),
        (4, 3, 0, "set batch to 4"),
        (2, 16, 3, "micro_batch 3 does not divide the 8 patches of a process .*: set it to a divisor of 8"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(size: int, batch: int, micro: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        World(0, size, CPU).share(batch, micro)


def test_one_process_before_several_gpus_is_refused(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(
        ConfigError, match="4 GPUs and one process: start with 'torchrun --standalone --nproc_per_node 4"
    ):
        next(joined("auto").gen)
    with pytest.raises(SystemExit, match="4 GPUs and one process"):
        train.main(words(folders, "one", "--device", "auto"))
    assert not (folders / "one").exists()


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or cuda:N, got 'tpu'"):
        choose_device("tpu")
    with pytest.raises(ConfigError, match="GPU 99 asked for"):
        choose_device("cuda:99")
    assert choose_device("cpu", local_rank=1) == CPU
