"""Links and commands in the documentation lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")
COMMAND = re.compile(r"\b(?:python|bash|pytest|torchrun)(?: --?\w+(?: \d+)?)*? (?:-m ([\w.]+)|([\w./]+\.(?:py|sh)))")


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_commands_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        place = (path.parent / target).resolve() if target else path
        assert place.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(place), f"{path.name} links to {target}#{anchor}"
    for module, script in COMMAND.findall(text):
        place = ROOT / (script or f"{module.replace('.', '/')}.py")
        own = script or (ROOT / module.split(".")[0]).is_dir()
        assert not own or place.exists(), f"{path.name} runs {script or module}"
