"""Settings files and losses."""

import math
from pathlib import Path

import pytest
import torch

from models.team08_HATFreq.image_io import read_rgb
from training.config import TrainConfig, changed_settings, parse_arguments
from training.losses import LOSSES, parse_loss, total_loss
from training.run_log import draw_curves

FOLDERS = ["--data", "photographs", "--out", "runs/x"]


def write(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["--config", str(path)]


def test_a_file_gives_settings_and_the_command_line_wins(tmp_path: Path) -> None:
    text = "data: [a, b]\nout: o\nlr: 2e-4\nbetas: [0.8, 0.95]\nsteps: 700\nloss: {l1: 1, frequency: 0.05}\n"
    words = write(tmp_path / "a.yaml", text + "model_overrides: {window_size: 4, depths: [1, 1, 1]}\n")
    expected = TrainConfig(
        data=("a", "b"), out="o", lr=2e-4, betas=(0.8, 0.95), steps=700, loss=("l1=1", "frequency=0.05"),
        model_overrides=("window_size=4", "depths=1,1,1"),
    )  # fmt: skip
    assert parse_arguments(words) == expected
    assert parse_arguments([*words, "--steps", "900"]).steps == 900
    assert parse_arguments(["--data", "c", *words]).data == ("c",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3", "unknown key 'step': did you mean 'steps'?"),
        ("zzz: 3", "unknown key 'zzz'; known: data, out, preset"),
        ("lr: fast", "argument --lr: invalid float value: 'fast'"),
        ("precision: fp16", "invalid choice: 'fp16'"),
        ("just words", "holds no settings: write one `name: value` a line"),
        ("a: [1", "is not YAML"),
        ("lr: 0.1\nseed: 3\nlr: 0.2", "lr stands twice"),
        ("loss: {l1: 1, l1: 2}", "l1 stands twice"),
        ("loss: {l2: 1}", "unknown loss 'l2': choose from l1, charbonnier, mse, frequency"),
    ],
)
def test_unusable_files_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture, text: str, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_arguments([*FOLDERS, *write(tmp_path / "a.yaml", text)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments([*FOLDERS, "--config", str(tmp_path / "none.yaml")])
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_a_name_without_a_value_leaves_the_default(tmp_path: Path) -> None:
    text = "".join(f"{name}:\n" for name in ("audit_cache", "init", "valid_hr", "steps", "tensorboard", "loss"))
    assert parse_arguments([*FOLDERS, *write(tmp_path / "a.yaml", text)]) == parse_arguments(FOLDERS)


@pytest.mark.parametrize("name", ["light", "finetune"])
def test_the_files_that_ship_are_usable(root: Path, name: str) -> None:
    config = parse_arguments([*FOLDERS, "--config", str(root / "configs" / f"{name}.yaml")])
    assert config.preset == "light" and config.data == ("photographs",)
    assert not config.init or (root / config.init).exists()


def test_the_log_shows_what_differs() -> None:
    config = parse_arguments([*FOLDERS, "--lr", "2e-4", "--betas", "0.9", "0.99"])
    assert changed_settings(config) == "data photographs, out runs/x, lr 0.0002"


def test_the_curves_picture_is_redrawn(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    header = "step,loss,lr,psnr,images_per_s,seconds\n"
    sizes = []
    for count in (1, 3):
        rows = [f"{100 * n},{0.1 / n},0.001,{'nan' if n == 2 else 28 + n},10,5\n" for n in range(1, count + 1)]
        log.write_text(header + "".join(rows))
        draw_curves(log, tmp_path / "curves.png")
        picture = read_rgb(tmp_path / "curves.png")
        assert picture.shape[1] > 1000 and (picture < 128).any()
        sizes.append((picture < 250).sum())
    assert sizes[0] != sizes[1]
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "curves.png"}


def test_losses_by_hand() -> None:
    gt = torch.zeros(1, 3, 4, 4)
    sr = torch.full_like(gt, 0.3)
    assert LOSSES["l1"](sr, gt).item() == pytest.approx(0.3)
    assert LOSSES["mse"](sr, gt).item() == pytest.approx(0.09)
    assert LOSSES["charbonnier"](sr, gt).item() == pytest.approx(math.sqrt(0.09 + 1e-6))
    # A constant has one coefficient, its mean times sqrt(16), among the 4 x 3 of the half spectrum.
    assert LOSSES["frequency"](sr, gt).item() == pytest.approx(0.3 * 4 / 12)
    assert LOSSES["frequency"](sr, sr).item() == 0


def test_losses_are_mixed_by_weight() -> None:
    sr, gt = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
    weights = parse_loss(("l1", "mse=0.5", "frequency=0.1"))
    assert weights == {"l1": 1.0, "mse": 0.5, "frequency": 0.1}
    total = total_loss(weights, sr, gt)
    expected = sum(weight * LOSSES[name](sr, gt) for name, weight in weights.items())
    torch.testing.assert_close(total, expected)
    total.backward()
    assert sr.grad.isfinite().all() and sr.grad.any()


@pytest.mark.parametrize(
    ("items", "message"),
    [(("l1=0",), "must be positive"), (("l1=x",), "l1=0.1, got 'x'"), ((), "at least one"), (("l1=inf",), "positive")],
)
def test_unusable_losses_are_refused(items: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_loss(items)
