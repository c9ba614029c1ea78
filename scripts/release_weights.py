"""Put finished training runs' weights into the model zoo, if they beat what stands there on every set.

    python -m scripts.release_weights --run runs/light --bench $DATA/bench --data docs/training_data.md
    python -m scripts.release_weights --card model_zoo/team08_HATFreq/hatfreq_light_x4.json   # render the card again

Takes `last.safetensors` of the last run, its averaged weights at the end. Several runs are given in their order, each
started from the one before; the first started from scratch, from the weights in the zoo, or from those changed (a file
whose metadata says `changed_from`, their sha256, and `changed`, how). Scores every set of the bench folder (`<set>/HR`,
`<set>/LRbicx4`), single pass and x8 self-ensemble, whole images, fp32. Writes `hatfreq_<preset>_x4.safetensors`, its
`.sha256`, the facts (`.json`) and the card (`.md`), which is rendered from them.
"""

import argparse
import csv
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from evaluation.score import find_sets, mean, open_network, restorer, score
from image_data.pairs import Pair
from models.team08_HATFreq.weights import load, read_state_dict, save_weights
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from utils.environment import cpu_name
from utils.files import file_sha256, write_bytes

ZOO = Path(__file__).resolve().parents[1] / "model_zoo" / "team08_HATFreq"
PASSES = {"single": 1, "x8": 8}
GOALS = {"Set5": 32.25, "Set14": 28.66, "BSD100": 27.62}  # dB, single pass: just above SPAN's
FITTED = 4  # points that tell the pace
Facts = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# The facts
# ---------------------------------------------------------------------------------------------------------------------


def scores_of(weights: Path, sets: dict[str, list[Pair]], ensemble: int) -> dict[str, dict[str, float]]:
    """Set -> mean PSNR (dB) and SSIM on Y."""
    restore = restorer(open_network(weights), ensemble)
    means = {name: mean(score(restore, pairs)) for name, pairs in sets.items()}
    return {name: {"psnr": one.psnr, "ssim": one.ssim} for name, one in means.items()}


def run_facts(run: Path, start: str | None, changed: str, teacher: Path | None) -> Facts:
    """What a run folder tells of the training.

    Args:
        start: sha256 of the weights that it started from; None for none.
        changed: how these were changed before it; empty if they were not.
        teacher: weights of the network that it was distilled from, if the run's own settings do not name them.
    """
    config = json.loads((run / "config.json").read_text())
    training = config["training"]
    environments = json.loads((run / "environment.json").read_text())
    state, _ = load_checkpoint(run)
    assert state is not None  # `check_chain` has seen it
    with (run / "log.csv").open(newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]  # none if it was stopped before the first row
    return {
        "sha256": file_sha256(run / "last.safetensors"),
        "start_sha256": start,
        **({"start_changed": changed} if changed else {}),
        "teacher": teacher_facts(teacher or config.get("teacher") or training.get("teacher")),
        "command": training_command(training),
        "starts": len(environments),
        "steps": state["step"],
        "lr": training["lr"],
        "final_lr": rates[-1] if rates else training["lr"],
        "finish_in": state["schedule"]["cool_steps"],
        "batch": training["batch"],
        "patch": training["patch"],
        "patches": state["step"] * training["batch"],
        "minutes": round(state["seconds"] / 60),
        "machine": cpu_name(),
        "threads": training["threads"],
        "gpu": environments[-1]["gpu"],
        "precision": training["precision"],
        "seed": training["seed"],
        "torch": environments[-1]["torch"],
        "scores": None,
    }


def teacher_facts(teacher: Path | str | dict[str, str] | None) -> dict[str, str] | None:
    """Name and hash of a teacher, given as its weights file or as these two facts; None without one."""
    if not teacher:
        return None
    if isinstance(teacher, dict):
        return {key: teacher[key] for key in ("name", "sha256")}
    path = Path(teacher)
    return {"name": path.stem, "sha256": file_sha256(path) if path.is_file() else "not at hand"}


def training_command(training: dict[str, Any]) -> str:
    """The command of a run, without the folders of its machine: data below $DATA, weights and run folders by name."""
    defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(TrainConfig)}
    words = [str(word) for key in ("data", "valid_hr", "valid_lr") for word in as_list(training[key])]
    folders = [os.path.abspath(part) for word in words for part in re.split(r"[,=]", word) if os.sep in part]
    common = os.path.commonpath(folders) if folders else ""
    found = ["python train.py"]
    for key, value in training.items():
        default = defaults.get(key)
        if key == "out" or value == default or not (value or default):
            continue
        if isinstance(value, bool):
            found.append(f"--{'' if value else 'no-'}{key}")
            continue
        shown = [shown_path(str(word), common) for word in as_list(value)]
        found.append(" ".join([f"--{key}", *shown]))
    return " ".join([*found, "--out runs/light"])


