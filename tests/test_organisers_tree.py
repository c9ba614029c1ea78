"""Dropped into the organisers' repository, the submission runs there and needs nothing else of ours."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.tiling import self_ensemble, to_samples, to_tensor
from models.team08_HATFreq.weights import save_weights

# A main program of the same contract as the organisers': choose by id, import from models, call with four arguments.
MAIN = """
import sys

import torch


def select_model(model_id):
    if model_id == 8:
        from models.team08_HATFreq import main as func
        return func, "model_zoo/team08_HATFreq", "08_HATFreq"
    raise NotImplementedError(model_id)


if __name__ == "__main__":
    func, model_dir, name = select_model(8)
    func(model_dir=model_dir, input_path=sys.argv[1], output_path=sys.argv[2], device=torch.device("cpu"))
    ours = sorted(module for module in sys.modules if module.split(".")[0] in ("utils", "training", "models"))
    assert all(module == "models" or module.startswith("models.team08_HATFreq") for module in ours), ours
"""


@pytest.mark.slow
def test_the_two_folders_alone_run_in_a_foreign_tree(root: Path, tmp_path: Path) -> None:
    tree, lq = tmp_path / "organisers", tmp_path / "LR"
    shutil.copytree(
        root / "models" / "team08_HATFreq",
        tree / "models" / "team08_HATFreq",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    zoo = tree / "model_zoo" / "team08_HATFreq"
    zoo.mkdir(parents=True)
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})).eval()
    torch.nn.init.normal_(model.upsample[0].weight, std=0.05)
    save_weights(model, zoo / "hatfreq_light_x4.safetensors", {})
    (tree / "main.py").write_text(MAIN)
    lq.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    write_png(lq / "0901x4.png", image)
    done = subprocess.run(
        [sys.executable, "main.py", str(lq), str(tmp_path / "out")],
        cwd=tree,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = to_samples(self_ensemble(model, to_tensor(image)), np.dtype(np.uint8))
    np.testing.assert_array_equal(read_rgb(tmp_path / "out" / "0901x4.png"), expected)


def test_the_folder_imports_only_what_it_may(root: Path) -> None:
    packages = {"torch", "numpy", "cv2", "timm", "tqdm", "safetensors", "PIL", "huggingface_hub"}
    allowed = packages | set(sys.stdlib_module_names)
    for path in sorted((root / "models" / "team08_HATFreq").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            assert {name.split(".")[0] for name in names} <= allowed, f"{path.name}: {names}"
