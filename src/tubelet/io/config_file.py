"""Config files of commands, in YAML or JSON."""

import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tubelet.errors import ConfigError, first_line
from tubelet.io.text import file_error, parse_json, read_text

CONFIG_BYTES = 2**22
_REMEDY = "mend it, or leave --config out"


class _Loader(yaml.SafeLoader):
    """Strict YAML: no tags, aliases or repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        if (tag := getattr(self.peek_event(), "tag", None)) is not None:
            raise yaml.YAMLError(f"tags are not supported (found {tag})")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        count = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
        if twice := sorted(key for key in count if count[key] > 1):
            raise yaml.YAMLError(f"key {twice[0]!r} occurs twice in one mapping")
        return super().construct_mapping(node, deep)


# As YAML 1.2 and JSON have it: YAML 1.1, which PyYAML reads, takes 1e-4 for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the content of a config file.

    Args:
        path: a `.json`, `.yaml` or `.yml` file.

    Raises:
        ConfigError: it cannot be read, is of another format, or is no mapping of names to values.
    """
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"{path}: unknown format {path.suffix!r}, expected .json, .yaml or .yml")
    text = read_text(path, _REMEDY, CONFIG_BYTES)
    content = parse_json(text, path, remedy=_REMEDY) if path.suffix == ".json" else _parse_yaml(text, path)
    if not isinstance(content, dict):
        raise file_error(path, f"holds {type(content).__name__}, expected a mapping of names to values", _REMEDY)
    return content


def _parse_yaml(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise file_error(path, "is nested too deeply", _REMEDY) from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        location = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise file_error(
            path, f"is not YAML ({getattr(error, 'problem', None) or first_line(error)}{location})", _REMEDY
        ) from error
