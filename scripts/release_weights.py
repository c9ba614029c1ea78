"""Put a finished training run's weights into the model zoo, with checksum and card, if they beat what stands there.

    python scripts/release_weights.py --run runs/light --bench ../shared/data/bench --data docs/training_data.md

Scores `last.safetensors` of the run, its averaged weights at the end, on every set of the bench folder (`<set>/HR`,
`<set>/LRbicx4`), single pass and x8 self-ensemble, whole images, fp32; compares the mean single-pass PSNR with that of
the weights in the zoo; and writes `hatfreq_<preset>_x4.safetensors`, `.safetensors.sha256` and the card, `.md`.
"""

import argparse
import csv
import json
import os
import platform
import re
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.pairing import find_pairs
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.inference import HATFreqRestorer
from models.team08_HATFreq.system import write_bytes
from models.team08_HATFreq.weights import build, load, read_state_dict, save_weights
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from utils.metrics import psnr_y, ssim_y

ZOO = Path(__file__).resolve().parents[1] / "model_zoo" / "team08_HATFreq"
Scores = dict[str, tuple[float, float]]  # set -> PSNR in dB and SSIM, both on Y


def score(weights: Path, bench: Path, ensemble: int) -> Scores:
    """PSNR-Y and SSIM-Y on every set of the bench folder: whole images, fp32."""
    model = build(load(weights))[0].eval()
    restore = HATFreqRestorer(model, torch.device("cpu"), "fp32", 0, 0, ensemble, {})
    scores: Scores = {}
    folders = [path.parent for path in bench.glob("*/HR")]
    for folder in sorted(folders, key=lambda folder: (len(list((folder / "HR").iterdir())), folder.name)):
        pairs = find_pairs(folder / "LRbicx4", folder / "HR", None)  # the LR images carry the restored images' names
        restored = [(restore(read_rgb(pair.restored))[0], read_rgb(pair.target)) for pair in pairs if pair.target]
        scores[folder.name] = tuple(float(np.mean([f(*pair) for pair in restored])) for f in (psnr_y, ssim_y))
    return scores


def training_command(training: dict[str, Any], init: str) -> str:
    """The command of a run, its folders named below $DATA; `init` names the weights that it started from."""
    places = {key: as_list(training[key]) for key in ("data", "valid_hr", "valid_lr")}
    common = os.path.commonpath([os.path.abspath(folder) for folders in places.values() for folder in folders])
    words = ["python train.py"]
    defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(TrainConfig)}
    for key, value in {**training, "init": init}.items():
        default = defaults.get(key)
        if key == "out" or value == default or not (value or default):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{key}")
            continue
        items = as_list(value)
        if key in places:
            items = [f"$DATA/{os.path.relpath(folder, common)}" for folder in items]
        words.append(f"--{key} {' '.join(str(item) for item in items)}")
    return " \\\n    ".join([*words, "--out runs/light"])


def starts(run: Path) -> str:
    """How often a run was started, and what set its end; empty for one that went as planned in one go."""
    count = len(json.loads((run / "environment.json").read_text()))
    state, _ = load_checkpoint(run)
    text = f"The command of the last of {count} starts. " if count > 1 else ""
    if state and state["schedule"]["finish_in"]:
        text += "`--finish_in`, not `--steps`, set the end of the schedule. "
    return text


def previous_card(run: Path, target: Path) -> str:
    """The card of the weights at `target` if the run started from them, by that name or another; empty if from none.

    Raises:
        SystemExit: it started from other weights, whose training no card here tells.
    """
    init = json.loads((run / "config.json").read_text())["training"]["init"]
    if not init:
        return ""
    same = target.is_file() and Path(init).name == target.name
    if target.is_file() and Path(init).is_file() and not same:
        one, two = read_state_dict(init), read_state_dict(target)
        same = one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    if not same:
        raise SystemExit(f"{run} started from {init}, not from {target.name}: release those weights first")
    return target.with_suffix(".md").read_text()


def as_list(value: Any) -> list[Any]:
    """A setting's words: none for an empty one."""
    return value if isinstance(value, list) else [value] if value != "" else []


def earlier_training(previous: str) -> str:
    """What the card of the weights that a run started from says of their training, as a section of the next card."""
    head = previous[: previous.index("## Figures")]
    rows = re.findall(r"^\| (?:sha256|steps|seen|training time|machine) \|.*$", head, re.M)
    section = previous[previous.index("## Training") :]
    command = section[section.index("```bash") : section.index("```", section.index("```bash") + 7) + 3]
    before = previous[previous.index("## Earlier training") :] if "## Earlier training" in previous else ""
    lines = [
        "## Earlier training",
        "",
        "The weights that it started from:",
        "",
        "| | |",
        "|---|---|",
        *rows,
        "",
        command,
    ]
    return "\n".join([*lines, *(["", before.strip()] if before else [])])


