"""The rules that people break are checked, and the package holds what is asked for."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from models.team08_HATFreq import main
from scripts import check_submission
from scripts.check_submission import email, faults
from utils.submission import Facts, Member, read_facts

FOLDER = "team08_HATFreq"
WEIGHTS = f"model_zoo/{FOLDER}/hatfreq_light_x4.safetensors"


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """What the checks look at, copied."""
    for part in ("models", "model_zoo"):
        shutil.copytree(root / part / FOLDER, tmp_path / part / FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / "README.md", tmp_path / "README.md")
    return tmp_path


def test_this_repository_is_in_order(root: Path) -> None:
    assert list(faults(root, read_facts(), draft=True)) == []
    assert any("lacks members" in one for one in faults(root, Facts(8, method="HATFreq", team_id=8), draft=False))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda root: (root / "models" / FOLDER).rename(root / "models" / "team8-HATFreq"),
            "models/team08_HATFreq does",
        ),
        (lambda root: (root / "models" / FOLDER / "my-code.py").touch(), "my-code.py cannot be imported"),
        (lambda root: (root / WEIGHTS).unlink(), "holds no weights"),
        (lambda root: (root / f"{WEIGHTS}.sha256").unlink(), "sha256 is missing or of other weights"),
        (lambda root: (root / f"{WEIGHTS}.sha256").write_text("ab  w"), "sha256 is missing or of other weights"),
        (
            lambda root: (root / WEIGHTS).with_suffix(".json").write_text('{"sha256": ""}'),
            "json is missing or of other",
        ),
        (lambda root: (root / "README.md").write_text("nothing"), "elif model_id == 8:"),
    ],
)
def test_a_broken_copy_is_refused(copy: Path, break_it, says: str) -> None:
    record = Facts(team_id=8, method="HATFreq")
    assert list(faults(copy, record, draft=True)) == []
    break_it(copy)
    assert any(says in one for one in faults(copy, record, draft=True))


def test_main_with_other_parameters_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def three(model_dir, input_path, device):
        pass

    def five(model_dir, input_path, output_path, device, more):
        pass

    for function, says in ((three, "its first four"), (five, "give the others a default"), (None, "has no main")):
        monkeypatch.setattr("models.team08_HATFreq.main", function)
        assert any(says in one for one in faults(copy, Facts(team_id=8, method="HATFreq"), draft=True))
    monkeypatch.setattr("models.team08_HATFreq.main", main)


def test_an_incomplete_file_fails_and_a_draft_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    if not read_facts().missing():
        pytest.skip("submission.yaml is complete")
    assert check_submission.main([]) == 1 and "lacks" in capsys.readouterr().out
    assert check_submission.main(["--draft"]) == 0


def test_the_email_has_its_fields() -> None:
    people = [Member("Ada", "ada@example.org", "Here"), Member("Bob", "bob@example.org", "There")]
    record = Facts("A challenge", 8, "Four", "HATFreq", code="git clone x", results="https://r", user_names=["a", "b"])
    lines = email(Facts(**{**vars(record), "members": people})).splitlines()
    assert lines[0] == "Subject: A challenge - Four (team 08)"
    assert [line[:2] for line in lines[2:8]] == ["a)", "b)", "c)", "d)", "e)", "f)"]
    assert lines[4] == "c) team leader: Ada <ada@example.org>, Here" and "Bob <bob@example.org>, There" in lines[5]
    assert lines[6].endswith("a, b") and "git clone x (commit " in lines[7] and lines[7].endswith("https://r")
    assert "c) team leader: (to be filled in)" in email(record)


@pytest.mark.slow
def test_a_draft_holds_what_is_asked_for(root: Path, tmp_path: Path) -> None:
    """With a stand-in for TeX, so that the committed PDF stays."""
    repository = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "runs", "results_*", ".*_cache", "dist")
    shutil.copytree(root, repository, ignore=ignored)

    def git(*argv: str) -> str:
        argv = ("-c", "user.name=a", "-c", "user.email=a@b", *argv)
        return subprocess.run(["git", *argv], cwd=repository, check=True, capture_output=True, text=True).stdout

    (tmp_path / "bin").mkdir()
    for name, text in (("kpsewhich", "exit 0"), ("pdflatex", f'cp "{repository}"/factsheet/*.pdf "$4"/factsheet.pdf')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PYTHON": sys.executable, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def make(*argv: str) -> "subprocess.CompletedProcess[str]":
        command = ["bash", "scripts/make_submission.sh", *argv]
        return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)

    git("init", "-q")
    assert make("--draft").returncode == 1  # nothing is committed
    subprocess.run([sys.executable, "-m", "factsheet.tables"], cwd=repository, check=True)
    git("add", "-A")
    git("commit", "-qm", "all")
    done = make("--draft")
    assert done.returncode == 0, done.stderr
    out = repository / "dist" / f"DRAFT_{FOLDER}"
    result = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {f"{FOLDER}_code.zip", f"{FOLDER}_factsheet.pdf", f"{FOLDER}_factsheet_sources.zip", "email.txt"} <= result
    assert WEIGHTS in result and "SHA256SUMS" in result
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    assert len((out / "SHA256SUMS").read_text().splitlines()) == len(result) - 1
    names = zipfile.ZipFile(out / f"{FOLDER}_code.zip").namelist()
    assert f"{FOLDER}/test.py" in names and f"{FOLDER}/{WEIGHTS}" in names
    names = zipfile.ZipFile(out / f"{FOLDER}_factsheet_sources.zip").namelist()
    assert all(
        f"{FOLDER}_factsheet/{one}" in names for one in ("factsheet/factsheet.tex", "benchmarks/results/quality.pdf")
    )
    first = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert make("--draft").returncode == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == first
    (repository / "test.py").write_text("")
    assert make("--draft").returncode == 1 and git("status", "--porcelain").strip() == "M test.py"
