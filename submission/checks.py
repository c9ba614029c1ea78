"""The organisers' rules as checks: each gives the faults that it finds, with what to do about them.

The rules are those of the challenge's repository (https://github.com/zhengchen1999/NTIRE2025_ImageSR_x4): where code
and weights lie and what they are called, `main` with four parameters, a link instead of files over 100 MB, restored
images under the names of the inputs. Beside them stand this project's own: weights that load without running code and
are what their card says, no folder of one machine in the code, no images where data or results lie.
"""

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.team08_HATFreq.image_io import IMAGE_SUFFIXES, ImageError, size_of, write_png
from models.team08_HATFreq.inference import build_for
from models.team08_HATFreq.weights import WeightsError, load_weights, verify_checksum
from submission import tree
from submission.facts import FILE, Facts, FactsError, read_facts

LARGEST = 100 * 2**20
FOUR = ["model_dir", "input_path", "output_path", "device"]
NEEDED = ("README.md", "requirements.txt", "test.py", "eval.py", FILE)
PICTURES = ("docs", "benchmarks", "factsheet")  # where images are figures, not data
ALLOWED = {"torch", "torchvision", "numpy", "cv2", "timm", "tqdm", "safetensors", "PIL", "skimage", "open_clip"}
WEIGHTS = (".safetensors", ".pth", ".pt")
PLACE = re.compile(r"""(?<![\w.~/])/(?:home|root|Users|mnt|media|workspace)/[\w.-]+|(?<!\w)[A-Za-z]:\\{1,2}Users""")
SAMPLE = ((13, 9), (16, 24))  # height and width of the images that are restored


@dataclass(frozen=True)
class Fault:
    """What is wrong and what to do about it, a sentence each."""

    wrong: str
    remedy: str


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        root: the repository, or a copy of it.
        facts: of its submission.yaml.
    """

    root: Path
    facts: Facts

    @property
    def code(self) -> Path:
        """The method's folder in models/."""
        return self.root / "models" / self.facts.folder

    @property
    def zoo(self) -> Path:
        """The method's folder in model_zoo/."""
        return self.root / "model_zoo" / self.facts.folder

    def files(self) -> list[Path]:
        """The files that are handed in, relative to the root: git's, or all where there is no git."""
        if not (self.root / ".git").exists():
            return sorted(one.relative_to(self.root) for one in self.root.rglob("*") if one.is_file())
        done = subprocess.run(["git", "ls-files", "-z"], cwd=self.root, capture_output=True, check=True)
        names = [Path(name) for name in done.stdout.decode().split("\0") if name]
        return [name for name in names if (self.root / name).is_file()]


def needed_files(subject: Subject) -> Iterator[Fault]:
    """The files that the organisers look for."""
    for name in NEEDED:
        if not (subject.root / name).is_file():
            yield Fault(f"{name} is missing", f"put {name} into the root of the repository")


def folders(subject: Subject) -> Iterator[Fault]:
    """Names of the two folders, and of the code files in them."""
    for path in (subject.code, subject.zoo):
        if path.is_dir():
            continue
        near = [p.name for p in path.parent.glob("*") if p.is_dir() and str(subject.facts.team_id) in p.name]
        found = f" (there is {', '.join(sorted(near))})" if near else ""
        yield Fault(
            f"{path.parent.name}/{path.name} does not exist{found}",
            f"name it teamXX_Name with the id in two digits: {path.parent.name}/{subject.facts.folder}",
        )
    for path in sorted(subject.code.glob("*.py")):
        if not path.stem.isidentifier():
            yield Fault(f"models/{subject.facts.folder}/{path.name} cannot be imported", "name it without hyphens")


def entry(subject: Subject) -> Iterator[Fault]:
    """`main` in `__init__.py`, with the four parameters that the organisers' test.py gives it."""
    path = subject.code / "__init__.py"
    if not path.is_file():
        yield Fault(f"models/{subject.facts.folder}/__init__.py is missing", "let it import or define main")
        return
    try:
        function = _find_main(path)
    except SyntaxError as error:
        yield Fault(f"{error.filename} is not Python ({error.msg}, line {error.lineno})", "correct that line")
        return
    if function is None:
        yield Fault(f"models/{subject.facts.folder}/__init__.py has no main", "define main or import it from a module")
        return
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    if names[:4] != FOUR:
        yield Fault(f"main takes ({', '.join(names)})", f"let its first four parameters be {', '.join(FOUR)}")
    elif len(function.args.defaults) < len(names) - 4 or None in function.args.kw_defaults:
        yield Fault("main wants more than four parameters", "give the others a default")


