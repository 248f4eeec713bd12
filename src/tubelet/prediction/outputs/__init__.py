"""Kinds of output, one module each.

A module names in `TASKS` the tasks whose heads it serves, and in `OUTPUT` its subclass of `HeadOutput`.
"""

import importlib
import pkgutil

from tubelet.errors import ConfigError
from tubelet.prediction.outputs.base import HeadOutput


def output_kind(task: str) -> type[HeadOutput]:
    """The kind of output of a task.

    Raises:
        ConfigError: if there is none.
    """
    kinds: dict[str, type[HeadOutput]] = {}
    for module in pkgutil.iter_modules(__path__):
        content = importlib.import_module(f"{__name__}.{module.name}")
        kinds |= dict.fromkeys(getattr(content, "TASKS", ()), getattr(content, "OUTPUT", None))
    if task not in kinds:
        raise ConfigError(f"the head's task is {task!r}, expected one of {', '.join(sorted(kinds))}")
    return kinds[task]
