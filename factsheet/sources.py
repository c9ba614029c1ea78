"""Pack the factsheet's LaTeX sources: the same files give the same bytes.

python -m factsheet.sources FOLDER ZIP
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from factsheet import EPOCH
from models.team08_HATFreq.system import write_bytes
from submission.package import SOURCES, Commit, zipped

NAME = "HATFreq_factsheet"


def packed(folder: Path) -> bytes:
    """A zip of a folder's sources below a folder of their own, with the folders that the text refers to.

    Raises:
        FileNotFoundError: the folder holds no factsheet.tex.
    """
    if not (folder / "factsheet.tex").is_file():
        raise FileNotFoundError(f"{folder} holds no factsheet.tex: bash scripts/build_factsheet.sh makes the zip")
    files = {
        PurePosixPath(path.relative_to(folder)): (path.read_bytes(), False)
        for path in folder.rglob("*")
        if path.suffix in SOURCES
    }
    when = time.gmtime(int(EPOCH))
    moment = (when.tm_year, when.tm_mon, when.tm_mday, when.tm_hour, when.tm_min, when.tm_sec)
    return zipped(Commit("", moment, files), NAME, lambda path: path != PurePosixPath("factsheet.pdf"))


def main(argv: Sequence[str] | None = None) -> None:
    """Pack from the command line."""
    folder, target = sys.argv[1:] if argv is None else argv
    try:
        write_bytes(Path(target), packed(Path(folder)))
    except OSError as error:
        raise SystemExit(f"factsheet: {error}") from error


if __name__ == "__main__":
    main()
