"""Evaluation tasks, one module each. A new module that defines `TASK` is a new task: nothing else lists them.

The name of a task is that of its module, with `-` for `_`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from tubelet.errors import DataError

if TYPE_CHECKING:
    from tubelet.tasks.common.task import Task


def task_names() -> list[str]:
    """The names of all tasks, sorted; no task is imported for it."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def get_task(name: str) -> Task:
    """The task of a name.

    Raises:
        TubeletError: if there is none.
    """
    if name not in task_names():
        raise DataError(f"unknown task {name!r}; expected one of {', '.join(task_names())}")
    task: Task = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return task
