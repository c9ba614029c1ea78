"""Make what is sent to the organisers: code, weights, factsheet with sources, e-mail, manifest with checksums.

    bash scripts/make_submission.sh             # checks first
    bash scripts/make_submission.sh --draft     # with gaps where submission.yaml is incomplete

Made of the last commit, so that the same commit gives the same bytes; changes that are not committed are refused.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from submission.facts import FactsError
from submission.package import PackageError, make

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the packages and print the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder to put them in (default: dist/)")
    parser.add_argument("--draft", action="store_true", help="leave gaps where submission.yaml is incomplete")
    args = parser.parse_args(argv)
    try:
        target, listed = make(ROOT, args.out, args.draft)
    except (FactsError, PackageError, OSError) as error:
        raise SystemExit(f"make_submission: {error}") from error
    print(f"{listed}-> {target}")


if __name__ == "__main__":
    main()
