"""Make the factsheet's tables, numbers and figures from the results files and from the code.

    python -m factsheet.generate            # into factsheet/generated/
    bash scripts/build_factsheet.sh         # the same, then the PDF

Nothing in the sources repeats a figure: a table that has no results file yet is an error that names the command.
"""

import argparse
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import ablation
from benchmarks.paired import LEVEL, paired, verdict
from benchmarks.quality_tables import METRICS, draw
from factsheet import figures, shapes
from factsheet.complexity import SIDE, cost
from factsheet.results import ResultsError, ablation_scores, flow, measured_quality, rows
from models.team08_HATFreq import PRESETS
from models.team08_HATFreq.images import write_bytes
from submission.facts import FILE, Facts, FactsError, missing, read_facts

ROOT = Path(__file__).resolve().parents[1]
EPOCH = "1742515200"  # 21 March 2025, the end of the challenge: figures of the same data are the same bytes
STAGES = ("stage1_imagenet", "stage2_df2k", "stage3_ldcc")
STAGE_DATA = ("ImageNet", "DF2K", "Data-LDCC and DF2K")
CHOICES = {"similar": "chosen", "random": "random", "hardest": "highest loss", "dissimilar": "least similar"}
LATEX = {"\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}"}
LATEX |= {character: f"\\{character}" for character in "{}$&#%_"}
BLOCK = ("base", 16, SIDE)  # preset, window and side of the features that Figure 2 shows


def escaped(text: str) -> str:
    """Text for LaTeX; `code` between grave accents becomes typewriter."""
    text = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", text)


