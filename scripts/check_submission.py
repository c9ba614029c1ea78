"""The organisers' rules that people break: names, `main`, weights and their checksums, fields of submission.yaml.

    python -m scripts.check_submission            # all of them
    python -m scripts.check_submission --draft    # fields may be empty
    python -m scripts.check_submission --email    # print the e-mail instead

Ends with status 1 and a line for each fault. That the two folders alone run in the organisers' repository is checked
by tests/test_organisers_tree.py.
"""

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.environment import git_commit
from utils.files import command, file_sha256
from utils.submission import Facts, read_facts

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 100 * 2**20
FOUR = ["model_dir", "input_path", "output_path", "device"]


def faults(root: Path, record: Facts, draft: bool) -> Iterator[str]:
    """What is wrong, each with its remedy."""
    code, zoo = root / "models" / record.folder, root / "model_zoo" / record.folder
    for path in (code, zoo):
        if not path.is_dir():
            yield f"{path} does not exist: name it teamXX_Name, the id in two digits"
    for path in sorted(code.glob("*.py")):
        if not path.stem.isidentifier():
            yield f"{path} cannot be imported: name it without hyphens"
    if (code / "__init__.py").is_file():
        yield from _main_faults(record)
    if zoo.is_dir():
        yield from _weights_faults(zoo, record)
    readme = root / "README.md"
    if not readme.is_file() or f"elif model_id == {record.team_id}:" not in readme.read_text(encoding="utf-8"):
        yield f"{readme} does not show the branch for the organisers' test.py: add 'elif model_id == {record.team_id}:'"
    if not draft:
        yield from (f"submission.yaml lacks {name}: fill it in, or make a draft" for name in record.missing())


def _main_faults(record: Facts) -> Iterator[str]:
    main = getattr(importlib.import_module(f"models.{record.folder}"), "main", None)
    if main is None:
        yield f"models/{record.folder} has no main: define it or import it in __init__.py"
        return
    parameters = list(inspect.signature(main).parameters.values())
    if [one.name for one in parameters[:4]] != FOUR:
        yield f"main takes {', '.join(one.name for one in parameters)}: its first four must be {', '.join(FOUR)}"
    elif any(one.default is one.empty for one in parameters[4:]):
        yield "main needs more than four arguments: give the others a default"


def _weights_faults(zoo: Path, record: Facts) -> Iterator[str]:
    files = sorted(path for path in zoo.iterdir() if path.suffix in (".safetensors", ".pth", ".pt"))
    link = zoo / f"{record.folder}.txt"
    if not files and not link.is_file():
        yield f"{zoo} holds no weights: add them, or {link.name} with a link"
    for path in files:
        if path.stat().st_size > LARGEST:
            yield f"{path.name} has more than 100 MB: put it on a server, its link and sha256 into {link.name}"
        digest, beside = file_sha256(path), path.with_name(f"{path.name}.sha256")
        if not beside.is_file() or beside.read_text().split()[:1] != [digest]:
            yield f"{beside.name} is missing or of other weights: release them with scripts/release_weights.py"
        told = path.with_suffix(".json")
        if not told.is_file() or json.loads(told.read_text(encoding="utf-8"))["sha256"] != digest:
            yield f"{told.name} is missing or of other weights: release them with scripts/release_weights.py"


def email(record: Facts) -> str:
    """The e-mail to the organisers: its subject, the fields a) to f) and the command; what is empty is marked."""
    empty = "(to be filled in)"
    people = [f"{one.name} <{one.email}>, {one.affiliation}" for one in record.members] or [empty]
    lines = [
        f"Subject: {record.challenge} - {record.team_name} (team {record.team_id:02})",
        "",
        f"a) challenge: {record.challenge}",
        f"b) team: {record.team_name}, team id {record.team_id:02}, method {record.method}",
        f"c) team leader: {people[0]}",
        f"d) other members: {'; '.join(people[1:]) or 'none'}",
        f"e) user names on the competition's server: {', '.join(record.user_names) or empty}",
        f"f) code: {record.code or empty} (commit {git_commit()}); restored images: {record.results or empty}",
        "",
        f"To run it: python test.py --test_dir [LR images] --save_dir [results] --model_id {record.team_id}",
    ]
    return "\n".join(lines)


@command("check_submission")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", action="store_true", help="fields of submission.yaml may be empty")
    parser.add_argument("--email", action="store_true", help="print the e-mail and check nothing")
    args = parser.parse_args(argv)
    record = read_facts()
    if args.email:
        print(email(record))
        return 0
    result = list(faults(ROOT, record, args.draft))
    print("\n".join(result) or f"{record.folder}: names, main, weights and fields are in order")
    return 1 if result else 0


if __name__ == "__main__":
    sys.exit(main())
