"""Settings in a YAML file, turned into the words of a command line, so that both are checked in one place."""

from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml


def settings_words(path: Path, config_class: type) -> list[str]:
    """The command-line words that a settings file stands for: `lr: 0.001` -> `--lr 0.001`.

    A list gives several words, and a mapping words of the form key=value (`model_overrides: {window_size: 8}`); `true`
    and `false` give `--name` and `--no-name`.

    Args:
        path: YAML file of settings by name.
        config_class: dataclass whose fields are the settings known.

    Raises:
        ValueError: unreadable, not a mapping, or an unknown key (the nearest name is suggested); names the file.
    """
    known = [f.name for f in fields(config_class)]
    words: list[str] = []
    for key, value in _read(path).items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f": did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"{path}: unknown key '{key}'{hint}")
        words += [f"--{'' if value is not False else 'no-'}{key}"]
        words += [] if isinstance(value, bool) else _items(value)
    return words


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): name a settings file such as configs/light.yaml"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings: write one `name: value` a line")
    return content


def _items(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}={_text(item)}" for key, item in value.items()]
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


def _text(value: Any) -> str:
    """As a person would type it: `[4, 4]` -> `4,4`, `{hr: a, lr: b}` -> `hr=a,lr=b`."""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
