"""A tree laid out like the organisers' repository, with nothing of ours in it but the two folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# A test.py of the organisers' contract: their flags, the branch that a team adds, results in <save_dir>/<name>/<mode>.
# Written anew; it runs on the CPU where theirs needs a GPU, and fails if more than the submission's folder is imported.
TEST = """
import argparse
import os
import sys

import torch


def select_model(model_id):
    if model_id == {number}:
        from models.{folder} import main as method
        return f"{{model_id:02}}_{method}", os.path.join("model_zoo", "{folder}"), method
    raise NotImplementedError(f"model {{model_id}}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag in ("--valid_dir", "--test_dir", "--save_dir"):
        parser.add_argument(flag)
    parser.add_argument("--model_id", type=int)
    args = parser.parse_args()
    name, model_path, model_func = select_model(args.model_id)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for mode in ("valid", "test"):
        folder = getattr(args, f"{{mode}}_dir")
        if folder:
            output = os.path.join(args.save_dir, name, mode)
            os.makedirs(output, exist_ok=True)
            model_func(model_path, folder, output, device)
    parts = ("utils", "training", "evaluation", "data_curation", "models")
    ours = sorted(module for module in sys.modules if module.split(".")[0] in parts)
    foreign = [one for one in ours if one != "models" and not one.startswith("models.{folder}")]
    if foreign:
        sys.exit(f"more was imported than the submission's folder: {{foreign}}")
"""


def build(root: Path, tree: Path, folder: str, number: int, method: str) -> None:
    """Lay out the tree with the two folders of a submission.

    Args:
        root: the repository that holds them.
        tree: folder to make.
        folder: `team08_HATFreq`.
        number: the team's id.
        method: the method's name, as results are named.
    """
    for part in ("models", "model_zoo"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / part / folder, tree / part / folder, ignore=ignored)
    (tree / "test.py").write_text(TEST.format(folder=folder, number=number, method=method), encoding="utf-8")


def restore(tree: Path, number: int, inputs: Path, results: Path) -> "subprocess.CompletedProcess[str]":
    """Run the tree's test.py on a folder, in a process that sees nothing else of ours."""
    words = [sys.executable, "test.py", "--test_dir", str(inputs), "--save_dir", str(results), "--model_id"]
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run([*words, str(number)], cwd=tree, env=environment, capture_output=True, text=True)
