"""Print where the averaged weights of a finished run stand; fail, saying what to do, if it has not come to its end.

python scripts/finished_weights.py runs/stage1
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.checkpoint import CheckpointError, load_checkpoint


def main(argv: list[str] | None = None) -> int:
    """Check one run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of train.py")
    run = parser.parse_args(argv).run
    try:
        state, _ = load_checkpoint(run)
    except CheckpointError as error:
        raise SystemExit(f"error: {error}") from error
    if state is None:
        raise SystemExit(f"error: {run} holds no run: train that stage first, or name weights to start from in INIT")
    step, end = state["step"], state["schedule"]["end"]
    if step < end:
        raise SystemExit(f"error: {run} stands at step {step} of {end}: let that stage finish first")
    print(run / "last.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