def last_row(run: Path) -> dict[str, str]:
    """The last row of a finished run's log.

    Raises:
        SystemExit: the run has not reached the end of its schedule.
    """
    state, _ = load_checkpoint(run)
    if not state or state["step"] < state["schedule"]["end"]:
        raise SystemExit(f"{run} is not finished (its rate has not decayed to the end): train it to its end")
    return list(csv.DictReader((run / "log.csv").open()))[-1]


def card(
    name: str, sha256: str, run: Path, parameters: int, data: str, single: Scores, ensemble: Scores, previous: str
) -> str:
    """The card's Markdown; `previous` is the card of the weights that the run started from, empty if from none."""
    config = json.loads((run / "config.json").read_text())["training"]
    start = json.loads((run / "environment.json").read_text())[-1]
    end = last_row(run)
    machine = start["gpu"] or f"{cpu_name()}, {config['threads'] or 'all'} thread(s), no GPU"
    table = "\n".join(
        f"| {key} | {psnr:.3f} / {ssim:.4f} | {ensemble[key][0]:.3f} / {ensemble[key][1]:.4f} |"
        for key, (psnr, ssim) in single.items()
    )
    return (
        f"""# {name}

HATFreq, preset `{config["preset"]}`, x4, {parameters:,} parameters, trained by this repository's `train.py`,
{"from earlier weights of its own" if previous else "from scratch"}, for the bicubic degradation (MATLAB's `imresize`,
rounded to uint8).

| | |
|---|---|
| sha256 | `{sha256}` |
| steps | {int(end["step"]):,}, the rate decayed from {config["lr"]} to {float(end["lr"]):.0e} |
| seen | {int(end["step"]) * config["batch"]:,} patches of {config["patch"]}x{config["patch"]} LR pixels |
| training time | {float(end["seconds"]) / 60:.0f} minutes |
| machine | {machine} |
| precision of the training | {config["precision"]} |
| torch | {start["torch"]} |
| released | {time.strftime("%Y-%m-%d")} |

## Figures

PSNR (dB) / SSIM on Y, 4 pixels of border left out; whole images (no tiles), fp32, on the CPU.

| set | single pass | x8 self-ensemble |
|---|---|---|
{table}

Measured, and this card written, by
`python scripts/release_weights.py --run runs/{config["preset"]} --bench $DATA/bench --data docs/training_data.md`.
With the challenge's two scripts: `python test.py --test_dir $DATA/bench/Set5/LRbicx4 --ensemble 1 --tile 0`, then
`python eval.py --output_folder NTIRE2025-ImageSRx4/results/08_HATFreq/test --target_folder $DATA/bench/Set5/HR`.

## Training

```bash
{training_command(config, f"model_zoo/team08_HATFreq/{name}" if previous else "")}
```

{data.strip()}

{starts(run)}Released are the averaged weights of the last step; the validation images drew the curve and chose nothing.

{earlier_training(previous) if previous else ""}
""".rstrip()
        + "\n"
    )


def cpu_name() -> str:
    """The processor's name as Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def mean_psnr(scores: Scores) -> float:
    """Mean over the sets in dB."""
    return float(np.mean([psnr for psnr, _ in scores.values()]))


def main(argv: list[str] | None = None) -> int:
    """Release, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run of train.py")
    parser.add_argument("--bench", type=Path, required=True, help="folder of evaluation sets")
    parser.add_argument("--data", type=Path, required=True, help="text file: what it was trained on, for the card")
    args = parser.parse_args(argv)
    last_row(args.run)
    source = args.run / "last.safetensors"
    preset = json.loads((args.run / "config.json").read_text())["training"]["preset"]
    target = ZOO / f"hatfreq_{preset}_x4.safetensors"
    previous_card(args.run, target)
    single = score(source, args.bench, 1)
    print(f"{source}: {single}")
    if target.exists():
        standing = score(target, args.bench, 1)
        print(f"{target.name}: {standing}")
        if mean_psnr(single) <= mean_psnr(standing):
            print("not released: the weights in the zoo are at least as good", file=sys.stderr)
            return 1
    release(source, target, args.run, args.data.read_text(), single, score(source, args.bench, 8))
    print(f"released {target}")
    return 0


def release(source: Path, target: Path, run: Path, data: str, single: Scores, ensemble: Scores) -> None:
    """Write weights, checksum and card."""
    previous = previous_card(run, target)
    state = read_state_dict(source)
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata() or {})
    sha256 = save_weights(state, target, metadata)
    write_bytes(target.with_name(target.name + ".sha256"), f"{sha256}  {target.name}\n".encode())
    parameters = sum(t.numel() for t in state.values() if t.is_floating_point())
    text = card(target.name, sha256, run, parameters, data, single, ensemble, previous)
    write_bytes(target.with_suffix(".md"), text.encode())


if __name__ == "__main__":
    sys.exit(main())
