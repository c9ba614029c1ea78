"""The packages for the organisers: complete, of one commit, and the same bytes each time."""

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from scripts import make_submission
from submission import package
from submission.facts import read_facts
from submission.package import PackageError, email, make, read_commit

COMPLETE = """
challenge: A challenge
team_id: 8
team_name: Four
method: HATFreq
title: A title
code: git clone https://example.org/code
results: https://example.org/results
user_names: [ada, bob]
members:
- {name: Ada, email: ada@example.org, affiliation: Here}
- {name: Bob, email: bob@example.org, affiliation: There}
"""


def git(root: Path, *words: str) -> None:
    words = ("-c", "user.name=a", "-c", "user.email=a@b", *words)
    subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository with everything that is sent."""
    root = tmp_path / "repository"
    files = {
        "submission.yaml": COMPLETE,
        "test.py": "print()\n",
        "scripts/run.sh": "#!/bin/sh\n",
        "models/team08_HATFreq/__init__.py": "",
        "model_zoo/team08_HATFreq/w.safetensors": "weights",
        "model_zoo/team08_HATFreq/w.md": "card",
        "factsheet/HATFreq_factsheet.pdf": "%PDF",
        "factsheet/factsheet.tex": "tex",
        "factsheet/generated/figure.pdf": "figure",
        "factsheet/generate.py": "",
        ".gitignore": "/dist/\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "scripts" / "run.sh").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all", "--date", "2025-03-21T10:00:00Z")
    return root


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_commit_gives_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    first, _ = make(repository, tmp_path / "one", draft=False)
    (repository / "dist").mkdir()  # ignored: not a change
    for path in repository.rglob("*.py"):
        path.touch()
    again = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(again))
    second, _ = make(again, tmp_path / "two", draft=False)
    assert everything(first) == everything(second)
    assert first.name == "team08_HATFreq"


def test_packages_hold_what_is_asked_for(repository: Path, tmp_path: Path) -> None:
    target, listed = make(repository, tmp_path / "out", draft=False)
    found = everything(target)
    assert sorted(found) == [
        "MANIFEST.txt",
        "email.txt",
        "model_zoo/team08_HATFreq/w.md",
        "model_zoo/team08_HATFreq/w.safetensors",
        "team08_HATFreq_code.zip",
        "team08_HATFreq_factsheet.pdf",
        "team08_HATFreq_factsheet_sources.zip",
    ]
    code = zipfile.ZipFile(io.BytesIO(found["team08_HATFreq_code.zip"]))
    assert code.namelist() == [
        f"team08_HATFreq/{name}"
        for name in (".gitignore", "models/team08_HATFreq/__init__.py", "scripts/run.sh", "submission.yaml", "test.py")
    ]
    modes = {one.filename: one.external_attr >> 16 & 0o777 for one in code.infolist()}
    assert modes["team08_HATFreq/scripts/run.sh"] == 0o755 and modes["team08_HATFreq/test.py"] == 0o644
    assert code.read("team08_HATFreq/test.py") == b"print()\n"
    sources = zipfile.ZipFile(io.BytesIO(found["team08_HATFreq_factsheet_sources.zip"])).namelist()
    assert sources == [f"team08_HATFreq_factsheet/factsheet/{one}" for one in ("factsheet.tex", "generated/figure.pdf")]
    assert found["MANIFEST.txt"].decode() == listed and "DRAFT" not in listed
    for line in listed.splitlines()[1:]:
        digest, size, name = line.split()
        assert hashlib.sha256(found[name]).hexdigest() == digest and len(found[name]) == int(size.replace(",", ""))
    assert len(listed.splitlines()) == len(found)


def test_the_email_has_its_fields(repository: Path) -> None:
    commit = read_commit(repository)
    lines = email(read_facts(repository / "submission.yaml"), commit, ["a.zip"]).splitlines()
    assert lines[0] == "Subject: A challenge - Four (team 08)"
    assert lines[2:8] == [
        "a) challenge: A challenge",
        "b) team: Four, team id 08, method HATFreq",
        "c) team leader: Ada <ada@example.org>, Here",
        "d) other members: Bob, There",
        "e) user names on the competition's server: ada, bob",
        f"f) code: git clone https://example.org/code (commit {commit.name}); restored images: "
        "https://example.org/results",
    ]
    assert lines[-1] == "    a.zip"


def test_gaps_are_named_or_shown(repository: Path, tmp_path: Path) -> None:
    text = COMPLETE[: COMPLETE.index("user_names")] + "user_names: []\nmembers: []\n"
    (repository / "submission.yaml").write_text(text)
    git(repository, "commit", "-qam", "gaps")
    with pytest.raises(PackageError, match=r"submission\.yaml lacks user_names, members: fill them in"):
        make(repository, tmp_path / "out", draft=False)
    assert not (tmp_path / "out").exists()
    target, listed = make(repository, tmp_path / "out", draft=True)
    assert target.name == "DRAFT_team08_HATFreq" and "DRAFT: submission.yaml lacks user_names, members" in listed
    words = (target / "email.txt").read_text()
    assert "c) team leader: (to be filled in: members)" in words and "server: (to be filled in: user_names)" in words


def test_what_is_not_committed_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "new.py").write_text("")
    with pytest.raises(PackageError, match=r"1 change\(s\) are not committed \(\?\? new\.py\)"):
        make(repository, tmp_path / "out", draft=False)
    (repository / "new.py").unlink()
    git(repository, "rm", "-q", "factsheet/HATFreq_factsheet.pdf")
    git(repository, "commit", "-qm", "no factsheet")
    with pytest.raises(PackageError, match=r"make it with bash scripts/build_factsheet\.sh"):
        make(repository, tmp_path / "out", draft=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is no git checkout"):
        read_commit(tmp_path)


def test_a_failed_build_leaves_the_one_before(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = make(repository, tmp_path / "out", draft=False)
    before = everything(target)
    (repository / "test.py").write_text("print(1)\n")
    git(repository, "commit", "-qam", "other")
    original = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "email.txt":
            raise OSError(28, "No space left on device")
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        make(repository, tmp_path / "out", draft=False)
    assert everything(target) == before
    monkeypatch.undo()
    assert everything(make(repository, tmp_path / "out", draft=False)[0]) != before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["team08_HATFreq"]


def test_the_command_ends_with_the_reason(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_submission, "ROOT", repository)
    make_submission.main(["--out", str(repository / "dist")])
    assert "team08_HATFreq_code.zip" in capsys.readouterr().out
    (repository / "submission.yaml").unlink()
    with pytest.raises(SystemExit, match=r"make_submission: .*submission\.yaml does not exist"):
        make_submission.main([])
    assert package.PDF.name == "HATFreq_factsheet.pdf"