def shown_path(word: str, common: str) -> str:
    """A word with its absolute paths below $DATA, or by the last two parts where they lie elsewhere."""
    parts = re.split(r"([,=])", word)
    for number, part in enumerate(parts):
        if os.sep in part and common and os.path.abspath(part).startswith(common):
            parts[number] = os.path.join("$DATA", os.path.relpath(part, common))
        elif os.path.isabs(part):
            parts[number] = os.path.join(*Path(part).parts[-2:])
    return "".join(parts)


def as_list(value: Any) -> list[Any]:
    """A setting's words: none for an empty one."""
    return value if isinstance(value, list) else [value] if value != "" else []


def previous_facts(first: Path, target: Path) -> tuple[Facts | None, str]:
    """The facts of the weights at `target` if a run started from them, and how they were changed before it.

    Returns:
        None and nothing if it started from scratch.

    Raises:
        SystemExit: it started from other weights, whose training no facts tell.
    """
    init = json.loads((first / "config.json").read_text())["training"]["init"]
    if not init:
        return None, ""
    told = target.with_suffix(".json")
    facts = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    about = load(init).metadata if Path(init).is_file() else {}
    if facts and about.get("changed_from") == facts["sha256"]:
        return facts, about["changed"]
    if not (target.is_file() and (Path(init).name == target.name or same_weights(Path(init), target))):
        raise SystemExit(f"{first} started from {init}, not from {target.name}: give that run to --run before it")
    return facts, ""


def same_weights(one: Path, two: Path) -> bool:
    """Whether two files hold equal tensors."""
    if not (one.is_file() and two.is_file()):
        return False
    first, second = read_state_dict(one), read_state_dict(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def check_chain(runs: Sequence[Path]) -> None:
    """Refuse runs without a checkpoint, that did not start one from the other, or whose last one is not finished."""
    for run in runs:
        state, _ = load_checkpoint(run)
        if state is None:
            raise SystemExit(f"{run} holds no checkpoint: name the folder of a run of train.py")
        if run == runs[-1] and state["step"] < state["schedule"]["last"]:
            raise SystemExit(f"{run} is not finished (its rate has not decayed to the end): train it to its end")
    for before, run in pairwise(runs):
        init = Path(json.loads((run / "config.json").read_text())["training"]["init"])
        weights = before / "last.safetensors"
        if init.resolve() != weights.resolve() and not same_weights(init, weights):
            raise SystemExit(f"{run} started from {init}, not from {weights}: give the runs in their order")


# ---------------------------------------------------------------------------------------------------------------------
# The card
# ---------------------------------------------------------------------------------------------------------------------


def card(facts: Facts) -> str:
    """The card in Markdown."""
    runs, name = facts["runs"], facts["name"]
    total = f"{sum(run['patches'] for run in runs):,} patches, {sum(run['minutes'] for run in runs):,} minutes"
    chain = f" in {len(runs)} runs, each from the weights of the one before" if len(runs) > 1 else ""
    scores = "\n".join(
        f"| {key} | {' | '.join('{psnr:.3f} / {ssim:.4f}'.format(**values[one]) for one in PASSES)} |"
        for key, values in facts["scores"].items()
    )
    sections = "\n\n".join(run_section(number, run) for number, run in enumerate(runs, start=1))
    return f"""---
{hub_metadata(facts)}
---

# {name}.safetensors

Rendered from [{name}.json]({name}.json) by `scripts/release_weights.py`. Do not edit it.

HATFreq, preset `{facts["preset"]}`, x{facts["scale"]}, {facts["parameters"]:,} parameters, for the bicubic degradation
(MATLAB's `imresize`, rounded to uint8). Trained by this repository's `train.py`{chain}: {total} in all.

| | |
|---|---|
| sha256 | `{facts["sha256"]}` |
| released | {facts["released"]} |
| teacher | {", ".join(teacher_names(runs)) or "none"} |

## Scores

PSNR (dB) / SSIM on Y, 4 pixels of border left out; whole images, fp32, on the CPU.

| set | single pass | x8 self-ensemble |
|---|---|---|
{scores}

Measured by `python -m scripts.release_weights`. With the challenge's two scripts:
`python test.py --test_dir $DATA/bench/Set5/LRbicx4 --save_dir results --ensemble 1 --tile 0`, then
`python eval.py --output_folder results/08_HATFreq/test --target_folder $DATA/bench/Set5/HR`.

## Training

{facts["data"]}

Released are the averaged weights of the last step; the validation images drew the curve and chose nothing.

{progress(runs)}

{sections}
"""


def hub_metadata(facts: Facts) -> str:
    """What Hugging Face's hub reads at the head of a card, in YAML: licence, task, scores."""
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name=f"Super-resolution x{facts['scale']}, bicubic",
            dataset_type=name.lower(),
            dataset_name=name,
            metric_type=metric,
            metric_name=f"{metric.upper()}-Y, {shown}",
            metric_value=round(values[passes][metric], digits),
        )
        for name, values in facts["scores"].items()
        for passes, shown in (("single", "single pass"), ("x8", "x8 self-ensemble"))
        for metric, digits in (("psnr", 3), ("ssim", 4))
    ]
    return ModelCardData(
        model_name=facts["name"],
        license="mit",
        pipeline_tag="image-to-image",
        tags=["super-resolution", "image-restoration", "pytorch"],
        eval_results=results,
    ).to_yaml()