def _find_main(path: Path) -> ast.FunctionDef | None:
    """The definition of `main` in a module, or in the module beside it that it is imported from."""
    tree_of = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in tree_of.body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return node
        if isinstance(node, ast.ImportFrom) and node.level == 1 and any(one.name == "main" for one in node.names):
            beside = path.parent / f"{(node.module or '').replace('.', '/')}.py"
            return _find_main(beside) if beside.is_file() else None
    return None


def imports(subject: Subject) -> Iterator[Fault]:
    """The folder's modules import the libraries and themselves, and nothing else of this repository."""
    for path in sorted(subject.code.rglob("*.py")):
        try:
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        except SyntaxError as error:
            yield Fault(f"{path.name} is not Python ({error.msg}, line {error.lineno})", "correct that line")
            continue
        names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
        for name in sorted({name.split(".")[0] for name in names} - ALLOWED - set(sys.stdlib_module_names)):
            yield Fault(f"{path.name} imports {name}, which the organisers do not have", "move what is needed in")


def weights(subject: Subject) -> Iterator[Fault]:
    """Weights that load without running code and are what their checksum and card say, or a link to large ones."""
    if not subject.zoo.is_dir():
        return  # said by `folders`
    link = subject.zoo / f"{subject.facts.folder}.txt"
    files = sorted(path for path in subject.zoo.iterdir() if path.suffix in WEIGHTS)
    if not files and not link.is_file():
        yield Fault(f"model_zoo/{subject.facts.folder} holds no weights", f"add them, or {link.name} with a link")
    if link.is_file():
        yield from _link(link)
    for path in files:
        yield from _weights_file(path, link)


def _link(path: Path) -> Iterator[Fault]:
    text = path.read_text(encoding="utf-8")
    if not re.search(r"https?://\S+", text):
        yield Fault(f"{path.name} holds no link", "write the download link of the weights into it")
    if not re.search(r"\b[0-9a-f]{64}\b", text):
        yield Fault(f"{path.name} holds no sha256", "write the sha256 of the linked file into it")


def _weights_file(path: Path, link: Path) -> Iterator[Fault]:
    if path.stat().st_size > LARGEST:
        yield Fault(f"{path.name} has more than 100 MB", f"put it on a server and its link and sha256 into {link.name}")
        return
    try:
        model = build_for(path, None)
        load_weights(model, path)
        digest = verify_checksum(path)
    except (WeightsError, ValueError) as error:
        yield Fault(str(error), "release the weights anew with scripts/release_weights.py")
        return
    if not path.with_name(f"{path.name}.sha256").is_file():
        yield Fault(f"{path.name} has no .sha256 beside it", "release the weights with scripts/release_weights.py")
    count = sum(parameter.numel() for parameter in model.parameters())
    yield from _card(path.with_suffix(".md"), digest, f"{count:,} parameters")


def _card(path: Path, digest: str, parameters: str) -> Iterator[Fault]:
    if not path.is_file():
        yield Fault(f"{path.name}, the card of the weights, is missing", "write it with scripts/release_weights.py")
        return
    text = path.read_text(encoding="utf-8")
    first = re.search(r"\b[0-9a-f]{64}\b", text)
    if first is None or first[0] != digest:
        yield Fault(f"{path.name} is the card of other weights", "release the weights with scripts/release_weights.py")
    if parameters not in text:
        yield Fault(f"{path.name} does not say {parameters}", "release the weights with scripts/release_weights.py")


def places(subject: Subject) -> Iterator[Fault]:
    """No folder of one machine in code, settings and documentation."""
    for name in subject.files():
        if name.suffix not in (".py", ".sh", ".yaml", ".yml", ".json", ".toml", ".md", ".txt", ".tex"):
            continue
        text = (subject.root / name).read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if found := PLACE.search(line):
                yield Fault(f"{name}, line {number}, names a folder of one machine: {found[0]}", "make it an argument")


def images(subject: Subject) -> Iterator[Fault]:
    """No inputs or outputs: images are figures, in the folders for them."""
    for name in subject.files():
        if name.suffix.lower() in IMAGE_SUFFIXES and name.parts[0] not in PICTURES:
            yield Fault(f"{name} is an image where data or results lie", "remove it: git rm --cached, and .gitignore")


