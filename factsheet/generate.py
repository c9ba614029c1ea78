"""Make the factsheet's tables, numbers and figures from the results files and from the code.

    python -m factsheet.generate            # into factsheet/generated/
    bash scripts/build_factsheet.sh         # the same, then the PDF

Nothing in the sources repeats a figure: a table that has no results file yet is an error that names the command.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import ablation
from benchmarks.paired import LEVEL, Difference, paired
from benchmarks.quality_tables import METRICS
from factsheet import EPOCH, figures, shapes
from factsheet.card import Card, CardError, read_card
from factsheet.complexity import SIDE, cost
from factsheet.latex import Latex, commands, escaped, power, table
from factsheet.results import (
    SOURCES,
    ResultsError,
    ablation_scores,
    counted,
    flow,
    measured_quality,
    rows,
    selection_scores,
    setting,
)
from factsheet.wording import against_base, against_start, listed, told_apart
from models.team08_HATFreq import PRESETS
from models.team08_HATFreq.frequency import KNOTS
from models.team08_HATFreq.system import write_bytes
from submission.facts import FILE, Facts, FactsError, missing, read_facts

ROOT = Path(__file__).resolve().parents[1]
CARD = Path("model_zoo/team08_HATFreq/hatfreq_light_x4.md")
STAGES = {"stage1_imagenet": "ImageNet", "stage2_df2k": "DF2K", "stage3_ldcc": "Data-LDCC and DF2K"}
CHOICES = {
    "similar": "the chosen images",
    "random": "random ones",
    "hardest": "those of highest loss",
    "dissimilar": "the least similar",
}
BLOCK = ("base", 16, SIDE)  # preset, window and side of the features that Figure 2 shows


# ---------------------------------------------------------------------------------------------------------------------
# From the code
# ---------------------------------------------------------------------------------------------------------------------


def complexity() -> str:
    """A row a preset, without and with frequency blocks."""
    body = []
    for preset in PRESETS:
        plain, fused = cost(preset, "none"), cost(preset, "both")
        more = f"{fused.parameters / plain.parameters - 1:.1%}"
        body.append([preset, f"{plain.parameters:,}", f"{fused.parameters:,}", more, f"{plain.macs / 1e9:.1f}"])
        body[-1] += [f"{fused.macs / 1e9:.1f}", f"{fused.activations / 1e6:.1f}"]
    head = ["preset", "parameters of HAT", "of HATFreq", "more", "GMAC of HAT", "of HATFreq", "M activations"]
    return table(head, body, "lrrrrrr")


def stage_configs(configs: Path) -> list[dict[str, Any]]:
    """The settings of the three stages."""
    return [yaml.safe_load((configs / f"{name}.yaml").read_text(encoding="utf-8")) for name in STAGES]


def stages(configs: Path) -> str:
    """A row a stage of the training."""
    body: list[list[Any]] = []
    for number, (config, data) in enumerate(zip(stage_configs(configs), STAGES.values(), strict=True), start=1):
        size = f"{config['patch']}x{config['patch']}"
        halved = f"{len(config['milestones'])} times"
        body.append([number, data, size, config["batch"], f"{config['steps']:,}", power(float(config["lr"])), halved])
    return table(["stage", "data", "LR patch", "batch", "steps", "rate", "halved"], body, "llrrrrr")


def team(facts: Facts) -> str:
    """The team's section; what submission.yaml lacks is a visible gap."""
    gaps = missing(facts)

    def shown(key: str, text: str) -> str:
        return f"\\gap{{{escaped(key)}}}" if key in gaps else escaped(text)

    people = []
    for number, one in enumerate(facts.members, start=1):
        parts = {key: shown(f"members[{number}].{key}", text) for key, text in vars(one).items()}
        people.append(f"{parts['name']} ({parts['affiliation']}, {parts['email']})")
    lines = [
        ("Challenge", escaped(facts.challenge)),
        ("Team", f"{shown('team_name', facts.team_name)}, team id {facts.team_id:02}"),
        ("Method", escaped(facts.method)),
        ("Members, the leader first", r"\newline ".join(people) or shown("members", "")),
        ("User names on the server", shown("user_names", ", ".join(facts.user_names))),
        ("Code", shown("code", facts.code)),
        ("Restored images", shown("results", facts.results)),
    ]
    body = "\n".join(f"\\textbf{{{label}}} & {text} \\\\" for label, text in lines)
    return f"\\begin{{tabular}}{{@{{}}lp{{0.68\\linewidth}}@{{}}}}\n{body}\n\\end{{tabular}}\n"


# ---------------------------------------------------------------------------------------------------------------------
# From the results
# ---------------------------------------------------------------------------------------------------------------------