def training_points(runs: Sequence[Facts]) -> list[tuple[float, Facts]]:
    """Hours of training so far -> a run, for runs that were scored."""
    minutes, points = 0, []
    for run in runs:
        minutes += run["minutes"]
        if run["scores"]:
            points.append((minutes / 60, run))
    return points


def hours_to_goal(points: Sequence[tuple[float, Facts]], name: str) -> float | None:
    """Where a line through a set's last points, over the logarithm of the hours, reaches its goal; None if unknown."""
    last = points[-FITTED:]
    if len(last) < 3 or last[-1][1]["scores"][name] >= GOALS[name]:
        return None
    slope, start = np.polyfit(np.log([hours for hours, _ in last]), [run["scores"][name] for _, run in last], 1)
    return float(np.exp((GOALS[name] - start) / slope)) if slope > 0 else None


def progress(runs: Sequence[Facts]) -> str:
    """PSNR against the hours of training so far, and where a line through the last points reaches the goals."""
    points = training_points(runs)
    names = list(points[-1][1]["scores"])
    table = [f"| hours | {' | '.join(names)} | learned from |", "|" + "---|" * (len(names) + 2)]
    for hours, run in points:
        cells = [f"{hours:.1f}", *(f"{run['scores'][name]:.3f}" for name in names)]
        cells.append(run["teacher"]["name"] if run["teacher"] else "the photographs")
        table.append(f"| {' | '.join(cells)} |")
    reached = {name: hours for name in names if name in GOALS and (hours := hours_to_goal(points, name))}
    if reached:
        told = ", ".join(f"{GOALS[name]:.2f} dB on {name} after {hours:.0f} hours" for name, hours in reached.items())
        table.append(
            f"\nA line through the last {len(points[-FITTED:])} points, over the logarithm of the hours, "
            f"would reach {told}."
        )
    return "\n".join(table)


def run_section(number: int, run: Facts) -> str:
    """One run: a table and the command."""
    threads = f"{run['threads'] or 'all'} CPU thread{'' if run['threads'] == 1 else 's'}"
    constant = float(run["final_lr"]) == float(run["lr"])
    rate = (
        f"a constant rate of {run['lr']}" if constant else f"the rate decayed from {run['lr']} to {run['final_lr']:.0e}"
    )
    started = f"`{run['start_sha256'][:12]}`" if run["start_sha256"] else "scratch"
    started += f"; {run['start_changed']}" if "start_changed" in run else ""
    rows = {
        "sha256 of its weights": f"`{run['sha256']}`",
        "started from": started,
        "teacher": f"{run['teacher']['name']}, sha256 `{run['teacher']['sha256'][:12]}`" if run["teacher"] else "none",
        "steps": f"{run['steps']:,}, {rate}",
        "patches": f"{run['patches']:,} of {run['patch']}x{run['patch']} LR pixels",
        "time": f"{run['minutes']} minutes on {run['machine']}, {threads}, {run['gpu'] or 'no GPU'}",
        "precision, seed": f"{run['precision']}, {run['seed']}",
        "torch": run["torch"],
    }
    if run["scores"]:
        rows["PSNR-Y, single pass"] = ", ".join(f"{name} {psnr:.3f}" for name, psnr in run["scores"].items())
    notes = [f"The command of the last of {run['starts']} starts."] if run["starts"] > 1 else []
    notes += ["`--finish_in`, not `--steps`, set the end of the schedule."] if run["finish_in"] else []
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    command = run["command"].replace(" --", " \\\n    --")
    text = f"### Run {number}\n\n| | |\n|---|---|\n{table}\n\n```bash\n{command}\n```"
    return "\n\n".join([text, *([" ".join(notes)] if notes else [])])


