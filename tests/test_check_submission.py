"""The organisers' rules: a good copy passes, and each of many broken ones is refused with the right sentence."""

import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.team08_HATFreq.image_io import write_png
from scripts import check_submission
from submission.checks import CHECKS, LARGEST, Fault, check
from submission.facts import FactsError, missing, read_facts
from submission.tree import build, restore

FOLDER = "team08_HATFreq"
WEIGHTS = f"model_zoo/{FOLDER}/hatfreq_light_x4.safetensors"
HOME = "/".join(["", "home", "someone"])  # not in one piece: this file is checked as well
INIT = f"models/{FOLDER}/__init__.py"
WRAPPED = """
from pathlib import Path
from .images import read_rgb, write_png

def main(model_dir, input_path, output_path, device):
    for path in Path(input_path).iterdir():
        lq = read_rgb(path)
        write_png(Path(output_path) / {name}, lq.repeat({scale}, 0).repeat({scale}, 1))
"""


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """What the checks look at, copied."""
    target = tmp_path / "copy"
    for part in ("models", "model_zoo"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / part / FOLDER, target / part / FOLDER, ignore=ignored)
    for name in ("README.md", "requirements.txt", "test.py", "eval.py", "submission.yaml"):
        shutil.copy(root / name, target / name)
    return target


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Changes one text in a file, which must be there."""

    def act(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return act


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return act


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / old).rename(root / new) and None


def picture(name: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(root / name, np.zeros((4, 4, 3), np.uint8))

    return act


def sparse(name: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        with (root / name).open("wb") as file:
            file.truncate(LARGEST + 1)

    return act


def cut_weights(root: Path) -> None:
    content = (root / WEIGHTS).read_bytes()
    (root / WEIGHTS).write_bytes(content[: len(content) // 2])


def poison_weights(root: Path) -> None:
    state = load_file(root / WEIGHTS)
    state["conv_first.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, root / WEIGHTS)


class Code:
    """A pickle of this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def main_with(parameters: str) -> Callable[[Path], None]:
    return write(INIT, f"def main({parameters}):\n    pass\n")


def git(root: Path, *words: str) -> None:
    words = ("-c", "user.name=a", "-c", "user.email=a@b", *words)
    subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


def large_history(root: Path) -> None:
    sparse("large.bin")(root)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "large")
    git(root, "rm", "-q", "large.bin")
    git(root, "commit", "-qm", "small again")


BROKEN = {
    "no README": ("needed_files", remove("README.md"), "README.md is missing"),
    "no requirements": ("needed_files", remove("requirements.txt"), "requirements.txt is missing"),
    "no test.py": ("needed_files", remove("test.py"), "test.py is missing"),
    "id without its zero": (
        "folders",
        rename(f"models/{FOLDER}", "models/team8_HATFreq"),
        "models/team08_HATFreq does not exist (there is team8_HATFreq)",
    ),
    "hyphen": ("folders", rename(f"models/{FOLDER}", "models/team08-HATFreq"), "(there is team08-HATFreq)"),
    "no weights' folder": ("folders", remove("model_zoo"), "model_zoo/team08_HATFreq does not exist"),
    "file with a hyphen": ("folders", write(f"models/{FOLDER}/my-net.py", ""), "my-net.py cannot be imported"),
    "no __init__": ("entry", remove(INIT), "__init__.py is missing"),
    "no main": ("entry", write(INIT, "from .network import HATFreq\n"), "has no main"),
    "main of three": ("entry", main_with("model_dir, input_path, output_path"), "main takes (model_dir, input_path,"),
    "other order": (
        "entry",
        main_with("input_path, model_dir, output_path, device"),
        "main takes (input_path, model_dir, output_path, device)",
    ),
    "main of five": (
        "entry",
        main_with("model_dir, input_path, output_path, device, precision"),
        "wants more than four parameters",
    ),
    "a keyword without default": (
        "entry",
        main_with("model_dir, input_path, output_path, device, *, tile"),
        "wants more than four parameters",
    ),
    "syntax": ("entry", write(INIT, "def main(:\n"), "is not Python"),
    "import of our own": (
        "imports",
        replace(f"models/{FOLDER}/inference.py", "import os\n", "import os\nfrom utils.metrics import psnr_y\n"),
        "inference.py imports utils",
    ),
    "foreign library": (
        "imports",
        replace(f"models/{FOLDER}/inference.py", "import os\n", "import os\nimport basicsr\n"),
        "imports basicsr",
    ),
    "no weights": ("weights", remove(WEIGHTS), "holds no weights"),
    "truncated weights": ("weights", cut_weights, "damaged or truncated"),
    "weights not finite": ("weights", poison_weights, "holds values that are not finite in conv_first.weight"),
    "weights with code": (
        "weights",
        write(f"model_zoo/{FOLDER}/w.pth", pickle.dumps({"a": Code()}, protocol=2)),
        "which could run code",
    ),
    "other checksum": ("weights", write(f"{WEIGHTS}.sha256", "0" * 64), "is not the released file"),
    "no checksum": ("weights", remove(f"{WEIGHTS}.sha256"), "has no .sha256 beside it"),
    "no card": ("weights", remove(WEIGHTS.replace(".safetensors", ".md")), "the card of the weights, is missing"),
    "card of others": (
        "weights",
        write(WEIGHTS.replace(".safetensors", ".md"), f"423,582 parameters, {'0' * 64}"),
        "is the card of other weights",
    ),
    "card's parameters": (
        "weights",
        replace(WEIGHTS.replace(".safetensors", ".md"), "423,582 parameters", "413,070 parameters"),
        "does not say 423,582 parameters",
    ),
    "large weights": ("weights", sparse(WEIGHTS), "hatfreq_light_x4.safetensors has more than 100 MB"),
    "a link to nowhere": ("weights", write(f"model_zoo/{FOLDER}/{FOLDER}.txt", f"{'0' * 64}"), "holds no link"),
    "a link unchecked": (
        "weights",
        write(f"model_zoo/{FOLDER}/{FOLDER}.txt", "https://example.org/w"),
        "holds no sha256",
    ),
    "a home folder": (
        "places",
        replace("test.py", "import argparse\n", f'import argparse\nDATA = "{HOME}/data"\n'),
        f"names a folder of one machine: {HOME}",
    ),
    "a Windows folder": ("places", write("a.md", "C:" + r"\Users\me"), "a.md, line 1, names a folder of one machine"),
    "a result": ("images", picture("results/08_HATFreq/test/0901x4.png"), "0901x4.png is an image where data or"),
    "an input": ("images", picture("data/LR/0901x4.png"), "0901x4.png is an image where data or"),
    "a large file": ("sizes", sparse("large.bin"), "large.bin has more than 100 MB"),
    "a large file of the past": ("sizes", large_history, "git's history holds large.bin of 100 MB"),
    "no branch": (
        "branch",
        replace("README.md", "elif model_id == 8:", "elif model_id == 7:"),
        "README.md does not show the organisers 'elif model_id == 8:'",
    ),
    "other names": ("run", write(INIT, WRAPPED.format(name='f"{path.stem}_x4.png"', scale=4)), "0901x4_x4.png"),
    "other size": ("run", write(INIT, WRAPPED.format(name="path.name", scale=3)), "becomes 27x39 of 9x13"),
    "a crash": ("run", write(INIT, "def main(*args):\n    raise RuntimeError('no luck')\n"), "RuntimeError: no luck"),
    "another team": ("folders", replace("submission.yaml", "team_id: 8", "team_id: 9"), "models/team09_HATFreq does"),
}
NAMES = {function.__name__: name for name, function in CHECKS.items()}