def table(head: Sequence[str], body: Sequence[Sequence[Any]], columns: str) -> str:
    """A LaTeX table of strings and numbers."""
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(map(escaped, head)) + r" \\", "\\midrule"]
    for row in body:
        lines.append("\\midrule" if not row else " & ".join(escaped(str(cell)) for cell in row) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# From the code
# ---------------------------------------------------------------------------------------------------------------------


def complexity() -> str:
    """A row a preset, without and with frequency blocks."""
    body = []
    for preset in PRESETS:
        plain, fused = cost(preset, "none"), cost(preset, "both")
        more = f"{100 * (fused.parameters / plain.parameters - 1):.1f} %"
        body.append([preset, f"{plain.parameters:,}", f"{fused.parameters:,}", more, f"{plain.macs / 1e9:.1f}"])
        body[-1] += [f"{fused.macs / 1e9:.1f}", f"{fused.activations / 1e6:.1f}"]
    head = ["preset", "parameters of HAT", "of HATFreq", "more", "GMAC of HAT", "of HATFreq", "M activations"]
    return table(head, body, "lrrrrrr")


def stages(configs: Path) -> str:
    """A row a stage of the training."""
    body = []
    for number, (name, data) in enumerate(zip(STAGES, STAGE_DATA, strict=True), start=1):
        config = yaml.safe_load((configs / f"{name}.yaml").read_text(encoding="utf-8"))
        size = f"{config['patch']}x{config['patch']}"
        rate = f"{float(config['lr']):g}, halved at {len(config['milestones'])} milestones"
        body.append([number, data, size, config["batch"], f"{config['steps']:,}", rate])
    return table(["stage", "data", "LR patch", "batch", "steps", "rate"], body, "llrrrl")


def team(facts: Facts) -> str:
    """The team's section; what submission.yaml lacks is a visible gap."""
    gaps = missing(facts)

    def shown(key: str, text: str) -> str:
        return f"\\gap{{{escaped(key)}}}" if key in gaps else escaped(text)

    members = "; ".join(f"{one.name} ({one.affiliation}, {one.email})" for one in facts.members)
    lines = [
        ("Challenge", escaped(facts.challenge)),
        ("Team", f"{shown('team_name', facts.team_name)}, team id {facts.team_id:02}"),
        ("Method", escaped(facts.method)),
        ("Members, the leader first", shown("members", members)),
        ("User names on the server", shown("user_names", ", ".join(facts.user_names))),
        ("Code", shown("code", facts.code)),
        ("Restored images", shown("results", facts.results)),
    ]
    items = "\n".join(f"\\item[{label}:] {text}" for label, text in lines)
    return f"\\begin{{description}}\n{items}\n\\end{{description}}\n"


# ---------------------------------------------------------------------------------------------------------------------
# From the results
# ---------------------------------------------------------------------------------------------------------------------


def quality(results: Path) -> str:
    """Methods measured in one run, a block a set."""
    found = measured_quality(results)
    body: list[list[str]] = []
    for name in dict.fromkeys(one.set for one in found):
        body += [[]] if body else []
        for one in (one for one in found if one.set == name):
            cells = [name, one.method, f"{one.parameters / 1e6:.2f}" if one.parameters else ""]
            cells += [form.format(one.means[key]) if key in one.means else "" for key, form in METRICS.items()]
            body.append([*cells, f"{one.seconds:.3f}" if one.seconds else "not measured"])
    return table(["set", "method", "M par.", "PSNR", "SSIM", "LPIPS", "NIQE", "s"], body, "llrrrrrr")


def speed(results: Path) -> str:
    """One pass beside the reference HAT."""
    body = []
    for row in rows(results, "forward_cpu"):
        if row["kind"] != "reference HAT":
            cells = [row["preset"], row["size"], row["kind"], f"{float(row['seconds']):.2f}"]
            body.append([*cells, f"{float(row['faster']):.2f}x", f"{float(row['of_reference']):.2f}"])
            body[-1].append(f"{float(row['difference']):.1e}")
    return table(["preset", "LR", "", "s", "faster", "of its memory", "difference"], body, "lllrrrr")


def modules(results: Path) -> tuple[str, str]:
    """The ablation's table and its sentences."""
    scores = ablation_scores(results)
    names = [*next(iter(scores.values())), "mean"]
    body = []
    for variant in ablation.VARIANTS:
        values = [ablation.over_seeds(scores, variant, name) for name in names]
        body.append([variant, *(f"{statistics.fmean(v):.3f} ({statistics.stdev(v):.3f})" for v in values)])
    found = ablation.differences(scores, "mean")
    sentences = " ".join(escaped(verdict(f"`{a}`", f"`{b}`", one)) for (a, b), one in found.items())
    return table(["module", *names], body, "l" + "r" * len(names)), f"{sentences}\n"


def selection(results: Path) -> tuple[str, str]:
    """What fine-tuning on chosen images gives, and its sentences."""
    scores: dict[str, list[float]] = {}
    for row in rows(results, "selection_effect"):
        scores.setdefault(row["trained_on"], []).append(float(row["psnr_y"]))
    body, sentences = [], []
    for choice, name in CHOICES.items():
        start = paired(scores[choice], scores["start"])
        body.append([name, f"{statistics.fmean(scores[choice]):.3f}", f"{start.mean:+.4f}", ""])
        if choice != "random":
            less = paired(scores[choice], scores["random"])
            body[-1][-1] = f"{less.mean:+.4f} to within {less.half:.4f}"
            sentences.append(escaped(verdict(f"Images {name}", "random ones", less)))
    head = ["trained on", "PSNR", "less the start", f"less random ({LEVEL:.0%})"]
    return table(head, body, "lrrr"), " ".join(sentences) + "\n"


def numbers(results: Path) -> str:
    """Commands for figures inside sentences."""
    found = {(one.method, one.set): one for one in measured_quality(results)}
    single, eight = ("HATFreq-light, single pass", "HATFreq-light, x8 self-ensemble")
    names = list(dict.fromkeys(one.set for one in found.values()))
    plain, fused = cost("large", "none"), cost("large", "both")
    ours = {
        "LightParameters": f"{cost('light', 'both').parameters:,}",
        "LargeParameters": f"{fused.parameters:,}",
        "LargeMore": f"{100 * (fused.parameters / plain.parameters - 1):.1f}\\,\\%",
        "LargeMacsMore": f"{100 * (fused.macs / plain.macs - 1):.1f}\\,\\%",
        "SingleSets": ", ".join(f"{found[single, name].means['PSNR']:.2f} ({name})" for name in names),
        "EightSets": ", ".join(f"{found[eight, name].means['PSNR']:.2f} ({name})" for name in names),
        "Seeds": str(len({row["seed"] for row in rows(results, "ablation")})),
        "AblationSteps": f"{int(rows(results, 'ablation')[0]['steps']):,}",
        "SelectionSteps": f"{int(rows(results, 'selection_effect')[0]['steps']):,}",
        "SelectionImages": f"{int(rows(results, 'selection_effect')[0]['images']):,}",
    }
    return "".join(f"\\newcommand{{\\{name}}}{{{text}}}\n" for name, text in ours.items())


def texts(root: Path, results: Path) -> dict[str, str]:
    """File name -> content of everything that is LaTeX."""
    found_modules, found_selection = modules(results), selection(results)
    return {
        "numbers.tex": numbers(results),
        "team.tex": team(read_facts(root / FILE)),
        "complexity.tex": complexity(),
        "stages.tex": stages(root / "configs"),
        "quality.tex": quality(results),
        "speed.tex": speed(results),
        "ablation.tex": found_modules[0],
        "ablation_sentences.tex": found_modules[1],
        "selection.tex": found_selection[0],
        "selection_sentences.tex": found_selection[1],
    }


def generate(root: Path, results: Path, out: Path) -> None:
    """Write everything.

    Raises:
        ResultsError, FactsError: something that it is made from is missing.
    """
    os.environ.setdefault("SOURCE_DATE_EPOCH", EPOCH)
    found, scores = texts(root, results), ablation_scores(results)
    out.mkdir(parents=True, exist_ok=True)
    preset, window, side = BLOCK
    dim = PRESETS[preset].embed_dim
    figures.draw_flow(out / "flow.pdf", flow(results))
    figures.draw_block(out / "block.pdf", shapes.block_shapes(dim, window, side, side), shapes.gains(dim, window))
    draw(out / "quality.pdf", measured_quality(results))
    ablation.draw_bands(out / "spectrum.pdf", scores)
    for name, text in found.items():
        write_bytes(out / name, text.encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Generate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results")
    parser.add_argument("--out", type=Path, default=ROOT / "factsheet" / "generated", help="folder to write to")
    args = parser.parse_args(argv)
    try:
        generate(ROOT, args.results, args.out)
    except (ResultsError, FactsError, OSError) as error:
        raise SystemExit(f"factsheet: {error}") from error
    print(f"tables and figures -> {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
