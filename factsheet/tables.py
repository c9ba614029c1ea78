"""Write the factsheet's tables and the numbers in its sentences, from the results files and the weights' facts.

    python -m factsheet.tables       # into factsheet/generated/

The tables of finished experiments (frequency.tex, selection.tex, flow.tex) stand there as they were measured
(docs/LOG.md).
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.files import UserError, command, write_bytes
from utils.submission import Facts, read_facts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OUT = Path(__file__).with_name("generated")
WEIGHTS = ROOT / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.json"
STAGES = {"stage1_imagenet": "ImageNet", "stage2_df2k": "DF2K", "stage3_ldcc": "Data-LDCC and DF2K"}
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "{}$&#%_"} | {"\\": r"\textbackslash{}"})


def latex(text: str) -> str:
    """Text for LaTeX: `code` in typewriter, minus signs before numbers, and times signs in sizes and factors."""
    text = text.translate(_SPECIAL).replace("~", r"\textasciitilde{}").replace("±", r"$\pm$")
    text = re.sub(r"`([^`]*)`", r"\\texttt{\1}", text)
    text = re.sub(r"(?<![\w.)}-])-(?=\d)", "$-$", text)
    return re.sub(r"(?<=\d)x(?=\d|\b)|\bx(?=\d+\b)", r"$\\times$", text)


@dataclass
class Result:
    """A result of benchmarks/: its tables by title, as rows of cells with the head first, and how it was measured."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    setting: dict[str, str] = field(default_factory=dict)


def read_result(path: Path) -> Result:
    """Read the Markdown that a benchmark writes.

    Raises:
        UserError: the file is missing or holds no table.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; docs/results.md names the command that measures it")
    result, title = Result(), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            title = line.removeprefix("### ")
        elif line.startswith("|") and not line.startswith("|---"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set("".join(cells)) != {"-"}:
                result.tables.setdefault(title, []).append(cells)
        elif line.startswith("- ") and ": " in line:
            key, value = line.removeprefix("- ").split(": ", 1)
            result.setting[key] = value
    if not result.tables:
        raise UserError(f"{path} holds no table")
    return result


def tabular(blocks: Sequence[Sequence[Sequence[str]]], columns: str, source: str = "") -> str:
    """Tables of one head as a LaTeX table, a rule between them, and below it how it was measured."""
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(map(latex, blocks[0][0])) + r" \\"]
    for block in blocks:
        lines += ["\\midrule", *(" & ".join(map(latex, row)) + r" \\" for row in block[1:])]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", source]).strip() + "\n"


def source(setting: dict[str, str]) -> str:
    """How a result was measured, in one line: its weights by sha256, command, machine, versions, date and commit."""
    parts = [f"weights: {setting['weights'].split(', ')[-1].replace('`', '')}"] if "weights" in setting else []
    parts += [setting[key] for key in ("data", "training", "precision", "machine", "versions") if key in setting]
    argv = setting["command"].strip("`").split()
    parts += [f"`{' '.join(argv[: 3 if argv[1] == '-m' else 2])}`"]
    parts += [f"measured {setting['measured']} at commit {setting['commit']}"]
    return f"\\measured{{{latex('; '.join(parts))}}}"


def quality(result: Result) -> str:
    """All sets in one table; a teacher is marked."""
    head = ["set", "method", "parameters", "PSNR", "SSIM", "LPIPS", "NIQE", "s an image"]
    blocks = []
    for title, (_, *rows) in result.tables.items():
        if title.endswith("measured here"):
            name = title.split(" (")[0]
            blocks.append([head, *([name if row is rows[0] else "", *row] for row in rows)])
    return tabular(blocks, "llrrrrrr", source(result.setting))


def stages() -> str:
    """The submission's three stages, from configs/."""
    rows = []
    for number, (name, data) in enumerate(STAGES.items(), start=1):
        config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        size, halved = f"{config['patch']}x{config['patch']}", f"{len(config['milestones'])} times"
        lr = f"{config['lr']:f}".rstrip("0")
        rows.append([str(number), data, size, str(config["batch"]), f"{config['steps']:,}", lr, halved])
    head = ["stage", "data", "LR patch", "batch", "steps", "peak rate", "halved"]
    return tabular([[head, *rows]], "llrrrrr")


