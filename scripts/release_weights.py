"""Put the weights of a finished training run into the model zoo if they beat the present ones on every set.

    python -m scripts.release_weights --run runs/light --bench $DATA/bench --data docs/training_data.md

Releases `last.safetensors`, the averaged weights at the end of a run that started from scratch or from the weights in
the zoo. Scores every set of the bench folder (`<set>/HR`, `<set>/LRbicx4`): single pass and x8 self-ensemble, fp32,
whole images, CPU. Writes `hatfreq_<preset>_x4.safetensors`, its `.sha256`, its record (`.json`) and its card (`.md`).
"""

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from evaluation.score import find_sets, mean, open_network, restorer, score
from image_data.pairs import Pair
from models.team08_HATFreq.weights import WeightsError, read_state_dict, save_weights
from utils.files import UserError, command, file_sha256, write_bytes

ZOO = Path(__file__).resolve().parents[1] / "model_zoo" / "team08_HATFreq"
PASSES = {"single": 1, "x8": 8}
Record = dict[str, Any]
Scores = dict[str, dict[str, float]]  # set -> mean PSNR (dB) and SSIM on Y


def scores_of(weights: Path, sets: dict[str, list[Pair]], ensemble: int) -> Scores:
    """Score a weights file on the CPU."""
    upscale = restorer(open_network(weights), ensemble)
    means = {name: mean(score(upscale, pairs)) for name, pairs in sets.items()}
    return {name: {"psnr": value.psnr, "ssim": value.ssim} for name, value in means.items()}


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file; without it, a UserError with the remedy."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: {remedy}")
    return json.loads(path.read_text(encoding="utf-8"))


def run_record(run: Path, training: Record, start: str | None) -> Record:
    """What the card tells of a run; `start` is the sha256 of the weights that it started from.

    Raises:
        UserError: the run is not finished, its learning rate has not come down to 1 % of the peak.
    """
    log = (run / "log.csv").read_text().splitlines()
    last = list(csv.DictReader(log))[-1] if len(log) > 1 else {"lr": "nan"}
    if not float(last["lr"]) <= training["lr"] / 100:
        raise UserError(
            f"{run} is not finished (learning rate {last['lr']}, peak {training['lr']}): train it to its end"
        )
    environment = read_json(run / "environment.json", "copy the run folder whole")[-1]
    return {
        "sha256": file_sha256(run / "last.safetensors"),
        "start_sha256": start,
        "teacher": teacher_of(training["data"]),
        "patches": int(last["step"]) * training["batch"],
        "minutes": round(float(last["seconds"]) / 60),
        "machine": environment["cpu"],
        "gpu": environment["gpu"],
        "command": environment["command"],
        **{key: training[key] for key in ("lr", "patch", "precision")},
    }


def teacher_of(data: Sequence[str]) -> dict[str, str] | None:
    """Name and sha256 of the network that made the targets, from `teacher.json` in a data folder; None for images."""
    for part in re.split(r"[,=]", ",".join(data)):
        if (Path(part) / "teacher.json").is_file():
            record = read_json(Path(part) / "teacher.json", "")
            return {key: record[key] for key in ("name", "sha256")}
    return None


