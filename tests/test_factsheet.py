"""The factsheet's tables and figures come from the results files and the code, and so does the committed PDF."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks import ablation
from benchmarks.paired import Difference, verdict
from benchmarks.quality_tables import METRICS
from factsheet import EPOCH, figures, generate, sources
from factsheet.card import CardError, read_card
from factsheet.complexity import cost
from factsheet.latex import escaped, power, table
from factsheet.results import (
    ResultsError,
    ablation_scores,
    flow,
    measured_quality,
    rows,
    selection_scores,
    setting,
)
from factsheet.shapes import block_shapes, gains
from factsheet.wording import against_base, against_start, told_apart
from models.team08_HATFreq import PRESETS, HATFreq
from submission.facts import read_facts

PDF = "factsheet/HATFreq_factsheet.pdf"
STYLES = ("booktabs.sty", "caption.sty", "microtype.sty", "lmodern.sty", "xcolor.sty")


@pytest.fixture
def results(root: Path) -> Path:
    """The folder of results files."""
    return root / "benchmarks" / "results"


# ---------------------------------------------------------------------------------------------------------------------
# From the code
# ---------------------------------------------------------------------------------------------------------------------


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
    assert cost("light", "both").parameters == sum(p.numel() for p in HATFreq(PRESETS["light"]).parameters())


def test_activations_are_those_of_the_layers() -> None:
    """`light` layer by layer: 12 blocks and 3 overlapping attentions of 32 channels in 3 groups, on 64x64 pixels."""
    pixels, c = 64 * 64, 32
    attentions = 15 * pixels * (3 * c + c + 2 * c + c)  # queries, keys and values; projection; the two of the MLP
    convolutions = pixels * (c + 12 * 2 * c + 3 * c + c + 3 * 16)  # first, blocks, groups' ends, after them, upsampler
    channel_attention = 12 * (c // 8 + c)
    assert cost("light", "none").activations == attentions + convolutions + channel_attention
    half = pixels * c // 2
    spectrum = 2 * (c // 2) * 64 * 33  # real and imaginary parts
    more = 3 * (half + spectrum + pixels * c)
    assert cost("light", "both").activations == attentions + convolutions + channel_attention + more


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


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the text of every figure that is saved."""
    found: list[str] = []
    save = Figure.savefig

    def spied(figure: Figure, path: Path) -> None:
        found.extend(one.get_text() for one in figure.findobj(Text))
        save(figure, path)

    monkeypatch.setattr(Figure, "savefig", spied)
    return found


def test_figures_hold_the_counts_and_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn(monkeypatch)
    steps = ["pool", "readable", "evaluation images guarded", "pairs verified against evaluation"]
    steps += ["pairs verified within the pool", "removed for evaluation", "removed within the pool", "queries"]
    counts = {step: 1000 + number for number, step in enumerate([*steps, "eligible", "chosen"])}
    figures.draw_flow(tmp_path / "flow.pdf", counts)
    assert all(f"{count:,}" in " ".join(texts) for count in counts.values())
    texts.clear()
    shapes, sizes = block_shapes(24, 8, 16, 40), gains(24, 8)
    figures.draw_block(tmp_path / "block.png", shapes, sizes)
    shown = {size for text in texts for size in re.findall(r"\d+(?:×\d+)+", text)}
    wanted = {"×".join(map(str, shape)) for shape in [*shapes.values(), *sizes.values()]}
    assert shown == wanted | {"1×1", "8×8"}  # a convolution's and a window's beside them


