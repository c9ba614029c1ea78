"""The steps of scripts/gpu_check.sh, each in a process of its own, with a log, a time limit and a place in the page.

python -m scripts.gpu_check --data photographs --bench $DATA/bench [--minutes 30] [--out runs/gpu_check]
python -m scripts.gpu_check --dry --data photographs --out scratch      # the same steps, tiny, on the CPU
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import torch
import yaml

from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.system import write_bytes
from training.run_record import environment

ROOT = Path(__file__).resolve().parents[1]
RESERVE = 240  # seconds of the budget that the last training keeps, whatever the steps before it take
STAGES = ("stage1_imagenet", "stage2_df2k", "stage3_ldcc")


@dataclass
class Step:
    """What is run, and how long it may take."""

    name: str
    command: list[str]
    seconds: float


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    status: str  # passed, failed, or out of time
    seconds: float
    log: str
    last_line: str


def steps(args: argparse.Namespace) -> list[Step]:
    """All steps but the last training, in their order."""
    python, device = [sys.executable, "-m"], "cpu" if args.dry else "cuda"
    small = ["--threads", "1", "--rounds", "1"] if args.dry else []
    forward = ["--presets", "light", "--sizes", "16x16"] if args.dry else ["--presets", "base", "large", "--bf16"]
    step = ["--presets", "light", "--patch", "8", "--steps", "1"] if args.dry else ["--presets", "base", "large"]
    sizes = [] if args.dry else ["--sizes", "64x64", "352x512"]
    patches = [] if args.dry else ["--batch", "8", "--patch", "64"]
    own = [*python, "scripts.gpu_check", "--device", device, "--out", str(args.out), *(["--dry"] if args.dry else [])]

    def result(name: str) -> list[str]:
        return ["--out", str(args.out / f"{name}_{device}.json")]

    tests = [*python, "pytest", "-q", "-m", "gpu", "tests/test_attention.py" if args.dry else "tests"]
    return [
        Step("tests", tests, 300),
        Step("parity", [*own, "--only", "parity"], 180),
        Step("forward", [*python, "benchmarks.speed", "forward", "--device", device, *forward, *sizes, *small,
                         *result("speed_forward")], 300),
        Step("training step", [*python, "benchmarks.speed", "step", "--device", device, *step, *patches, *small,
                               *result("speed_step")], 300),
        Step("micro-batch", [*own, "--only", "micro_batch"], 240),
        Step("memory", [*python, "benchmarks.memory", "--device", device, "--rounds", "1",
                        *(["--presets", "light", "--sides", "16", "24"] if args.dry else []), *result("memory")], 180),
        Step("all GPUs", distributed_command(args, device), 240),
    ]  # fmt: skip


def distributed_command(args: argparse.Namespace, device: str) -> list[str]:
    """Two minutes of training on every GPU of the machine; of two processes on the CPU when dry."""
    count = 2 if args.dry else max(1, torch.cuda.device_count())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return [*launch, "train.py", *training_words(args, args.out / "ddp", device), "--max_minutes", "2",
            "--batch", str(2 * count if args.dry else 16 * count)]  # fmt: skip


def training_words(args: argparse.Namespace, out: Path, device: str) -> list[str]:
    """Settings that every training here shares."""
    words = ["--config", "configs/light.yaml", "--data", *args.data, "--out", str(out), "--device", device]
    words += ["--no-tensorboard", "--sample_images", "0"]
    if args.bench:
        words += ["--valid_hr", f"{args.bench}/Set5/HR", "--valid_lr", f"{args.bench}/Set5/LRbicx4"]
    if args.dry:
        tiny = ["--model_overrides", "embed_dim=8", "depths=1", "num_heads=1"]
        words += ["--steps", "2", "--patch", "8", "--warmup", "1", "--workers", "0", "--precision", "fp32", *tiny]
    return words


def last_training(args: argparse.Namespace, seconds: float) -> Step:
    """Training of the shipped weights for the time that is left, decayed at its end."""
    device = "cpu" if args.dry else "cuda"
    minutes = max(0.2, (seconds - 45) / 60)  # the start and the last validation take their time
    words = training_words(args, args.out / "light", device)
    if not args.dry:
        init = str(ROOT / "model_zoo/team08_HATFreq/hatfreq_light_x4.safetensors")
        words += ["--init", init, "--batch", "64", "--lr", "0.0005", "--patch", "64", "--workers", "12"]
        words += ["--steps", "1000000", "--finish_in", f"{minutes:.1f}min"]
    return Step("training", [sys.executable, "train.py", *words], seconds)


# ---------------------------------------------------------------------------------------------------------------------
# Steps that are not commands of their own
# ---------------------------------------------------------------------------------------------------------------------


def parity(device: torch.device, dry: bool) -> list[dict[str, object]]:
    """The largest difference of the device's result from the CPU's, for every preset, fp32 and bf16."""
    rows: list[dict[str, object]] = []
    for preset in ("light",) if dry else PRESETS:
        torch.manual_seed(0)
        model = HATFreq(PRESETS[preset]).eval()
        for parameter in model.fusion_parameters().values():
            torch.nn.init.normal_(parameter, std=0.02)
        lq = torch.rand(1, 3, 24, 40)
        with torch.inference_mode():
            expected = model(lq)
            for precision, bar in (("fp32", 1e-4), ("bf16", 5e-2)):
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    found = model.to(device)(lq.to(device)).float().cpu()
                difference = (found - expected).abs().max().item()
                rows.append({"preset": preset, "precision": precision, "difference": difference, "bar": bar})
                if not difference <= bar:
                    raise SystemExit(
                        f"{preset} in {precision} differs from the CPU by {difference:.1e}, above {bar:.0e}"
                    )
    return rows


def micro_batch(device: torch.device, dry: bool) -> list[dict[str, object]]:
    """The largest power of two of patches of each stage that a step takes at once, with and without checkpointing."""
    rows: list[dict[str, object]] = []
    for stage in STAGES:
        settings = yaml.safe_load((ROOT / "configs" / f"{stage}.yaml").read_text())
        patch = 8 if dry else int(settings["patch"])
        config = override(PRESETS["light"], {"depths": (1,), "num_heads": (2,)}) if dry else PRESETS["large"]
        for checkpointing in (False, True):
            model = HATFreq(config).to(device).train()
            model.set_grad_checkpointing(checkpointing)
            most, limit = 0, 2 if dry else 64
            while most < limit and step_fits(model, device, patch, max(1, 2 * most)):
                most = max(1, 2 * most)
            rows.append({"stage": stage, "patch": patch, "checkpointing": checkpointing, "largest": most})
            del model
    return rows


def step_fits(model: HATFreq, device: torch.device, patch: int, batch: int) -> bool:
    """Whether forward and backward of a bf16 step fit into the device's memory."""
    try:
        lq = torch.rand(batch, 3, patch, patch, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            model(lq).float().square().mean().backward()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()


OWN: dict[str, Callable[[torch.device, bool], list[dict[str, object]]]] = {"parity": parity, "micro_batch": micro_batch}


# ---------------------------------------------------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------------------------------------------------


def run(step: Step, out: Path) -> Outcome:
    """Run a step with its output in a log; ended with all its processes when its time is over."""
    log, began = out / f"{step.name.replace(' ', '_')}.log", time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "passed" if process.wait(step.seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:  # also where the check itself is stopped: its steps are in sessions of their own
            end_group(process)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(step.name, status, round(time.monotonic() - began, 1), log.name, lines[-1][:160] if lines else "")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and of those that it started."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, wanted)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
            return


def page(outcomes: list[Outcome]) -> str:
    """What passed and what did not, in Markdown."""
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    rows = [f"| {o.name} | {o.status} | {o.seconds:.0f} s | `{o.log}` | {o.last_line} |" for o in outcomes]
    table = ["| step | | time | log | its last line |", "|---|---|---|---|---|", *rows]
    return "\n".join(["# GPU check", "", f"{', '.join(devices) or 'no GPU'}; {versions}", "", *table, ""])


def setting(args: argparse.Namespace) -> dict[str, object]:
    """What a result is of: those of another check do not count."""
    here = environment()
    words = {"dry": args.dry, "data": args.data, "bench": args.bench and str(args.bench)}
    return words | {key: here[key] for key in ("commit", "torch", "gpu", "gpus")}


def set_aside(folder: Path) -> Path:
    """Move all of an earlier check, its runs too, into a folder of its own: a training that ended would stay ended."""
    kept = [path for path in folder.iterdir() if not path.name.startswith("earlier-")]
    aside = next(path for n in count(1) if not (path := folder / f"earlier-{n}").exists())
    aside.mkdir()
    for path in kept:
        path.rename(aside / path.name)
    return aside


def check(args: argparse.Namespace) -> int:
    """Run what is not done yet; 0 if all has passed."""
    began, deadline = time.monotonic(), 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the step under way is ended
    args.out.mkdir(parents=True, exist_ok=True)
    file, of = args.out / "outcomes.json", setting(args)
    found = json.loads(file.read_text()) if file.exists() else {"of": of, "outcomes": []}
    same = isinstance(found, dict) and found["of"] == of  # a list holds no setting: written by older code
    if not same:
        aside = set_aside(args.out)
        print(f"{aside} keeps another check (--dry, --data, --bench, GPU, PyTorch or commit): every step is run again")
    outcomes = [Outcome(**one) for one in found["outcomes"] if one["status"] == "passed"] if same else []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        write_bytes(file, json.dumps({"of": of, "outcomes": [asdict(one) for one in outcomes]}, indent=1).encode())
        write_bytes(args.out / "page.md", page(outcomes).encode())
        print(f"{outcome.name}: {outcome.status} in {outcome.seconds:.0f} s", flush=True)

    done = {one.name for one in outcomes}
    for step in (one for one in steps(args) if one.name not in done):
        left = deadline - (time.monotonic() - began) - RESERVE
        if left <= 0:
            note(Outcome(step.name, "out of time", 0.0, "", "not begun"))
        else:
            limit = left if args.dry else min(step.seconds, left)  # the limits are a GPU's
            note(run(Step(step.name, step.command, limit), args.out))
    if "training" not in done:
        note(run(last_training(args, deadline - (time.monotonic() - began)), args.out))
    print(page(outcomes))
    return int(any(one.status != "passed" for one in outcomes))


def main(argv: list[str] | None = None) -> int:
    """Run the check, or one of its own steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", default=[], help="training photographs, as for train.py")
    add("--bench", type=Path, help="evaluation sets: a folder with Set5/HR and Set5/LRbicx4")
    add("--minutes", type=float, default=30, help="for everything (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/gpu_check"), help="logs, results and page.md (default: %(default)s)")
    add("--dry", action="store_true", help="the same steps on the CPU with tiny networks: do the commands work?")
    add("--device", default="cuda", help=argparse.SUPPRESS)
    add("--only", choices=list(OWN), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    if args.only:
        rows = OWN[args.only](torch.device(args.device), args.dry)
        write_bytes(args.out / f"{args.only}.json", json.dumps(rows, indent=1).encode())
        print(json.dumps(rows[-1]))
        return 0
    if not args.data:
        parser.error("name training photographs with --data")
    if not args.dry and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --dry tries the commands on the CPU")
    return check(args)


if __name__ == "__main__":
    sys.exit(main())
