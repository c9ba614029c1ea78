"""What the benchmarks share: sets, processes, turns, results files, tables and plots."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common
from benchmarks.common import by_turns, in_child, publish, run_script
from evaluation.score import find_sets
from models.team08_HATFreq.image_io import write_png
from utils.environment import shown_command
from utils.files import UserError, file_sha256


def test_sets_come_smallest_first_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    for name, count in (("Large", 2), ("Small", 1)):
        for number in range(count):
            for kind, one in (("HR", image), ("LRbicx4", image[::4, ::4])):
                (tmp_path / name / kind).mkdir(parents=True, exist_ok=True)
                write_png(tmp_path / name / kind / f"{number}{'x4' * (kind != 'HR')}.png", np.ascontiguousarray(one))
    sets = find_sets(tmp_path)
    assert list(sets) == ["Small", "Large"] and common.named(sets) == "Small (1), Large (2)"
    assert list(find_sets(tmp_path, ["Large"])) == ["Large"]
    with pytest.raises(UserError, match=r"Set5.*Large, Small"):
        find_sets(tmp_path, ["Set5"])
    with pytest.raises(UserError, match="HR and LRbicx4"):
        find_sets(tmp_path / "Small")


def test_a_child_is_another_process_and_ways_take_turns() -> None:
    assert in_child(os.getpid) != os.getpid()
    calls: list[str] = []
    result = by_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2)
    assert calls == ["a", "b"] * 3 and list(result) == ["a", "b"]  # one turn that does not count


def test_a_script_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="status 3"):
        run_script(tmp_path / "fails.py")
    (tmp_path / "works.py").write_text("import time; time.sleep(0.2)")
    assert 0.2 < run_script(tmp_path / "works.py") < 60


def test_added_memory_is_the_peak_of_the_work_alone() -> None:
    many = [bytes(1000) for _ in range(10**5)]  # 100 MB, of which the heap keeps what is freed
    few = many[::1000]
    del many
    for _ in range(2):  # the second finds what the first has freed
        added = common.added_memory(common.CPU, lambda: [bytes(1000) for _ in range(4 * 10**4)])
        assert added == pytest.approx(4.2e7, rel=0.2) and len(few) == 100
    assert common.added_memory(common.CPU, lambda: None) < 10**6


def test_a_killed_benchmark_leaves_no_process_at_work(tmp_path: Path, root: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import os, sys, time\nfrom benchmarks.common import in_child\n"
        "def tell_and_wait():\n    print(os.getpid(), flush=True)\n    time.sleep(300)\n"
        "if __name__ == '__main__':\n    in_child(tell_and_wait)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        try:
            process.communicate(timeout=15)  # waits for the pipe's last holder, which is the child
        except subprocess.TimeoutExpired:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child stayed after its parent was killed")


def test_a_command_shows_no_folder_of_the_machine() -> None:
    assert shown_command(["--bench", "/a/b/data/bench", "--rounds", "3"]).endswith("--bench .../data/bench --rounds 3")


def test_a_result_is_its_tables_and_its_setting(tmp_path: Path) -> None:
    rows = [{"what": "bare", "seconds": 2.0}, {"what": "main", "seconds": 3.0}]
    publish(tmp_path / "new" / "f.md", {"one": rows, "two": rows[:1]}, {"command": "`c`", "tile": "auto"})
    assert (tmp_path / "new" / "f.md").read_text() == (
        "### one\n\n| what | seconds |\n| --- | --- |\n| bare | 2.0 |\n| main | 3.0 |\n\n"
        "### two\n\n| what | seconds |\n| --- | --- |\n| bare | 2.0 |\n\n- command: `c`\n- tile: auto\n"
    )


def test_a_setting_holds_the_hash_of_the_weights_and_leaves_out_what_is_empty(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    result = common.setting(["--x"], tmp_path / "w.bin", packages=["numpy"], data="d", rounds="")
    assert result["weights"] == f"w.bin, sha256 `{file_sha256(tmp_path / 'w.bin')[:12]}`"
    assert result["data"] == "d" and "rounds" not in result and f"numpy {np.__version__}" in result["versions"]