def test_the_quality_figure_shows_every_method(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, found = drawn(monkeypatch), measured_quality(results)
    figures.draw_quality(tmp_path / "quality.pdf", found)
    assert {one.method for one in found} | {one.set for one in found} <= set(texts)


# ---------------------------------------------------------------------------------------------------------------------
# From the results
# ---------------------------------------------------------------------------------------------------------------------


def test_a_missing_results_file_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"quality\.csv does not exist: make it with python benchmarks/quality\.py"):
        measured_quality(tmp_path)
    (tmp_path / "ablation.csv").write_text("variant,seed,set,steps,psnr_y\n")
    with pytest.raises(ResultsError, match=r"ablation\.csv is empty"):
        rows(tmp_path, "ablation")
    (tmp_path / "folder.csv").write_text("what,time\na,1\n")
    with pytest.raises(ResultsError, match=r"folder\.csv has no column seconds: make it with python benchmarks/fol"):
        rows(tmp_path, "folder")
    with pytest.raises(ResultsError, match=r"folder\.md does not exist"):
        setting(tmp_path, "folder")
    with pytest.raises(SystemExit, match="factsheet: "):
        generate.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_results_of_different_runs_are_refused(results: Path, tmp_path: Path) -> None:
    for name in ("ablation.csv", "ablation_bands.csv"):
        shutil.copy(results / name, tmp_path)
    found = ablation_scores(tmp_path)
    assert {variant for variant, _ in found} == set(ablation.VARIANTS)
    lines = (tmp_path / "ablation.csv").read_text().splitlines()
    (tmp_path / "ablation.csv").write_text("\n".join([*lines, "both,99,Set5,600,20.0\n"]))
    with pytest.raises(ResultsError, match="of different runs"):
        ablation_scores(tmp_path)
    (tmp_path / "ablation.csv").write_text("\n".join(line for line in lines if not line.startswith("both,0")))
    with pytest.raises(ResultsError, match=r"ablation\.csv is incomplete"):
        ablation_scores(tmp_path)


def test_an_incomplete_selection_is_refused(tmp_path: Path) -> None:
    head = "seed,trained_on,images,steps,psnr_y\n"
    (tmp_path / "selection_effect.csv").write_text(f"{head}0,a,1,1,20\n1,a,1,1,21\n1,b,1,1,23\n0,b,1,1,22\n")
    assert selection_scores(tmp_path, ("a", "b")) == {"a": [20, 21], "b": [22, 23]}  # seed by seed
    with pytest.raises(ResultsError, match="incomplete"):
        selection_scores(tmp_path, ("a", "c"))


def test_scores_survive_their_files(results: Path) -> None:
    """What is read back gives the sentences of the results' own Markdown."""
    text = (results / "ablation.md").read_text()
    found = ablation.differences(ablation_scores(results), "mean")
    assert all(verdict(f"`{a}`", f"`{b}`", one) in text for (a, b), one in found.items())
    counts = flow(results)
    assert counts["pool"] >= counts["readable"] >= counts["eligible"] >= counts["chosen"]


def test_the_setting_is_the_last_paragraph(tmp_path: Path) -> None:
    text = "| a |\n|---|\n\n2 thread(s) of 1 core(s)\nfp32\n\n### Published by others, not run here\n\n| b |\n"
    (tmp_path / "folder.md").write_text(text)
    assert setting(tmp_path, "folder") == "2 threads of 1 core; fp32"
    (tmp_path / "folder.md").write_text("| a |\n|---|\n")
    with pytest.raises(ResultsError, match="does not end with what was measured"):
        setting(tmp_path, "folder")


def test_cards_tell_every_run_once(root: Path, results: Path, tmp_path: Path) -> None:
    card = read_card(root / generate.CARD)
    weights = root / generate.CARD.with_suffix(".safetensors.sha256")
    assert card.runs[-1].sha256 == weights.read_text().split()[0]
    assert len({run.sha256 for run in card.runs}) == len(card.runs)
    page = (root / generate.CARD).read_text()
    for one in measured_quality(results):
        if one.method == "HATFreq-light, single pass":
            assert f"| {one.set} | {one.means['PSNR']:.3f} / {one.means['SSIM']:.4f} |" in page
    with pytest.raises(CardError, match="does not exist"):
        read_card(tmp_path / "card.md")
    (tmp_path / "card.md").write_text("# weights\n")
    with pytest.raises(CardError, match="does not tell runs and data"):
        read_card(tmp_path / "card.md")


