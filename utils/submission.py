"""The team and its method, from submission.yaml."""

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from utils.files import UserError

FILE = Path(__file__).resolve().parents[1] / "submission.yaml"
FORBIDDEN = ("phone", "mobile")


class FactsError(UserError):
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
    affiliation: str = ""
    sponsors: str = ""
    score_development: str = ""
    score_test: str = ""
    code: str = ""
    results: str = ""
    user_names: list[str] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """The submission's folder in models/ and model_zoo/: `team08_HATFreq`."""
        return f"team{self.team_id:02}_{self.method}"

    def missing(self) -> list[str]:
        """The names of the fields that are still empty, in the file's order."""
        result = [one.name for one in fields(Facts) if not getattr(self, one.name)]
        for number, member in enumerate(self.members, start=1):
            result += [f"members[{number}].{one.name}" for one in fields(Member) if not getattr(member, one.name)]
        return result


def read_facts(path: Path = FILE) -> Facts:
    """Read submission.yaml.

    Raises:
        FactsError: it is missing or not YAML, or holds an unknown key, a value of another type or a telephone number.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FactsError(f"{path} does not exist: it names the team (docs/submission.md)") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FactsError(f"{path} is not YAML: {error}") from error
    values = _checked(path, Facts, content)
    values["members"] = [Member(**_checked(path, Member, one)) for one in values.get("members", [])]
    return Facts(**values)


def _checked(path: Path, kind: type, content: Any) -> dict[str, Any]:
    """The values of a mapping whose keys and types are those of a dataclass."""
    if not isinstance(content, dict):
        raise FactsError(f"{path}: expected `key: value` lines, got {type(content).__name__}")
    known = {one.name: type(getattr(kind(), one.name)) for one in fields(kind)}
    for key, value in content.items():
        if any(word in str(key).lower() for word in FORBIDDEN):
            raise FactsError(f"{path}: '{key}' does not belong in a published file: remove it")
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise FactsError(f"{path}: unknown key '{key}'; {f'did you mean {near[0]}?' if near else list(known)}")
        if type(value) is not known[key]:
            raise FactsError(f"{path}: {key} must be of the type {known[key].__name__}, got {value!r}")
    return dict(content)
