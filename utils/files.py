"""Files written whole or not at all, lists of names, and errors that a user can put right."""

import io
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".partial-"  # prefix of files that are being written
HOST = sha256(socket.gethostname().encode()).hexdigest()[:8]
MAX_LISTED = 10  # names in a message


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


class UserError(ValueError):
    """An error that the user can put right: its message names the file and the remedy."""


def command(program: str, *errors: type[Exception]) -> Callable[[Callable[..., object]], Callable[..., int]]:
    """Decorator of a command's `main(argv)`: an expected error ends it with its message and status 1, Ctrl-C with 130.

    Args:
        program: the name in front of the message, such as `eval.py`.
        errors: expected beside `UserError` and `OSError`.
    """

    expected: tuple[type[Exception], ...] = (UserError, OSError, *errors)

    def decorate(main: Callable[..., object]) -> Callable[..., int]:
        @wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")  # file names may not be text
            try:
                return int(main(argv) or 0)  # type: ignore[call-overload]
            except expected as error:
                raise SystemExit(f"{program}: error: {error}") from error
            except KeyboardInterrupt:
                print(f"{program}: stopped", file=sys.stderr)
                return 130

        return run

    return decorate


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file in the folder of `path`, and rename it to `path` when the block ends without an error.

    A kill or an error leaves the old file or the new one.

    Args:
        path: the final name.
        sync: also survive a crash of the machine (fsync).

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    # Unique to a process of a machine, and short: the final name may be as long as the file system allows.
    digest = sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f"{TEMPORARY}{digest}-{HOST}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        remedy = "a folder has that name" if path.is_dir() else "make room on the disk, or choose another folder"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror or error}): {remedy}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(content)


def write_list(path: Path, lines: Iterable[str], about: Iterable[str] = ()) -> None:
    """Write a list of names, a line each, below comment lines that say what it is."""
    text = "".join([*(f"# {line}\n" for line in about), *(f"{line}\n" for line in lines)])
    write_bytes(path, text.encode(errors="surrogateescape"))


def make_folder(folder: Path) -> None:
    """Make a folder of results, and remove what killed processes of this machine were writing there.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {folder} ({error.strerror}): choose another") from error
    for leftover in folder.glob(f"{TEMPORARY}*-{HOST}-*"):
        if Path("/proc/self").exists() and not Path("/proc", leftover.name.rpartition("-")[2]).exists():
            leftover.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Names in messages
# ---------------------------------------------------------------------------------------------------------------------


def listed(names: Sequence[object], separator: str = ", ") -> str:
    """`a, b and 7 more`: the first ten names."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return separator.join(str(name) for name in names[:MAX_LISTED]) + more


def refuse_doubled(names: Iterable[str], remedy: str) -> None:
    """Refuse names that occur more than once.

    Raises:
        UserError: lists them, with the remedy.
    """
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"several images are called {listed(doubled)}: {remedy}")
