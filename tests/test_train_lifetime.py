"""Nothing hangs and nothing is doubled: errors, kills and signals end all of a run, and a folder has one owner."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import train
from tests.training_run import alive, assert_equal_runs, checkpoint, process_tree, wait_until
from training.lifetime import owned

pytestmark = pytest.mark.usefixtures("one_thread")
SECONDS = 30  # within which all must be gone
LONG = ["--steps", "100000", "--valid_every", "100000", "--workers", "1", "--save_every", "100000"]

# What a rank does in its fourth step.
FAULT = """
def faulty(run, *more, honest=train.train_step):
    if run.step == 3 {condition}:
        time.sleep(2)  # in which the test looks at the processes
        {fault}
    return honest(run, *more)
train.train_step = faulty
"""
ERROR = 'raise RuntimeError("CUDA error: an illegal memory access was encountered")'
OUT_OF_MEMORY = 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")'
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_WORKER = (
    'os.kill(int(open(f"/proc/self/task/{os.getpid()}/children").read().split()[0]), signal.SIGKILL); time.sleep(60)'
)


SLOW_VALIDATION = """
import training.validation
def slow(*words, honest=training.validation.score, **more):
    print("validating", flush=True)
    time.sleep(1)
    return honest(*words, **more)
training.validation.score = slow
"""


def fault(what: str, condition: str = "") -> str:
    return FAULT.format(fault=what, condition=condition)


def assert_all_gone(run, family: list[int], began: float) -> dict[int, int]:
    """Every process of the run has left in time, and no rank with status 0."""
    statuses = run.wait(SECONDS)
    wait_until(lambda: not alive(family), SECONDS - (time.monotonic() - began), run)
    assert all(statuses.values()), statuses
    return statuses


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (ERROR, "illegal memory access"),
        (OUT_OF_MEMORY, "out of memory: set --micro_batch"),
        (KILL_WORKER, "processes deliver nothing"),
        (KILL, ""),
    ],
    ids=["error", "out of memory", "killed worker", "killed"],
)
@pytest.mark.slow
def test_an_error_ends_a_run_and_its_workers(server, command, what, message):
    run = server.start(command("run", *LONG), patch=fault(what))
    run.wait_for("step 3/")
    family = run.family()
    assert_all_gone(run, family, time.monotonic())
    assert len(family) >= 2 or what == KILL_WORKER, "the worker was not seen"
    assert message in run.said


def test_a_killed_rank_ends_the_others(server, command):
    run = server.start(command("run", *LONG), ranks=2)
    run.wait_for("step 3/")
    family, began = run.family(), time.monotonic()
    os.kill(run.pids[0], signal.SIGKILL)
    assert assert_all_gone(run, family, began)[0] == -signal.SIGKILL
    assert len(family) == 4 and "another process of this run is gone" in run.said, run.said


@pytest.mark.slow
def test_ranks_leave_when_what_started_them_is_killed(server, command):
    run = server.start(command("run", *LONG), ranks=2)
    run.wait_for("step 3/")
    family, began = run.family(), time.monotonic()
    os.kill(run.notes[0]["launcher"], signal.SIGKILL)
    wait_until(lambda: not alive(family), SECONDS - (time.monotonic() - began), run)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_that_resumes_exactly(server, command, tmp_path, number, status):
    # A constant rate: it does not depend on --steps, so that both runs may end soon after the stop.
    arguments = ["--lr", "1e-3", "--min_lr", "1e-3", "--warmup", "0", "--valid_every", "1000"]
    run = server.start(command("stopped", *arguments, "--steps", "1000", "--workers", "1"))
    run.wait_for("step 3/")
    for _ in range(2):  # the loader's worker gets it too, as from a terminal or a cluster; torchrun hands it on as well
        os.killpg(run.pids[0], number)
    assert run.wait() == {0: status}, run.said
    assert "Traceback" not in run.said
    reached = checkpoint(tmp_path / "stopped")["step"]
    assert 3 <= reached < 1000
    assert f"stopped at step {reached} of 1000" in run.said
    for name in ("stopped", "whole"):
        assert train.main(command(name, *arguments, "--steps", str(reached + 2))) == 0
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_in_the_middle_of_a_validation_is_obeyed_and_the_validation_made_up_for(server, command, tmp_path):
    valid = command("x")[5]
    argv = ["--steps", "8", "--valid_every", "4", "--valid_hr", valid, f"{valid}/**", "--workers", "1"]
    run = server.start(command("stopped", *argv), patch=SLOW_VALIDATION)
    run.wait_for("validating")
    os.kill(run.pids[0], signal.SIGTERM)
    assert run.wait() == {0: 143}
    assert "stopped at step 4 of 8" in run.said and "PSNR" not in run.said
    for name in ("stopped", "whole"):
        assert train.main(command(name, *argv)) == 0
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_second_signal_in_a_validation_ends_the_run_at_once(server, command, tmp_path):
    valid = command("x")[5]
    argv = ["--steps", "8", "--valid_every", "4", "--valid_hr", valid, "--workers", "1", "--save_every", "2"]
    run = server.start(command("run", *argv), patch=SLOW_VALIDATION.replace("sleep(1)", "sleep(100)"))
    run.wait_for("validating")
    family, began = run.family(), time.monotonic()
    os.kill(run.pids[0], signal.SIGTERM)
    time.sleep(6)  # a signal within five seconds is the first one's echo
    os.kill(run.pids[0], signal.SIGTERM)
    assert assert_all_gone(run, family, began) == {0: -signal.SIGTERM}
    assert checkpoint(tmp_path / "run")["step"] == 2  # the fourth step's comes after its validation


@pytest.mark.slow
def test_torchrun_killed_while_its_ranks_import_leaves_none(root: Path, command, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen([*torchrun, str(root / "train.py"), *command("run", *LONG)], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(process_tree(process.pid)) == 3, 60)  # the ranks exist, and import for seconds
    family = process_tree(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(family), SECONDS)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "1m"])
def test_a_small_shared_memory_is_enough(root: Path, command, tmp_path: Path, size: str) -> None:
    argv = command("run", "--steps", "3", "--workers", "2")
    script = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"'
    contained = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "-"]
    if subprocess.run([*contained, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system mounts nothing in a namespace of its own")
    began = time.monotonic()
    done = subprocess.run(
        [*contained, sys.executable, str(root / "train.py"), *argv], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert checkpoint(tmp_path / "run")["step"] == 3 and time.monotonic() - began < 90


@pytest.mark.slow
def test_torchrun_ends_with_a_checkpoint_and_does_not_outlive_its_death(root: Path, command, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    argv = command("run", "--steps", "100000", "--workers", "1", "--log_every", "0", "--valid_every", "100000")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        output = (tmp_path / "output.txt").open("w+")
        process = subprocess.Popen(
            [*torchrun, str(root / "train.py"), *argv], env=environment, stdout=output, stderr=output, text=True
        )
        wait_until(lambda: (tmp_path / "output.txt").read_text().count("\nstep ") > 2, 120)
        family = process_tree(process.pid)
        assert len(family) == 5
        process.send_signal(number)
        assert process.wait(60) != 0
        wait_until(partial(lambda pids: not alive(pids), family), SECONDS)
        said = (tmp_path / "output.txt").read_text()
        assert ("stopped at step" in said) == (number != signal.SIGKILL), said
    assert checkpoint(tmp_path / "run")["step"] > 3


def test_a_second_start_is_refused(server, command, tmp_path):
    run = server.start(command("run", *LONG))
    run.wait_for("step 2/")
    with pytest.raises(SystemExit, match="run is in use"):
        train.main(command("run", *LONG))
    os.kill(run.pids[0], signal.SIGKILL)
    run.wait()
    assert train.main(command("run", *LONG, "--max_minutes", "1e-9")) == 0, "the lock did not end with its holder"


def test_a_folder_that_cannot_be_made_is_named(command, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file"):
        train.main(command("file"))


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="x"), owned(tmp_path / "run"):
        raise ValueError("x")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_leaves_a_hanging_read_with_a_checkpoint_and_a_kill_takes_the_worker_along(server, command, tmp_path):
    hang = """
import training.data
def hanging(self, key, honest=training.data.Patches.__getitem__):
    if key[0] == 5:
        os.read(os.pipe()[0], 1)
    return honest(self, key)
training.data.Patches.__getitem__ = hanging
"""
    for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        run = server.start(command(f"run{number}", *LONG), patch=hang)
        run.wait_for("step 5/")
        family, began = run.family(), time.monotonic()
        os.kill(run.pids[0], number)
        assert assert_all_gone(run, family, began) == {0: status}
    assert checkpoint(tmp_path / f"run{signal.SIGTERM}")["step"] == 5
