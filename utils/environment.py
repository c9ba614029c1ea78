"""The environment of a run, for its record: command, commit, versions, machine."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch


def environment(*packages: str) -> dict[str, Any]:
    """Command, commit, versions and machine of this process.

    Args:
        packages: whose versions count, beside Python, PyTorch and NumPy.
    """
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shown_command(),
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
    }


def shown_command(argv: list[str] | None = None) -> str:
    """The command line, with absolute paths cut to their last two parts: folders of a machine tell a reader nothing."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name
    arguments = sys.argv[1:] if argv is None else argv
    shown = [str(Path("...", *Path(word).parts[-2:])) if Path(word).is_absolute() else word for word in arguments]
    return " ".join(["python", program, *shown])


def git_commit() -> str:
    """The commit of the code, `-dirty` where tracked files differ from it; `unknown` outside a git checkout."""
    argv = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(argv, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    """The processor's name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