def refused(root: Path, name: str) -> list[Fault]:
    (faults,) = check(root, [NAMES[name]]).values()
    return faults


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_copy_is_refused(copy: Path, case: str) -> None:
    name, act, sentence = BROKEN[case]
    act(copy)
    faults = refused(copy, name)
    assert any(sentence in fault.wrong for fault in faults), faults
    assert all(fault.remedy for fault in faults)


def test_a_good_copy_passes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_submission.main(["--root", str(copy)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok  ") == len(CHECKS) and out.endswith("nothing to complain about\n")


def test_the_repository_passes_what_needs_no_run(root: Path) -> None:
    assert not any(check(root, [name for name in CHECKS if name != NAMES["run"]]).values())


def test_faults_are_printed_and_end_with_1(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "submission.yaml").unlink()
    assert check_submission.main(["--root", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "fault submission.yaml" in out and "does not exist" in out and out.endswith("1 fault(s)\n")


def test_the_minimal_tree_fails_where_more_is_imported(copy: Path, tmp_path: Path) -> None:
    """Someone's own `utils` beside the two folders would hide a missing file."""
    replace(INIT, "from .io import main", "import utils\n\nfrom .io import main")(copy)
    build(copy, tmp_path / "tree", FOLDER, 8, "HATFreq")
    write("tree/utils/__init__.py", "")(tmp_path)
    picture("LR/0901x4.png")(tmp_path)
    done = restore(tmp_path / "tree", 8, tmp_path / "LR", tmp_path / "out")
    assert done.returncode == 1 and "more was imported than the submission's folder: ['utils']" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("team: a", "unknown key 'team': did you mean 'team_id'?"),
        ("phone: 1", "'phone' does not belong into a published file"),
        ("members: [{name: a, telephone: 1}]", "members: 'telephone' does not belong"),
        ("members: [a]", "members: expected `key: value` lines, got str"),
        ("team_id: '8'", "team_id must be a int, got '8'"),
        ("user_names: a", "user_names must be a list, got 'a'"),
        ("- a", "expected `key: value` lines, got list"),
        ("a: [", "is not YAML"),
    ],
)
def test_facts_that_cannot_be_used_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "submission.yaml").write_text(text)
    with pytest.raises(FactsError, match=r"submission\.yaml") as caught:
        read_facts(tmp_path / "submission.yaml")
    assert message in str(caught.value)


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    facts = read_facts(root / "submission.yaml")
    assert facts.folder == FOLDER and set(missing(facts)) <= {"code", "results", "user_names", "members"}
    (tmp_path / "s.yaml").write_text("team_id: 8\nmembers: [{name: A, email: a@b.c}]")
    found = missing(read_facts(tmp_path / "s.yaml"))
    assert "members[1].affiliation" in found and "team_name" in found and "team_id" not in found
