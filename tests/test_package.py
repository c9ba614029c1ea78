"""The package `hatfreq`: a wheel that stands alone, and its command."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.team08_HATFreq.image_io import write_png


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git knows, without the network."""
    setuptools = pytest.importorskip("setuptools", "70.1")
    assert setuptools
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file() and name.startswith(("models/", "model_zoo/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((root / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("hatfreq-*.whl"))


def test_the_wheel_holds_the_folder_and_the_weights_and_no_general_name(wheel: Path, root: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"hatfreq"}
    weights = zipfile.ZipFile(wheel).read("hatfreq/model_zoo/hatfreq_light_x4.safetensors")
    assert weights == (root / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.safetensors").read_bytes()
    assert {f"hatfreq/{path.name}" for path in (root / "models" / "team08_HATFreq").glob("*.py")} <= set(names)
    about = next(name for name in names if name.endswith("METADATA"))
    needs = [line for line in zipfile.ZipFile(wheel).read(about).decode().splitlines() if "Requires-Dist" in line]
    core = {line.split()[1].split(">")[0] for line in needs if "extra ==" not in line}
    assert core == {"torch", "numpy", "opencv-python-headless", "huggingface_hub", "safetensors", "tqdm", "pillow"}


@pytest.mark.slow
def test_the_installed_command_writes_what_test_py_writes(wheel: Path, root: Path, tmp_path: Path) -> None:
    site, lq = tmp_path / "site", tmp_path / "LR"
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    lq.mkdir()
    write_png(lq / "photo.png", np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    where = "import hatfreq, sys; assert 'models' not in sys.modules; print(hatfreq.build_model.__module__)"
    result = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "hatfreq"
    ask = [sys.executable, "-m", "hatfreq", "--version"]
    told = subprocess.run(ask, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert told == f"hatfreq {wheel.name.split('-')[1]}\n"
    command = [sys.executable, str(site / "bin" / "hatfreq"), str(lq / "photo.png"), "-o", "photo_x4.png"]
    command += ["--device", "cpu", "--ensemble", "8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    argv = ["--test_dir", str(lq), "--save_dir", str(tmp_path / "out"), "--device", "cpu"]
    environment["PYTHONPATH"] = ""
    subprocess.run([sys.executable, str(root / "test.py"), *argv], env=environment, check=True, capture_output=True)
    own = tmp_path / "out" / "08_HATFreq" / "test" / "photo.png"
    assert (tmp_path / "photo_x4.png").read_bytes() == own.read_bytes()
