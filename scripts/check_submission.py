"""Would the organisers accept this repository? Their rules as checks, each fault with its remedy.

    python scripts/check_submission.py                  # this repository
    python scripts/check_submission.py --root folder    # a copy of it

Ends with status 0 if nothing was found. The last check runs the submission's two folders in a tree laid out like the
organisers' repository, on two small pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from submission.checks import check

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Check and print; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to check (default: this one)")
    args = parser.parse_args(argv)
    if not args.root.is_dir():
        parser.error(f"{args.root} is not a folder")
    found = check(args.root)
    for name, faults in found.items():
        print(f"{'fault' if faults else 'ok':6}{name}")
        for fault in faults:
            print(f"      {fault.wrong}\n      -> {fault.remedy}")
    count = sum(map(len, found.values()))
    print(f"{count} fault(s)" if count else "nothing to complain about")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