def team(facts: Facts) -> str:
    """The first page's table; what submission.yaml lacks is a visible gap."""
    people = [f"{latex(one.name)} ({latex(one.affiliation)}, {latex(one.email)})" for one in facts.members]
    lines = {
        "team_name": ("Team", f"{latex(facts.team_name)}, team id {facts.team_id:02}"),
        "members": ("Members, the leader first", r"\newline ".join(people)),
        "affiliation": ("Affiliation", latex(facts.affiliation)),
        "sponsors": ("Affiliation with sponsors", latex(facts.sponsors)),
        "user_names": ("User names on the server", latex(", ".join(facts.user_names))),
        "score_development": ("Best score, development", latex(facts.score_development)),
        "score_test": ("Best score, test", latex(facts.score_test)),
        "code": ("Code", latex(facts.code)),
        "results": ("Restored images", latex(facts.results)),
    }
    for key in {gap.split("[")[0] for gap in facts.missing()} & set(lines):
        lines[key] = lines[key][0], rf"\gap{{{latex(key)}}}"
    rows = [rf"\textbf{{{label}}} & {text} \\" for label, text in lines.values()]
    return "\n".join([r"\begin{tabular}{@{}lp{0.66\linewidth}@{}}", *rows, r"\end{tabular}"]) + "\n"


def numbers(facts: Facts, weights: dict[str, Any]) -> str:
    """Commands for the numbers inside sentences."""
    runs = weights["runs"]
    teachers = dict.fromkeys(run["teacher"]["name"] for run in runs if run["teacher"])

    def scores(passes: str) -> str:
        return ", ".join(f"{one[passes]['psnr']:.2f} ({name})" for name, one in weights["scores"].items())

    texts = {
        "Title": facts.title,
        "Challenge": facts.challenge,
        "TeamId": f"{facts.team_id:02}",
        "LightSha": weights["sha256"][:12],
        "LightParameters": f"{weights['parameters']:,}",
        "LightRuns": f"{len(runs)} run{'s' * (len(runs) > 1)}",
        "LightMinutes": f"{sum(run['minutes'] for run in runs):,}",
        "LightPatches": f"{sum(run['patches'] for run in runs):,}",
        "LightMachine": f"{runs[-1]['machine']}, {runs[-1]['gpu'] or 'no GPU'}",
        "LightTeacher": f"{', '.join(teachers)} as the teacher" if teachers else "no teacher network",
        "LightScores": scores("single"),
        "LightScoresEnsemble": scores("x8"),
    }
    return "".join(f"\\newcommand{{\\{name}}}{{{latex(text)}}}\n" for name, text in texts.items())


def texts() -> dict[str, str]:
    """File name -> LaTeX."""
    measured = {
        name: read_result(RESULTS / f"{name}.md") for name in ("quality", "speed_forward_cpu", "speed_count_cpu")
    }
    facts, weights = read_facts(), json.loads(WEIGHTS.read_text(encoding="utf-8"))
    passes, counts = measured["speed_forward_cpu"], measured["speed_count_cpu"]
    columns = [[row[i] for i in (0, 1, 3, 4, 5, 7, 8, 9)] for row in passes.tables[""]]
    return {
        "numbers": numbers(facts, weights),
        "team": team(facts),
        "stages": stages(),
        "quality": quality(measured["quality"]),
        "speed": tabular([columns], "lllrrrrr", source(passes.setting)),
        "complexity": tabular([counts.tables[""]], "lrrrrrr", source(counts.setting)),
    }


@command("factsheet")
def main(argv: Sequence[str] | None = None) -> None:
    OUT.mkdir(exist_ok=True)
    for name, text in texts().items():
        write_bytes(OUT / f"{name}.tex", text.encode())
    print(f"tables -> {OUT}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