def quality(results: Path) -> str:
    """Methods measured in one run, a block a set."""
    found = measured_quality(results)
    body: list[list[str]] = []
    for name in dict.fromkeys(one.set for one in found):
        body += [[]] if body else []
        for number, one in enumerate(one for one in found if one.set == name):
            cells = ["" if number else name, one.method, f"{one.parameters / 1e6:.2f}" if one.parameters else ""]
            cells += [form.format(one.means[key]) if key in one.means else "" for key, form in METRICS.items()]
            body.append([*cells, f"{one.seconds:.3f}" if one.seconds else "not measured"])
    return table(["set", "method", "M par.", "PSNR", "SSIM", "LPIPS", "NIQE", "s"], body, "llrrrrrr")


def speed(results: Path) -> str:
    """One pass beside the reference HAT."""
    body: list[list[str]] = []
    for row in rows(results, "forward_cpu"):
        cells = [row["preset"], row["size"], row["kind"], f"{float(row['seconds']):.2f}"]
        if row["kind"] == "reference HAT":
            body += [[]] if body else []
            body.append([*cells, "", "", ""])
            continue
        cells += [f"{float(row['faster']):.2f}x", f"{float(row['of_reference']):.2f}"]
        body.append([*cells, power(float(row["difference"]))])
    return table(["preset", "LR", "", "s", "faster", "of its memory", "difference"], body, "lllrrrr")


def within(difference: Difference, digits: int) -> Latex:
    """A mean difference and half its interval."""
    return Latex(escaped(f"{difference.mean:+.{digits}f}") + f" $\\pm$ {difference.half:.{digits}f}")


def modules(results: Path) -> str:
    """The ablation's table."""
    scores = ablation_scores(results)
    names = [*next(iter(scores.values())), "mean"]
    found = ablation.differences(scores, "mean")
    body: list[list[str]] = []
    for variant in ablation.VARIANTS:
        values = [ablation.over_seeds(scores, variant, name) for name in names]
        cells = [f"{statistics.fmean(v):.3f} ({statistics.stdev(v):.3f})" for v in values]
        body.append([f"`{variant}`", *cells, within(found[variant, "none"], 4) if variant != "none" else ""])
    return table(["module", *names, "less `none`"], body, "l" + "r" * (len(names) + 1))


def module_sentences(results: Path) -> dict[str, str]:
    """What the ablation and its spectrum say."""
    scores = ablation_scores(results)
    found, variants = ablation.differences(scores, "mean"), ablation.VARIANTS[1:]
    differing = {f"`{variant}`": found[variant, "none"] for variant in variants}
    transform = told_apart("`both`", "`identity`", found["both", "identity"])
    bands = {variant: ablation.band_gains(scores, variant).T.tolist() for variant in variants}
    apart = [v for v in variants if any(paired(band, [0.0] * len(band)).direction for band in bands[v])]
    same = [f"`{variant}`" for variant in variants if variant not in apart]
    spectrum = [ablation.band_sentence(scores, variant) for variant in apart]
    spectrum += [f"{listed(same)} cannot be told from `none` in any band."] * bool(same)
    return {
        "AblationSentences": f"{against_base('`none`', differing)} {transform}",
        "SpectrumSentences": " ".join(spectrum),
    }


def selection(results: Path) -> tuple[str, str]:
    """What fine-tuning on chosen images gives: the table, and the sentences on it."""
    scores = selection_scores(results, ("start", *CHOICES))
    from_start = {name: paired(scores[key], scores["start"]) for key, name in CHOICES.items()}
    from_random = {name: paired(scores[key], scores["random"]) for key, name in CHOICES.items() if key != "random"}
    body = [["nothing: the start", f"{statistics.fmean(scores['start']):.3f}", "", ""]]
    for key, name in CHOICES.items():
        cells = [name, f"{statistics.fmean(scores[key]):.3f}", within(from_start[name], 4)]
        body.append([*cells, within(from_random[name], 4) if name in from_random else ""])
    sentences = [told_apart(name.capitalize(), CHOICES["random"], one) for name, one in from_random.items()]
    text = " ".join([against_start(from_start), *sentences])
    return table(["trained on", "PSNR", "less the start", "less random"], body, "lrrr"), text


def numbers(root: Path, results: Path) -> str:
    """Commands for figures inside sentences."""
    found = {(one.method, one.set): one for one in measured_quality(results)}
    names = list(dict.fromkeys(one.set for one in found.values()))

    def means(method: str) -> str:
        try:
            return listed([f"{found[method, name].means['PSNR']:.2f} ({name})" for name in names])
        except KeyError as error:
            raise ResultsError(f"{results / 'quality.csv'} holds no PSNR of {error}: measure it again") from error

    folder = {row["what"]: float(row["seconds"]) for row in rows(results, "folder")}
    ours = {
        "SingleSets": means("HATFreq-light, single pass"),
        "EightSets": means("HATFreq-light, x8 self-ensemble"),
        "Seeds": str(len({row["seed"] for row in rows(results, "ablation")})),
        "AblationSteps": f"{int(rows(results, 'ablation')[0]['steps']):,}",
        "SelectionSteps": f"{int(rows(results, 'selection_effect')[0]['steps']):,}",
        "SelectionImages": f"{int(rows(results, 'selection_effect')[0]['images']):,}",
        "FolderSeconds": f"{folder['test.py, as it prints']:.1f}",
        "Level": f"{LEVEL:.0%}",
        "SelectionSentences": selection(results)[1],
        **module_sentences(results),
    }
    return commands({**of_the_code(root), **of_the_card(read_card(root / CARD), results), **ours, **settings(results)})


