"""Hugging Face's format: a network goes into a folder and comes back, without a network connection."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from models.team08_HATFreq import PRESETS, HATFreq, override

SHAPE = override(PRESETS["light"], {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 1), "frequency": "none"})


def test_a_network_comes_back_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HATFreq(SHAPE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert json.loads((tmp_path / "config.json").read_text())["frequency"] == "none"
    card = (tmp_path / "README.md").read_text()
    assert "license: mit" in card and "pipeline_tag: image-to-image" in card
    again = HATFreq.from_pretrained(tmp_path).eval()
    assert again.config == SHAPE
    lq = torch.rand(1, 3, 9, 8)
    with torch.inference_mode():
        assert torch.equal(again(lq), model(lq))


def test_the_model_zoo_is_not_such_a_folder(root: Path) -> None:
    with pytest.raises(ValueError, match=r"team08_HATFreq holds no config\.json: .* weights\.load_weights"):
        HATFreq.from_pretrained(root / "model_zoo" / "team08_HATFreq")


def test_what_the_hub_does_not_give_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise HfHubHTTPError("503 Service Unavailable", response=Mock())

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", unavailable)
    with pytest.raises(ValueError, match=r"team/network is no folder, and the Hub gives no config\.json of it"):
        HATFreq.from_pretrained("team/network")


@pytest.mark.slow
def test_offline_and_absent_is_an_error_that_names_it(tmp_path: Path) -> None:
    code = f"from models.team08_HATFreq import HATFreq; HATFreq.from_pretrained({str(tmp_path / 'nowhere')!r})"
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "nowhere" in done.stderr


@pytest.mark.parametrize("preset", list(PRESETS))
def test_lists_become_tuples(preset: str) -> None:
    config = PRESETS[preset]
    assert override(config, {"depths": list(config.depths), "num_heads": list(config.num_heads)}) == config