def test_quality_of_other_weights_is_refused(root: Path, results: Path, tmp_path: Path) -> None:
    card = read_card(root / generate.CARD)
    text = (results / "quality.md").read_text()
    (tmp_path / "quality.md").write_text(text.replace(card.runs[-1].sha256[:12], "0" * 12))
    with pytest.raises(ResultsError, match=r"not of the weights in the model zoo.*run benchmarks/quality\.py again"):
        generate.of_the_card(card, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Sentences and LaTeX
# ---------------------------------------------------------------------------------------------------------------------


def test_sentences_follow_the_intervals() -> None:
    better, worse, same = (Difference((mean, mean), 0.01) for mean in (0.02, -0.02, 0.005))
    assert told_apart("A", "B", better) == "A did better than B (+0.0200 dB, 95% interval +0.0100 to +0.0300)."
    assert "A did worse than B" in told_apart("A", "B", worse) and "A cannot be told from" in told_apart("A", "B", same)
    assert against_base("none", {"x": same, "y": same}).startswith("No variant can be told from none")
    assert "What y changes lies between -0.005 and +0.015 dB" in against_base("none", {"x": same, "y": same})
    mixed = against_base("none", {"x": better, "y": same, "z": worse})
    assert "x did better than none" in mixed and "z did worse than none" in mixed
    assert mixed.endswith("y cannot be told from none.")
    assert against_start({"a": worse, "b": worse}).endswith("the network did worse than at the start.")
    found = against_start({"a": better, "b": worse, "c": worse})
    assert found == "Compared with the start, the network did better with a; worse with b and c."


def test_latex_is_escaped_and_gaps_are_shown(tmp_path: Path) -> None:
    assert escaped("5 % of `a_b` & {c}\\^~") == (
        r"5 \% of \texttt{a\_b} \& \{c\}\textbackslash{}\textasciicircum{}\textasciitilde{}"
    )
    assert escaped("-0.5 to hq480-a, 64x64, 2.1x, x8, x4plus, 1e-07") == (
        r"$-$0.5 to hq480-a, 64$\times$64, 2.1$\times$, $\times$8, x4plus, 1e-07"
    )
    assert power(2e-4) == r"$2.0\cdot10^{-4}$" and escaped(power(2e-4)) == power(2e-4)
    assert table(["a_b"], [["1"], [], [2]], "l").splitlines()[2:6] == [r"a\_b \\", r"\midrule", r"1 \\", r"\midrule"]
    (tmp_path / "s.yaml").write_text("team_id: 8\nteam_name: A & B\nmembers: [{name: C, email: c@d.e}]\n")
    text = generate.team(read_facts(tmp_path / "s.yaml"))
    assert r"A \& B, team id 08" in text and r"\gap{user\_names}" in text
    assert r"C (\gap{members[1].affiliation}, c@d.e)" in text


def test_the_text_repeats_no_figure(root: Path) -> None:
    """No result stands in the sources; every command that they use is generated, and none is generated in vain."""
    text = (root / "factsheet" / "factsheet.tex").read_text()
    body = text[text.index(r"\begin{document}") :]
    assert not re.findall(r"(?<!width=)(?<!\d)\d*\.\d{2,}", body.replace(r"width=.66\linewidth", ""))
    names = re.findall(r"\\newcommand\{\\(\w+)\}", (root / "factsheet" / "generated" / "numbers.tex").read_text())
    assert [name for name in names if not re.search(rf"\\{name}(?![a-zA-Z])", text)] == []


# ---------------------------------------------------------------------------------------------------------------------
# The document
# ---------------------------------------------------------------------------------------------------------------------


def test_generated_sources_are_those_of_the_results(root: Path, results: Path) -> None:
    committed, found = root / "factsheet" / "generated", generate.texts(root, results)
    for name, text in found.items():
        assert (committed / name).read_text() == text, f"{name} is old: run bash scripts/build_factsheet.sh"
    assert {path.name for path in committed.glob("*.tex")} == set(found)


def test_sources_are_packed_alike(tmp_path: Path) -> None:
    (tmp_path / "generated").mkdir()
    for name in ("factsheet.tex", "factsheet.pdf", "factsheet.aux", "generated/b.tex", "generated/a.pdf"):
        (tmp_path / name).write_text(name)
    first = sources.packed(tmp_path)
    (tmp_path / "factsheet.tex").touch()
    assert sources.packed(tmp_path) == first
    sources.main([str(tmp_path), str(tmp_path / "s.zip")])
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        names = [name.removeprefix(f"{sources.NAME}/") for name in archive.namelist()]
        assert names == ["factsheet.tex", "generated/a.pdf", "generated/b.tex"]
    with pytest.raises(SystemExit, match=r"holds no factsheet\.tex"):
        sources.main([str(tmp_path / "generated"), str(tmp_path / "t.zip")])


def lines_of(pdf: Path) -> list[str]:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed (Debian: poppler-utils)")
    done = subprocess.run(["pdftotext", "-layout", str(pdf), "-"], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def has_row(lines: list[str], *cells: str) -> bool:
    """Whether a line holds all cells in their order."""
    pattern = r"\s.*?".join(map(re.escape, cells))
    return any(re.search(rf"{pattern}(?!\d)", line) for line in lines)


def test_the_committed_pdf_holds_the_results(root: Path, results: Path) -> None:
    lines = lines_of(root / PDF)
    for one in measured_quality(results):
        figures_shown = [form.format(one.means[key]) for key, form in METRICS.items() if key in one.means]
        seconds = [f"{one.seconds:.3f}"] if one.seconds else []
        assert has_row(lines, one.method.replace("x8", "×8"), *figures_shown, *seconds), one
    for row in rows(results, "forward_cpu"):
        if row["kind"] != "reference HAT":
            size = row["size"].replace("x", "×")
            assert has_row(lines, size, row["kind"], f"{float(row['seconds']):.2f}", f"{float(row['faster']):.2f}×")
    for (a, b), one in ablation.differences(ablation_scores(results), "mean").items():
        if b == "none":
            assert has_row(lines, a, f"{one.mean:+.4f}".replace("-", "−"), f"± {one.half:.4f}"), a
    for preset in PRESETS:
        parameters = [f"{cost(preset, frequency).parameters:,}" for frequency in ("none", "both")]
        assert has_row(lines, preset, *parameters)
    assert not has_row(lines, "bicubic", "99.999")


@pytest.mark.slow
def test_a_rebuilt_pdf_says_the_same(root: Path, tmp_path: Path) -> None:
    """The script makes the committed text anew; its zip compiles, to the same bytes."""
    installed = shutil.which("pdflatex") and shutil.which("kpsewhich")
    for style in STYLES:
        installed = installed and subprocess.run(["kpsewhich", style], capture_output=True).returncode == 0
    if not installed:
        pytest.skip("TeX is not installed (Debian: texlive-latex-recommended texlive-fonts-recommended lmodern)")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    out = tmp_path / "out"
    (out / "generated").mkdir(parents=True)
    (out / "generated" / "of_an_earlier_version.tex").write_text("")
    done = subprocess.run(
        ["bash", "scripts/build_factsheet.sh"],
        cwd=root,
        env={"PATH": path, "PYTHON": sys.executable, "OUT": str(out)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert lines_of(out / "HATFreq_factsheet.pdf") == lines_of(root / PDF)
    committed = {path.name for path in (root / "factsheet" / "generated").iterdir()}
    assert {path.name for path in (out / "generated").iterdir()} == committed
    assert [path.name for path in (out / "build").iterdir()] == ["HATFreq_factsheet_sources.zip"]
    with zipfile.ZipFile(out / "build" / "HATFreq_factsheet_sources.zip") as archive:
        archive.extractall(tmp_path)
    folder, dated = tmp_path / sources.NAME, {"SOURCE_DATE_EPOCH": str(EPOCH), "FORCE_SOURCE_DATE": "1"}
    for _ in range(2):
        words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "factsheet.tex"]
        subprocess.run(words, cwd=folder, env={"PATH": path, **dated}, check=True, capture_output=True)
    assert (folder / "factsheet.pdf").read_bytes() == (out / "HATFreq_factsheet.pdf").read_bytes()


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
