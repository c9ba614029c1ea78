"""What is sent to the organisers, made from a commit: the same commit gives the same bytes."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from submission.facts import FILE, Facts, missing, read_facts

FACTSHEET = PurePosixPath("factsheet")
PDF = FACTSHEET / "HATFreq_factsheet.pdf"
SOURCES = (".tex", ".pdf", ".bib", ".sty", ".cls")
GAP = "(to be filled in: {})"


class PackageError(RuntimeError):
    """The packages cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Commit:
    """What a commit holds.

    Attributes:
        name: its hash.
        when: its time, UTC: year, month, day, hour, minute, second.
        files: path -> content and whether it is executable.
    """

    name: str
    when: tuple[int, int, int, int, int, int]
    files: dict[PurePosixPath, tuple[bytes, bool]]


def read_commit(root: Path) -> Commit:
    """The files of HEAD, which the working tree must equal.

    Raises:
        PackageError: not a git checkout, or changes that are not committed.
    """
    if not (root / ".git").exists():
        raise PackageError(f"{root} is no git checkout: clone the repository, so that what is sent can be named")
    if changed := _git(root, "status", "--porcelain").decode().splitlines():
        raise PackageError(f"{len(changed)} change(s) are not committed ({changed[0].strip()}): commit or remove them")
    when = time.gmtime(int(_git(root, "log", "-1", "--format=%ct")))[:6]
    files = {}
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", "--format=tar", "HEAD"))) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                files[PurePosixPath(member.name)] = file.read(), bool(member.mode & 0o100)
    return Commit(_git(root, "rev-parse", "HEAD").decode().strip(), when, files)


def _git(root: Path, *words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True)
    if done.returncode:
        raise PackageError(f"git {words[0]} failed in {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def zipped(commit: Commit, folder: str, wanted: Callable[[PurePosixPath], bool]) -> bytes:
    """A zip of a commit's files below a folder of its own: sorted, of the commit's time, stored and not compressed.

    Compressed bytes would depend on the compressor's version.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in commit.files if wanted(path)):
            data, executable = commit.files[path]
            entry = zipfile.ZipInfo(f"{folder}/{path}", commit.when)
            entry.create_system, entry.external_attr = 3, (0o755 if executable else 0o644) << 16
            archive.writestr(entry, data)
    return content.getvalue()


def email(facts: Facts, commit: Commit, names: Iterable[str]) -> str:
    """The e-mail's text: its subject, the fields a) to f) and what is attached."""
    gaps = set(missing(facts))

    def shown(name: str, text: str) -> str:
        return GAP.format(name) if name in gaps else text

    leaders = [f"{one.name} <{one.email}>, {one.affiliation}" for one in facts.members[:1]]
    rest = "; ".join(f"{one.name}, {one.affiliation}" for one in facts.members[1:]) or "none"
    lines = [
        f"Subject: {facts.challenge} - {shown('team_name', facts.team_name)} (team {facts.team_id:02})",
        "",
        f"a) challenge: {facts.challenge}",
        f"b) team: {shown('team_name', facts.team_name)}, team id {facts.team_id:02}, method {facts.method}",
        f"c) team leader: {shown('members', ''.join(leaders))}",
        f"d) other members: {shown('members', rest)}",
        f"e) user names on the competition's server: {shown('user_names', ', '.join(facts.user_names))}",
        f"f) code: {shown('code', facts.code)} (commit {commit.name}); restored images: "
        f"{shown('results', facts.results)}",
        "",
        "To run it:",
        f"    python test.py --test_dir [LR images] --save_dir [results] --model_id {facts.team_id}",
        "",
        "Attached:",
        *(f"    {name}" for name in names),
    ]
    return "\n".join(lines) + "\n"


def contents(commit: Commit, facts: Facts) -> dict[str, bytes]:
    """Name -> bytes of everything that is sent, without the manifest.

    Raises:
        PackageError: the commit lacks the factsheet.
    """
    if PDF not in commit.files:
        raise PackageError(f"{PDF} is not in the commit: make it with bash scripts/build_factsheet.sh, and commit it")
    zoo = PurePosixPath("model_zoo") / facts.folder
    weights = {path.name: data for path, (data, _) in commit.files.items() if path.parent == zoo}
    found = {
        f"{facts.folder}_code.zip": zipped(
            commit, facts.folder, lambda p: FACTSHEET not in p.parents and zoo not in p.parents
        ),
        f"{facts.folder}_factsheet.pdf": commit.files[PDF][0],
        f"{facts.folder}_factsheet_sources.zip": zipped(
            commit, f"{facts.folder}_factsheet", lambda p: FACTSHEET in p.parents and p.suffix in SOURCES and p != PDF
        ),
        **{f"model_zoo/{facts.folder}/{name}": weights[name] for name in sorted(weights)},
    }
    found["email.txt"] = email(facts, commit, list(found)).encode()
    return found


def manifest(commit: Commit, found: dict[str, bytes], gaps: list[str]) -> str:
    """What was made of which commit: bytes and sha256 of every file."""
    lines = [f"commit {commit.name}"]
    if gaps:
        lines.append(f"DRAFT: {FILE} lacks {', '.join(gaps)}")
    lines += [f"{hashlib.sha256(data).hexdigest()}  {len(data):>12,}  {name}" for name, data in sorted(found.items())]
    return "\n".join(lines) + "\n"


def make(root: Path, out: Path, draft: bool) -> tuple[Path, str]:
    """Make the packages in a folder of their own below `out`, whole or not at all.

    Args:
        root: the repository.
        out: folder to put them in.
        draft: leave gaps where submission.yaml is incomplete, and say so.

    Returns:
        The folder and the manifest.

    Raises:
        PackageError, FactsError: something is missing or not committed.
    """
    facts = read_facts(root / FILE)
    gaps = missing(facts)
    if gaps and not draft:
        raise PackageError(f"{FILE} lacks {', '.join(gaps)}: fill them in, or make a draft with --draft")
    commit = read_commit(root)
    found = contents(commit, facts)
    listed = manifest(commit, found, gaps)
    target = out / f"{'DRAFT_' if gaps else ''}{facts.folder}"
    _write({**found, "MANIFEST.txt": listed.encode()}, target)
    return target, listed


def _write(files: dict[str, bytes], target: Path) -> None:
    """Write a folder beside its place, then put it there; an older one gives way."""
    partial, old = (target.with_name(f".{kind}-{target.name}") for kind in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, data in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(data)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
