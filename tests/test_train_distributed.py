"""Several processes as one trainer: the same batches and losses, a NaN on one rank, torchrun's restart, bad shares."""

import csv
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

import train
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.weights import read_state_dict
from training.checkpoint import load_checkpoint
from training.config import ConfigError
from training.data import StepBatches
from training.distributed import joined, share

skimage_data = pytest.importorskip("skimage.data")
CPU = torch.device("cpu")
# No stochastic depth: every process draws its own, so that equal results could not be expected.
TINY = ["embed_dim=12", "depths=1", "num_heads=2", "window_size=8", "drop_path_rate=0.0"]
NAN_ON_RANK_1 = """
def spoiling(batch, device, honest=train.to_pair):
    factor = float("nan") if rank == 1 and steps == [0, 1, 2] else 1.0
    return [part * factor for part in honest(batch, device)]

def counting(run, parts, honest=train.train_step):
    steps.append(run.step)
    return honest(run, parts)

steps = []
train.train_step, train.to_pair = counting, spoiling
"""
# Dies once, in the fourth step of rank 1.
DRIVER = """
import os, signal, sys
from pathlib import Path
import train
from training.lifetime import exit_with

def dying(run, parts, honest=train.train_step):
    marker = Path(run.config.out) / "died"
    if run.step == 3 and os.environ["RANK"] == "1" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(run, parts)

train.train_step = dying
exit_with(train.main)
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
    paths = ["--data", str(folders / "train"), "--valid_hr", str(folders / "valid"), "--out", str(folders / name)]
    fixed = ["--batch", "4", "--patch", "16", "--warmup", "2", "--grad_clip", "1", "--workers", "0", "--device", "cpu"]
    fixed += ["--threads", "1", "--steps", "6", "--save_every", "1", "--valid_every", "2", "--no-tensorboard"]
    return [*paths, *fixed, "--model_overrides", *TINY, *more]


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, validation and averaged weights agree within float tolerance."""
    assert [row["step"] for row in log(one)] == [row["step"] for row in log(other)] == ["2", "4", "6"]
    for a, b in zip(log(one), log(other), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
        assert float(a["psnr"]) == pytest.approx(float(b["psnr"]), abs=0.01)
    weights, others = read_state_dict(one / "last.safetensors"), read_state_dict(other / "last.safetensors")
    for key, tensor in weights.items():
        torch.testing.assert_close(tensor, others[key], rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_two_processes_with_accumulation_train_as_one_and_one_resumes_what_two_began(server, folders: Path) -> None:
    assert train.main(words(folders, "one")) == 0
    two = server.start(words(folders, "two", "--micro_batch", "1"), ranks=2)
    assert two.wait() == {0: 0, 1: 0}, two.said
    assert "a step: 4 patches = 2 process(es) x 2 pass(es) x 1" in two.said
    assert two.said.count("done: ") == 1  # one process speaks
    assert_same_run(folders / "one", folders / "two")
    begun = server.start(words(folders, "moved", "--max_minutes", "1e-9"), ranks=2)
    assert begun.wait() == {0: 0, 1: 0}, begun.said
    assert load_checkpoint(folders / "moved")[0]["step"] == 1
    assert train.main(words(folders, "moved")) == 0
    assert_same_run(folders / "one", folders / "moved")


def test_a_nan_on_one_rank_stops_all_with_step_rate_and_files(server, folders: Path) -> None:
    run = server.start(words(folders, "two"), ranks=2, patch=NAN_ON_RANK_1)
    assert run.wait() == {0: 1, 1: 1}
    assert "loss is nan at step 2, lr 0.00" in run.said  # said by both, if the slower one has the time to
    assert re.search(r"files .*train/[01]\.png", run.said) and "--grad_clip" in run.said
    assert load_checkpoint(folders / "two")[0]["step"] == 2


def test_a_fault_that_all_share_ends_all(server, folders: Path) -> None:
    run = server.start(words(folders, "two", "--data", str(folders / "none")), ranks=2)
    assert run.wait(20) == {0: 1, 1: 1}
    assert "none does not exist" in run.said and "Traceback" not in run.said


@pytest.mark.slow
def test_torchruns_restart_resumes_after_a_rank_died(root: Path, folders: Path) -> None:
    assert train.main(words(folders, "one")) == 0
    (folders / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "--max_restarts", "1", str(folders / "driver.py"), *words(folders, "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (folders / "two" / "died").exists()
    assert "resuming" in done.stdout
    assert_same_run(folders / "one", folders / "two")


def test_shares_follow_one_another_in_the_global_batch() -> None:
    whole = list(islice(StepBatches(5, micro=4), 2))
    assert whole == [[(step, index) for index in range(4)] for step in (5, 6)]
    for size, micro in [(2, 2), (2, 1), (4, 1)]:
        passes = 4 // size // micro
        ranks = [list(islice(StepBatches(5, micro, passes, rank), 2 * passes)) for rank in range(size)]
        for number in range(2):
            parts = [part for rank in ranks for part in rank[number * passes : (number + 1) * passes]]
            assert [key for part in parts for key in part] == whole[number]


@pytest.mark.parametrize(
    ("size", "batch", "micro", "expected"),
    [(1, 16, 0, (16, 1)), (1, 16, 4, (4, 4)), (4, 16, 0, (4, 1)), (4, 16, 2, (2, 2))],
)
def test_shares(size: int, batch: int, micro: int, expected: tuple[int, int]) -> None:
    assert share(batch, micro, size) == expected


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
        share(batch, micro, size)


def test_one_process_before_several_gpus_is_refused(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"4 GPUs and one process: .*--nproc_per_node 4"):
        next(joined("auto", 10).gen)
    with pytest.raises(SystemExit, match="4 GPUs and one process"):
        train.main(words(folders, "one", "--device", "auto"))
    assert not (folders / "one").exists()


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:99"])
def test_devices_that_are_not_there_are_refused(folders: Path, name: str) -> None:
    with pytest.raises(SystemExit, match="device "):
        train.main(words(folders, "one", "--device", name))