def same_weights(first: Path, second: Path) -> bool:
    """Whether two files exist and hold equal tensors."""
    if not (first.is_file() and second.is_file()):
        return False
    a, b = read_state_dict(first), read_state_dict(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def card(record: Record) -> str:
    """The card in Markdown."""
    runs, name = record["runs"], record["name"]
    scores = [
        [key, *("{psnr:.3f} / {ssim:.4f}".format(**values[way]) for way in PASSES)]
        for key, values in record["scores"].items()
    ]
    teachers = dict.fromkeys(f"{run['teacher']['name']} (`{run['teacher']['sha256'][:12]}`)"
                             for run in runs if run["teacher"])  # fmt: skip
    history = [
        [
            str(number),
            f"`{run['sha256'][:12]}`",
            run["teacher"]["name"] if run["teacher"] else "",
            f"{run['patches']:,}",
            f"{run['patch']}",
            f"{run['lr']:g}",
            run["precision"],
            f"{run['minutes']:,}",
            run["gpu"] or run["machine"],
            *(f"{run['scores'][key]:.3f}" if run["scores"] else "" for key in record["scores"]),
        ]
        for number, run in enumerate(runs, start=1)
    ]
    columns = ["run", "sha256", "teacher", "patches", "LR side", "rate", "precision", "minutes", "machine"]
    data = record["data"].replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")
    patches, minutes = (sum(run[key] for run in runs) for key in ("patches", "minutes"))
    wrap = TextWrapper(124, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    last = " \\\n".join(wrap.wrap(runs[-1]["command"]))
    return f"""---
{hub_metadata(record)}
---

# {name}.safetensors

HATFreq, preset `{record["preset"]}`, x{record["scale"]}, {record["parameters"]:,} parameters.
Released {record["released"]}, sha256 `{record["sha256"]}`. \
Rendered from [{name}.json]({name}.json) by `scripts/release_weights.py`.

## Scores

PSNR (dB) / SSIM on Y without 4 pixels of border; whole images, fp32, CPU. \
`test.py --tile 0` and `eval.py` give the same.

{table(["set", "single pass", "x8 self-ensemble"], scores)}

## Use and limits

For images that were downscaled by MATLAB's bicubic `imresize` and rounded to uint8. Noise, JPEG artefacts and other \
blur are enlarged with the image. Licence of code and weights: MIT. Some of the training images are research sets \
without a stated licence: check their terms before commercial use.

## Training

{data}

{patches:,} patches in {minutes:,} minutes. Each run starts from the weights of the run above it. \
Teacher: {", ".join(teachers) or "none"}. The validation images chose nothing.

{table([*columns, *record["scores"]], history)}

```bash
# the last run
{last}
```
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def hub_metadata(record: Record) -> str:
    """The YAML head that Hugging Face's hub reads: licence, task, scores."""
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name=f"Super-resolution x{record['scale']}, bicubic",
            dataset_type=name.lower(),
            dataset_name=name,
            metric_type="psnr",
            metric_name="PSNR-Y, single pass",
            metric_value=round(values["single"]["psnr"], 3),
        )
        for name, values in record["scores"].items()
    ]
    card = ModelCardData(model_name=record["name"], license="mit", pipeline_tag="image-to-image", eval_results=results)
    return card.to_yaml()


@command("release_weights", UserError, WeightsError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a finished run of train.py")
    add("--bench", type=Path, required=True, help="folder of evaluation sets")
    add("--data", type=Path, required=True, help="text file about the training data, for the card")
    args = parser.parse_args(argv)
    training = read_json(args.run / "config.json", "name the folder of a run of train.py")["training"]
    target, source = ZOO / f"hatfreq_{training['preset']}_x4.safetensors", args.run / "last.safetensors"
    data, sets, init = args.data.read_text(encoding="utf-8").strip(), find_sets(args.bench), training["init"]
    known: Record = {"runs": [], "scores": {}, "sha256": None}
    if target.exists():
        known = read_json(target.with_suffix(".json"), "take it from git, with the weights beside it")
    if init and not same_weights(Path(init), target):
        raise UserError(
            f"{args.run} started from {init}, whose training {target.name} does not tell: release that first"
        )
    run = run_record(args.run, training, known["sha256"] if init else None)

    scores = {way: scores_of(source, sets, ensemble) for way, ensemble in PASSES.items()}
    psnr = {name: round(value["psnr"], 3) for name, value in scores["single"].items()}
    old = {name: round(value["single"]["psnr"], 3) for name, value in known["scores"].items()}
    if missing := sorted(old.keys() - psnr.keys()):
        raise UserError(f"--bench {args.bench} lacks {', '.join(missing)}, on which the present weights were scored")
    if worse := [f"{name} {psnr[name]} <= {old[name]} dB" for name in old if psnr[name] <= old[name]]:
        print(f"not released: not better on {', '.join(worse)}", file=sys.stderr)
        return 1

    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata() or {})
    sha256 = save_weights(read_state_dict(source), target, metadata)
    write_bytes(target.with_name(target.name + ".sha256"), f"{sha256}  {target.name}\n".encode())
    model = open_network(target)
    record = {
        "name": target.stem,
        "preset": training["preset"],
        "scale": model.config.scale,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": sha256,
        "released": time.strftime("%Y-%m-%d"),
        "scores": {name: {way: scores[way][name] for way in PASSES} for name in sets},
        "data": data,
        "runs": [*(known["runs"] if init else []), run | {"sha256": sha256, "scores": psnr}],
    }
    write_bytes(target.with_suffix(".json"), (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    write_bytes(target.with_suffix(".md"), card(record).encode())
    print(f"released {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