def of_the_code(root: Path) -> dict[str, str]:
    """What presets, configurations and submission.yaml say, for sentences."""
    plain, fused, shape = cost("large", "none"), cost("large", "both"), PRESETS["large"]
    configs, facts = stage_configs(root / "configs"), read_facts(root / FILE)
    common = {key: configs[0][key] for key in ("betas", "loss", "ema", "precision")}
    assert all(config[key] == value for config in configs for key, value in common.items())  # said once for all three
    assert common["loss"] == ["l1=1"]
    return {
        "Title": facts.title,
        "Challenge": facts.challenge,
        "TeamId": f"{facts.team_id:02}",
        "LightParameters": f"{cost('light', 'both').parameters:,}",
        "LargeMore": f"{fused.parameters / plain.parameters - 1:.1%}",
        "LargeMacsMore": f"{fused.macs / plain.macs - 1:.1%}",
        "LargeGroups": str(len(shape.depths)),
        "LargeBlocks": str(shape.depths[0]),
        "LargeChannels": str(shape.embed_dim),
        "LargeHeads": str(shape.num_heads[0]),
        "LargeWindow": str(shape.window_size),
        "Knots": str(KNOTS),
        "Side": str(SIDE),
        "BlockChannels": str(PRESETS[BLOCK[0]].embed_dim),
        "Betas": ", ".join(map(str, common["betas"])),
        "Average": str(common["ema"]),
        "TrainingPrecision": common["precision"],
    }


def of_the_card(card: Card, results: Path) -> dict[str, str]:
    """How the weights were trained, for sentences.

    Raises:
        ResultsError: the quality was measured with other weights.
    """
    weights = card.runs[-1].sha256[:12]
    if f"sha256 {weights}" not in setting(results, "quality"):
        raise ResultsError(
            f"{results / 'quality.md'} is not of the weights in the model zoo, sha256 {weights}: run "
            f"{SOURCES['quality'].command} again"
        )
    return {
        "LightPhotographs": f"{card.photographs:,}",
        "LightPatches": f"{sum(run.patches for run in card.runs):,}",
        "LightSteps": listed([f"{run.steps:,}" for run in card.runs]),
        "LightMinutes": listed([str(run.minutes) for run in card.runs]),
        "LightMachine": listed(list(dict.fromkeys(counted(run.machine) for run in card.runs))),
    }


def settings(results: Path) -> dict[str, str]:
    """How each table was measured: the command, and the paragraph of the results' Markdown."""
    names = {"Quality": "quality", "Ablation": "ablation", "Selection": "selection_effect"}
    names |= {"Speed": "forward_cpu", "Folder": "folder"}
    return {
        f"{word}Setting": f"`python {SOURCES[name].command}`: {setting(results, name)}" for word, name in names.items()
    }


def texts(root: Path, results: Path) -> dict[str, str]:
    """File name -> content of everything that is LaTeX."""
    return {
        "numbers.tex": numbers(root, results),
        "team.tex": team(read_facts(root / FILE)),
        "complexity.tex": complexity(),
        "stages.tex": stages(root / "configs"),
        "quality.tex": quality(results),
        "speed.tex": speed(results),
        "ablation.tex": modules(results),
        "selection.tex": selection(results)[0],
    }


def generate(root: Path, results: Path, out: Path) -> None:
    """Write everything; files come under their names only when all are made.

    Raises:
        ResultsError, FactsError, CardError: something that it is made from is missing.
    """
    os.environ["SOURCE_DATE_EPOCH"] = str(EPOCH)
    found, scores, counts = texts(root, results), ablation_scores(results), flow(results)
    preset, window, side = BLOCK
    dim = PRESETS[preset].embed_dim
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as folder:
        partial = Path(folder)
        figures.draw_flow(partial / "flow.pdf", counts)
        block = shapes.block_shapes(dim, window, side, side)
        figures.draw_block(partial / "block.pdf", block, shapes.gains(dim, window))
        figures.draw_quality(partial / "quality.pdf", measured_quality(results))
        ablation.draw_bands(partial / "spectrum.pdf", scores)
        for name, text in found.items():
            write_bytes(partial / name, text.encode())
        for path in sorted(partial.iterdir()):
            path.replace(out / path.name)


def main(argv: Sequence[str] | None = None) -> None:
    """Generate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results")
    parser.add_argument("--out", type=Path, default=ROOT / "factsheet" / "generated", help="folder to write to")
    args = parser.parse_args(argv)
    try:
        generate(ROOT, args.results, args.out)
    except (ResultsError, CardError, FactsError, OSError) as error:
        raise SystemExit(f"factsheet: {error}") from error
    print(f"tables and figures -> {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