def sizes(subject: Subject) -> Iterator[Fault]:
    """Nothing over 100 MB, in git's history neither: nobody could clone it from GitHub."""
    for name in subject.files():
        if (subject.root / name).stat().st_size > LARGEST:
            yield Fault(f"{name} has more than 100 MB", "put it on a server, and its link into a .txt file")
    if (subject.root / ".git").exists():
        for size, past in _blobs(subject.root):
            if size > LARGEST and not (subject.root / past).exists():
                yield Fault(f"git's history holds {past} of {size / 2**20:.0f} MB", "take it out with git filter-repo")


def _blobs(root: Path) -> Iterator[tuple[int, str]]:
    """Size and name of every file that git's history holds."""
    listed = subprocess.run(["git", "rev-list", "--objects", "--all"], cwd=root, capture_output=True, check=True)
    words = ["git", "cat-file", "--batch-check=%(objecttype) %(objectsize) %(rest)"]
    done = subprocess.run(words, cwd=root, input=listed.stdout, capture_output=True, check=True)
    for line in done.stdout.decode(errors="replace").splitlines():
        kind, size, name = line.split(" ", 2)
        if kind == "blob":
            yield int(size), name


def branch(subject: Subject) -> Iterator[Fault]:
    """The README shows the branch that the organisers add to their test.py."""
    readme = subject.root / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    number, folder = subject.facts.team_id, subject.facts.folder
    for words in (f"elif model_id == {number}:", f"from models.{folder} import main"):
        if words not in text:
            yield Fault(f"README.md does not show the organisers '{words}'", "add the branch for their select_model")


def run(subject: Subject) -> Iterator[Fault]:
    """The two folders alone, in the organisers' layout, restore a sample: every name, four times the size."""
    if not (subject.code.is_dir() and subject.zoo.is_dir()):
        return  # said by `folders`
    with tempfile.TemporaryDirectory() as scratch:
        place, inputs, results = (Path(scratch) / name for name in ("tree", "LR", "results"))
        tree.build(subject.root, place, subject.facts.folder, subject.facts.team_id, subject.facts.method)
        write_sample(inputs)
        done = tree.restore(place, subject.facts.team_id, inputs, results)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield Fault(f"in the organisers' layout it fails: {last}", "run scripts/demo.sh and correct the error")
            return
        yield from _outputs(inputs, results / f"{subject.facts.team_id:02}_{subject.facts.method}" / "test")


def write_sample(folder: Path) -> None:
    """Two small pictures under the names of the challenge's."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number, (height, width) in enumerate(SAMPLE, start=901):
        write_png(folder / f"{number:04}x4.png", draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _outputs(inputs: Path, outputs: Path) -> Iterator[Fault]:
    expected = {path.name for path in inputs.iterdir()}
    found = {path.name for path in outputs.glob("*.png")} if outputs.is_dir() else set()
    if found != expected:
        listed = ", ".join(sorted(found)) or "nothing"
        yield Fault(
            f"the results are {listed}, the inputs {', '.join(sorted(expected))}", "write each under its input's name"
        )
    for name in sorted(expected & found):
        try:
            height, width = size_of(outputs / name)
        except ImageError as error:
            yield Fault(str(error), "write whole PNG files")
            continue
        lq = size_of(inputs / name)
        if (height, width) != (4 * lq[0], 4 * lq[1]):
            yield Fault(f"{name} becomes {width}x{height} of {lq[1]}x{lq[0]}", "restore exactly four times the size")


CHECKS: dict[str, Callable[[Subject], Iterator[Fault]]] = {
    "the files that the organisers look for": needed_files,
    "folder and file names": folders,
    "main with four parameters": entry,
    "imports": imports,
    "weights, checksums and cards": weights,
    "no folders of one machine": places,
    "no images among data and results": images,
    "nothing over 100 MB": sizes,
    "the branch for their test.py": branch,
    "a run in their layout": run,
}


def check(root: Path, names: list[str] | None = None) -> dict[str, list[Fault]]:
    """Name of each check -> its faults.

    Args:
        root: the repository, or a copy of it.
        names: some of `CHECKS`; all by default.
    """
    try:
        subject = Subject(root.resolve(), read_facts(root / FILE))
    except FactsError as error:
        return {"submission.yaml": [Fault(str(error), "see docs/submission.md")]}
    return {name: list(CHECKS[name](subject)) for name in names or CHECKS}
