"""What the benchmarks share: sets, processes, turns, results files, tables and plots."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import common, render, tables
from benchmarks.common import by_turns, in_child, publish, run_script, teachers
from benchmarks.render import RESULTS, draw_quality, quality_points
from evaluation.score import find_sets
from models.team08_HATFreq.image_io import write_png
from utils.environment import shown_command
from utils.files import UserError, file_sha256


def quality_result(*rows: dict[str, Any], teachers: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
    base = {"set": "A", "images": 1, "runtime": "", "parameters": 10**6, "weights": None, "ssim": 0.9, "lpips": None}
    filled = [{**base, "niqe": None, "seconds": None, **row} for row in rows]
    weights = {"file": "w.safetensors", "sha256": "0" * 64, "teachers": list(teachers)}
    return {"kind": "quality", "setting": {"command": "c", "weights": weights}, "rows": filled}


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
    found = by_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2)
    assert calls == ["a", "b"] * 3 and list(found) == ["a", "b"]  # one turn that does not count


def test_a_script_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="status 3"):
        run_script(tmp_path / "fails.py")
    (tmp_path / "works.py").write_text("x = bytes(3 * 10**7)")
    done = run_script(tmp_path / "works.py")
    assert done.peak > 3 * 10**7 and 0 < done.cpu_seconds < done.seconds + 1


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


def test_a_result_is_written_a_row_a_line_with_its_table(tmp_path: Path) -> None:
    rows = [{"what": "bare", "seconds": 2.0}, {"what": "main", "seconds": 3.0}]
    text = publish(tmp_path / "new" / "f.json", "folder", rows, {"command": "c", "notes": ["a note"]})
    lines = (tmp_path / "new" / "f.json").read_text().splitlines()
    assert sum(line.startswith('  {"what"') for line in lines) == 2
    assert json.loads("\n".join(lines))["rows"] == rows
    assert text == (tmp_path / "new" / "f.md").read_text()
    assert "| main | 3.00 | 1.500 |" in text and "- command: `c`" in text and "- a note" in text


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    rows = [{"method": "HATFreq-light", "psnr": 30.0, "seconds": 0.1}, {"method": "Peer", "psnr": 30.5, "seconds": 1.0}]
    result = quality_result(*rows)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        publish(tmp_path / name / "q.json", "quality", result["rows"], result["setting"])
    for kind in ("md", "png", "pdf"):
        assert (tmp_path / "a" / f"q.{kind}").read_bytes() == (tmp_path / "b" / f"q.{kind}").read_bytes()


def test_a_teacher_is_marked_by_its_hash_or_name() -> None:
    rows = [
        {"method": "Peer", "psnr": 30.0, "weights": "ab"},
        {"method": "Other", "psnr": 30.0},
        {"method": "X", "psnr": 1.0},
    ]
    known = ({"name": "file", "sha256": "ab"}, {"name": "Other", "sha256": "not at hand"})
    table, published = tables.quality(quality_result(*rows, teachers=known))
    assert [row[0] for row in table.rows] == ["Peer (teacher)", "Other (teacher)", "X"]
    assert published.rows[5][:3] == ["HAT-S", "9,621,183", "32.92"]


def test_teachers_are_told_by_the_facts_beside_the_weights(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    assert teachers(weights) == []
    one = {"name": "DAT", "sha256": "ab"}
    facts = {"sha256": file_sha256(weights), "runs": [{"teacher": None}, {"teacher": one}, {"teacher": one}]}
    weights.with_suffix(".json").write_text(json.dumps(facts))
    assert teachers(weights) == [one]
    weights.write_bytes(b"others")
    assert teachers(weights) == []


def test_the_plot_holds_what_was_timed_and_names_what_lies_below() -> None:
    rows = [
        {"method": "HATFreq-light", "psnr": 30.0, "seconds": 0.1},
        {"method": "bicubic", "psnr": 26.0, "seconds": 0.01, "parameters": 0},
        {"method": "untimed", "psnr": 31.0},
    ]
    points, below = quality_points(quality_result(*rows))
    assert points == {"HATFreq-light\n1.00 M": (0.1, 30.0)} and below == ["bicubic 26.00 dB"]
    assert draw_quality(quality_result({"method": "untimed", "psnr": 31.0})) is None


def test_labels_do_not_cover_each_other() -> None:
    rows = [{"method": f"method {n}", "psnr": 30 + 0.03 * n, "seconds": 1 + 0.2 * n} for n in range(3)]
    figure = draw_quality(quality_result(*rows, {"method": "HATFreq", "psnr": 30.2, "seconds": 2.0}))
    assert figure is not None
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 4
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[i + 1 :])


def test_steps_and_passes_are_compared_with_their_reference() -> None:
    step = {"preset": "light", "batch": 8, "patch": 32, "peak_bytes": [2 * 10**9]}
    rows = [{**step, "case": "reference HAT", "seconds": [2.0, 4.0]}, {**step, "case": "ours", "seconds": [1.0, 2.0]}]
    (table,) = tables.speed_step({"rows": rows})
    assert [row[3:] for row in table.rows] == [
        ["3.000", "2.000 to 4.000", "1.00x", "2.00"],
        ["1.500", "1.000 to 2.000", "2.00x", "2.00"],
    ]
    one = {"preset": "base", "size": "1x1", "precision": "fp32", "difference": 0.0, "floor_seconds": 1.0}
    kinds = (("HAT", 3.0, 4e6), ("ours", 0.75, 1e6), ("ours, with frequency blocks", 1.0, 2e6))
    rows = [{**one, "kind": k, "seconds": s, "peak_bytes": b} for k, s, b in kinds] * 2
    (table,) = tables.speed_forward({"rows": rows})
    told = [["1.00x", "", "4", "1.00"], ["4.00x", "", "1", "0.25"], ["3.00x", "25.0%", "2", "0.50"]]
    assert [row[5:9] for row in table.rows] == told * 2


@pytest.mark.artefacts
@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_committed_tables_are_rendered_from_the_results(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert render.render(copy) == path.with_suffix(".md").read_text(), "run python -m benchmarks.render"
