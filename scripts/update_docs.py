"""Put the benchmarks' tables into the documentation, so that no figure in it is older than its results file.

    python scripts/update_docs.py            # write
    python scripts/update_docs.py --check    # fail if a document holds another table than its results file

A document marks the place by `<!-- results: NAME -->` and `<!-- end of results -->`, each on a line of its own; between
them stands what benchmarks/results/NAME.md holds.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.team08_HATFreq.system import write_bytes

ROOT = Path(__file__).resolve().parents[1]

PLACE = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->\n)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """A document's text with every marked place filled anew.

    Raises:
        FileNotFoundError: a place names a results file that is not there.
        ValueError: a mark without its end, or an end without its mark.
    """
    ends = text.count("<!-- end of results -->")
    if not len(PLACE.findall(text)) == text.count("<!-- results: ") == ends:
        raise ValueError("every `<!-- results: NAME -->` needs an `<!-- end of results -->` on a line of its own")
    return PLACE.sub(lambda m: f"{m[1]}{(results / m[2]).with_suffix('.md').read_text().strip()}\n{m[3]}", text)


def documents(root: Path) -> list[Path]:
    """The README and the pages under docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main(argv: list[str] | None = None) -> None:
    """Fill the documents, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    args = parser.parse_args(argv)
    stale = []
    for path in documents(ROOT):
        text = path.read_text()
        try:
            new = filled(text, ROOT / "benchmarks" / "results")
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(f"{path.relative_to(ROOT)}: {error}") from error
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                write_bytes(path, new.encode())
    if args.check and stale:
        raise SystemExit(f"older than their results: {', '.join(stale)}; run python scripts/update_docs.py")
    print(f"written: {', '.join(stale)}" if stale else "nothing to change")


if __name__ == "__main__":
    main()
