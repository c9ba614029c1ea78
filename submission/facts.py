"""The team and its method, from submission.yaml."""

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

FILE = "submission.yaml"
FORBIDDEN = ("phone", "telephone", "mobile")


class FactsError(ValueError):
    """submission.yaml cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Member:
    """One of the team: what a factsheet publishes."""

    name: str = ""
    email: str = ""
    affiliation: str = ""


@dataclass(frozen=True)
class Facts:
    """What submission.yaml holds; the leader is the first of `members`."""

    challenge: str = ""
    team_id: int = 0
    team_name: str = ""
    method: str = ""
    title: str = ""
    code: str = ""
    results: str = ""
    user_names: list[str] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """The submission's folder in models/ and model_zoo/: `team08_HATFreq`."""
        return f"team{self.team_id:02}_{self.method}"


def read_facts(path: Path) -> Facts:
    """Read submission.yaml.

    Raises:
        FactsError: it is missing or not YAML, holds an unknown key, a value of another kind or a telephone number.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FactsError(f"{path} does not exist: it names the team (see docs/submission.md)") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FactsError(f"{path} is not YAML: {error}") from error
    values = _checked(path, "", Facts, content)
    values["members"] = [Member(**_checked(path, "members: ", Member, one)) for one in values.get("members", [])]
    return Facts(**values)


def missing(facts: Facts) -> list[str]:
    """The names of fields that are still empty, in the file's order."""
    found = [one.name for one in fields(Facts) if not getattr(facts, one.name)]
    for number, member in enumerate(facts.members, start=1):
        found += [f"members[{number}].{one.name}" for one in fields(Member) if not getattr(member, one.name)]
    return found


def _checked(path: Path, where: str, kind: type, content: Any) -> dict[str, Any]:
    """The values of a mapping whose keys and types are those of a dataclass."""
    if not isinstance(content, dict):
        raise FactsError(f"{path}: {where}expected `key: value` lines, got {type(content).__name__}")
    known = {one.name: one.type for one in fields(kind)}
    for key, value in content.items():
        if any(word in str(key).lower() for word in FORBIDDEN):
            raise FactsError(f"{path}: {where}'{key}' does not belong into a published file: remove it")
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise FactsError(f"{path}: {where}unknown key '{key}': {hint}")
        expected = {str: str, int: int}.get(known[key], list)  # type: ignore[arg-type]
        if not isinstance(value, expected) or isinstance(value, bool):
            raise FactsError(f"{path}: {where}{key} must be a {expected.__name__}, got {value!r}")
    return dict(content)
