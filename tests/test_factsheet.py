"""The factsheet's tables and figures come from the results files and the code, and so does the committed PDF."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ablation
from factsheet import figures, generate
from factsheet.complexity import cost
from factsheet.results import ResultsError, ablation_scores, flow, measured_quality, rows
from factsheet.shapes import block_shapes, gains
from models.team08_HATFreq import PRESETS, HATFreq
from submission.facts import read_facts

PDF = "factsheet/HATFreq_factsheet.pdf"


def test_what_a_preset_costs_is_counted() -> None:
    """HAT's published figures at 64x64: 9.6, 20.8 and 40.8 M parameters; 54.6, 103.9 and 203.0 GMAC."""
    found = {name: cost(name, "none") for name in ("small", "base", "large")}
    assert {name: one.parameters for name, one in found.items()} == {
        "small": 9_621_183,
        "base": 20_772_507,
        "large": 40_846_575,
    }
    assert {name: round(one.macs / 1e9, 1) for name, one in found.items()} == {
        "small": 54.6,
        "base": 103.9,
        "large": 203.0,
    }
    light = cost("light", "both")
    assert light.parameters == sum(p.numel() for p in HATFreq(PRESETS["light"]).parameters())
    assert light.activations > cost("light", "none").activations > 64 * 64 * 32 * 12


def test_the_blocks_shapes_are_those_of_a_pass() -> None:
    found = block_shapes(24, 8, 16, 40)
    assert found == {
        "input": (1, 16, 40, 24),
        "reduce": (1, 12, 16, 40),
        "global spectrum": (1, 12, 16, 21),
        "global": (1, 12, 16, 40),
        "window spectrum": (10, 12, 8, 5),
        "window": (1, 12, 16, 40),
        "joined": (1, 24, 16, 40),
        "fuse": (1, 24, 16, 40),
        "output": (1, 16, 40, 24),
    }
    assert gains(24, 8) == {"mix": (24, 24), "global gain": (12, 16), "window gain": (12, 8, 5)}


def test_figures_hold_the_counts_and_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    original = figures._box
    monkeypatch.setattr(figures, "_box", lambda *args: (texts.append(args[5]), original(*args))[1])
    steps = ["pool", "readable", "evaluation images guarded", "pairs verified against evaluation"]
    steps += ["pairs verified within the pool", "removed for evaluation", "removed within the pool", "queries"]
    counts = {step: 1000 + number for number, step in enumerate([*steps, "eligible", "chosen"])}
    figures.draw_flow(tmp_path / "flow.pdf", counts)
    assert all(f"{count:,}" in " ".join(texts) for count in counts.values())
    figures.draw_block(tmp_path / "block.png", block_shapes(24, 8, 16, 16), gains(24, 8))
    assert "12x8x5" in " ".join(texts) and (tmp_path / "block.png").stat().st_size > 5_000


def test_a_missing_results_file_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"quality\.csv does not exist: make it with python benchmarks/quality\.py"):
        measured_quality(tmp_path)
    (tmp_path / "ablation.csv").write_text("variant,seed,set,steps,psnr_y\n")
    with pytest.raises(ResultsError, match=r"ablation\.csv is empty"):
        rows(tmp_path, "ablation")
    with pytest.raises(SystemExit, match="factsheet: "):
        generate.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_results_of_different_runs_are_refused(root: Path, tmp_path: Path) -> None:
    for name in ("ablation.csv", "ablation_bands.csv"):
        shutil.copy(root / "benchmarks" / "results" / name, tmp_path)
    assert len(ablation_scores(tmp_path)) == 5 * 3
    text = (tmp_path / "ablation.csv").read_text()
    (tmp_path / "ablation.csv").write_text(f"{text}both,9,Set5,600,20.0\n")
    with pytest.raises(ResultsError, match="of different runs"):
        ablation_scores(tmp_path)


def test_scores_survive_their_files(root: Path) -> None:
    """What is read back gives the sentences of the results' own Markdown."""
    results = root / "benchmarks" / "results"
    table = (results / "ablation.md").read_text()
    found = ablation.differences(ablation_scores(results), "mean")
    assert all(ablation.verdict(f"`{a}`", f"`{b}`", one) in table for (a, b), one in found.items())
    assert flow(results)["pool"] >= flow(results)["eligible"] >= flow(results)["chosen"]


def test_latex_is_escaped_and_gaps_are_shown(tmp_path: Path) -> None:
    assert generate.escaped("5 % of `a_b` & {c}\\") == r"5 \% of \texttt{a\_b} \& \{c\}\textbackslash{}"
    (tmp_path / "s.yaml").write_text("team_id: 8\nteam_name: A & B\nmembers: [{name: C, email: c@d.e}]\n")
    text = generate.team(read_facts(tmp_path / "s.yaml"))
    assert r"A \& B, team id 08" in text and r"\gap{user\_names}" in text and "C (, c@d.e)" in text


def test_generated_sources_are_those_of_the_results(root: Path) -> None:
    committed = root / "factsheet" / "generated"
    for name, text in generate.texts(root, root / "benchmarks" / "results").items():
        assert (committed / name).read_text() == text, f"{name} is old: run bash scripts/build_factsheet.sh"


def words_of(pdf: Path) -> list[str]:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed (Debian: poppler-utils)")
    done = subprocess.run(["pdftotext", "-layout", str(pdf), "-"], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_the_committed_pdf_holds_the_results(root: Path) -> None:
    words = words_of(root / PDF)
    for one in measured_quality(root / "benchmarks" / "results"):
        assert f"{one.means['PSNR']:.3f}" in words and f"{one.means['SSIM']:.4f}" in words, one
    for row in rows(root / "benchmarks" / "results", "forward_cpu"):
        if row["kind"] != "reference HAT":
            assert f"{float(row['faster']):.2f}x" in words
    assert f"{cost('large', 'both').parameters:,}" in words


@pytest.mark.slow
def test_a_rebuilt_pdf_says_the_same(root: Path, tmp_path: Path) -> None:
    installed = shutil.which("pdflatex") and shutil.which("kpsewhich")
    for style in ("booktabs.sty", "microtype.sty", "lmodern.sty", "xcolor.sty"):
        installed = installed and subprocess.run(["kpsewhich", style], capture_output=True).returncode == 0
    if not installed:
        pytest.skip("TeX is not installed (Debian: texlive-latex-recommended texlive-fonts-recommended lmodern)")
    done = subprocess.run(
        ["bash", "scripts/build_factsheet.sh"],
        cwd=root,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHON": sys.executable, "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert words_of(tmp_path / "HATFreq_factsheet.pdf") == words_of(root / PDF)
    assert (tmp_path / "build" / "HATFreq_factsheet_sources.zip").stat().st_size > 10_000


def test_missing_tex_is_named(root: Path, tmp_path: Path) -> None:
    for name in ("bash", "dirname", "cat"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [str(tmp_path / "bash"), "scripts/build_factsheet.sh"],
        cwd=root,
        env={"PATH": str(tmp_path), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "pdflatex is missing: apt install texlive-latex-recommended" in done.stderr


def test_the_text_repeats_no_figure(root: Path) -> None:
    """Decimals in the sources are settings of the method; results come from generated/."""
    text = re.sub(r"\\(?:usepackage|includegraphics|setlength|definecolor|renewcommand|newcommand).*", "",
                  (root / "factsheet" / "factsheet.tex").read_text())  # fmt: skip
    assert set(re.findall(r"\d+\.\d{2,}", text)) <= {"0.99", "0.999"}
    assert importlib.util.find_spec("factsheet") is not None