def teacher_names(runs: Sequence[Facts]) -> list[str]:
    """The teachers of some runs, each once."""
    return list(dict.fromkeys(run["teacher"]["name"] for run in runs if run["teacher"]))


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def release(runs: Sequence[Path], target: Path, data: str, sets: dict[str, list[Pair]], teacher: Path | None) -> None:
    """Write weights, checksum, facts and card; the facts of earlier runs are taken over."""
    (previous, changed), source = previous_facts(runs[0], target), runs[-1] / "last.safetensors"
    told: list[Facts] = previous["runs"] if previous else []
    for run in runs:
        start = told[-1]["sha256"] if told else None
        told = [*told, run_facts(run, start, changed if run == runs[0] else "", teacher)]
    scores = {passes: scores_of(source, sets, ensemble) for passes, ensemble in PASSES.items()}
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata() or {})
    told[-1]["scores"] = {name: round(one["psnr"], 3) for name, one in scores["single"].items()}
    told[-1]["sha256"] = save_weights(read_state_dict(source), target, metadata)
    # Before the weights are opened, which compares them with it.
    write_bytes(target.with_name(target.name + ".sha256"), f"{told[-1]['sha256']}  {target.name}\n".encode())
    model = open_network(target)
    facts = {
        "name": target.stem,
        "preset": json.loads((runs[-1] / "config.json").read_text())["training"]["preset"],
        "scale": model.config.scale,
        "config": asdict(model.config),
        "sha256": told[-1]["sha256"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "released": time.strftime("%Y-%m-%d"),
        "scores": {name: {passes: scores[passes][name] for passes in PASSES} for name in sets},
        "data": data.strip(),
        "runs": told,
    }
    write_bytes(target.with_suffix(".json"), (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    write_bytes(target.with_suffix(".md"), card(facts).encode())


def standing_scores(target: Path, sets: dict[str, list[Pair]]) -> dict[str, dict[str, float]]:
    """What the facts of the weights in the zoo tell of those of the sets that they were scored on, single pass.

    Raises:
        SystemExit: there are no facts, or none of these sets is among them.
    """
    path = target.with_suffix(".json")
    if not path.is_file():
        raise SystemExit(f"{target} has no {path.name} that tells its scores: take both from git")
    told = json.loads(path.read_text(encoding="utf-8"))["scores"]
    if not (found := {name: told[name]["single"] for name in sets if name in told}):
        raise SystemExit(f"{path} tells no score of {', '.join(sets)}: --bench must hold one of {', '.join(told)}")
    return found


def worse_sets(ours: dict[str, dict[str, float]], standing: dict[str, dict[str, float]]) -> list[str]:
    """The sets on which the new weights are not better than those that stand, with both values of PSNR."""
    return [
        f"{name} {one['psnr']:.4f} against {standing[name]['psnr']:.4f} dB"
        for name, one in ours.items()
        if name in standing and one["psnr"] <= standing[name]["psnr"]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Release, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, nargs="+", help="folders of train.py's runs, in their order; the last one finished")
    add("--bench", type=Path, help="folder of evaluation sets")
    add("--data", type=Path, help="text file: what it was trained on, for the card")
    add("--teacher", type=Path, help="weights that the runs were distilled from, if their settings do not name them")
    add("--card", type=Path, help="render the card of these facts, and do nothing else")
    args = parser.parse_args(argv)
    if args.card:
        facts = json.loads(args.card.read_text(encoding="utf-8"))
        write_bytes(args.card.with_suffix(".md"), card(facts).encode())
        return 0
    if not (args.run and args.bench and args.data):
        parser.error("--run, --bench and --data are needed")
    check_chain(args.run)
    preset = json.loads((args.run[-1] / "config.json").read_text())["training"]["preset"]
    target, source = ZOO / f"hatfreq_{preset}_x4.safetensors", args.run[-1] / "last.safetensors"
    previous_facts(args.run[0], target)
    sets = find_sets(args.bench)
    if target.exists():
        worse = worse_sets(scores_of(source, sets, 1), standing_scores(target, sets))
        if worse:
            print(f"not released: the weights in the zoo are at least as good on {', '.join(worse)}", file=sys.stderr)
            return 1
    release(args.run, target, args.data.read_text(encoding="utf-8"), sets, args.teacher)
    print(f"released {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
