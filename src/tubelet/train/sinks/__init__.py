"""Metric sinks: where a run's rows of metrics go. One module each; a new module is found by its name.

`jsonl` always receives the rows; `--sinks` names the others.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from tubelet.errors import ConfigError, MissingPackageError
from tubelet.io.files import describe_os_error
from tubelet.io.text import read_text
from tubelet.train.run_directory import RunDirectory, write_atomically


class MetricSink(ABC):
    """Receives every row of metrics of a run, in the order of steps, on rank 0.

    Attributes:
        required: Whether the run stops where the sink fails.
    """

    required = False

    def __init__(self, run: RunDirectory, step: int) -> None:
        """Store where the rows belong; what takes long is opened with the first row.

        Args:
            run: The run directory, with `path` and `config`.
            step: Steps done; rows of later steps that were logged before are logged anew.
        """
        self.run, self.step = run, step

    def run_id(self, make: Callable[[], str]) -> str:
        """The id under which the sink knows this run, from a file in the run directory: it moves with it.

        Args:
            make: Returns a new id; called for a run that has none.

        Raises:
            TubeletError: the file cannot be read or written.
        """
        path = self.run.path / f"{type(self).__module__.rpartition('.')[2]}_run_id.txt"
        if path.exists() and (run_id := read_text(path).strip()):
            return run_id
        made = make()
        write_atomically(path, made + "\n")
        return made

    def unique_name(self) -> str:
        """The name of the run directory with a random suffix."""
        return f"{self.run.path.absolute().name}-{secrets.token_hex(4)}"

    @abstractmethod
    def log(self, row: Mapping[str, float]) -> None:
        """Log one step's metrics, `step` among them; some may be nan or infinite."""

    def rewind(self, step: int) -> None:
        """Prepare for rows that replace those after `step`."""
        self.step = step

    def close(self) -> None:  # noqa: B027 - most sinks have something to close, none must
        """Write what is buffered."""


class SinkGroup:
    """All sinks of a run. One that fails and is not required ends with an alert; the run goes on without it."""

    def __init__(
        self,
        names: Sequence[str],
        more: Sequence[type[MetricSink]],
        run: RunDirectory,
        step: int,
        alert: Callable[[int, str, str], None],
    ) -> None:
        """Make the sinks; on other ranks there are none.

        Args:
            names: Modules of this package.
            more: Classes from elsewhere.
            run: The run directory.
            step: Steps done.
            alert: Called with step, kind and message where a sink fails.

        Raises:
            TubeletError: a name is unknown, or the sink's package is not installed.
        """
        kinds = [*map(sink_class, dict.fromkeys(("jsonl", *names))), *more]
        self.sinks = [kind(run, step) for kind in kinds] if run.writes else []
        self.alert, self.step = alert, step

    def log(self, row: Mapping[str, float]) -> None:
        """Pass a row to every sink."""
        self.step = int(row["step"])
        self._each(lambda sink: sink.log(row))

    def rewind(self, step: int) -> None:
        """Prepare every sink for rows that replace those after `step`."""
        self.step = step
        self._each(lambda sink: sink.rewind(step))

    def close(self) -> None:
        """Close every sink, once."""
        self._each(lambda sink: sink.close())
        self.sinks = []

    def _each(self, call: Callable[[MetricSink], Any]) -> None:
        for sink in list(self.sinks):
            try:
                call(sink)
            except Exception as error:  # of a library whose errors depend on what else is installed
                if sink.required:
                    raise
                self.sinks.remove(sink)
                name = type(sink).__name__
                self.alert(self.step, "sink", f"{name} receives no more metrics: {describe_os_error(error)}")


def available_sinks() -> list[str]:
    """Names of the sinks in this package."""
    return sorted(module.name for module in iter_modules(__path__))


def sink_class(name: str) -> type[MetricSink]:
    """The sink that a module of this package defines.

    Raises:
        TubeletError: there is no such module, or it needs a package that is not installed.
    """
    if name not in available_sinks():
        raise ConfigError(f"sinks: {name!r} is unknown, expected some of {', '.join(available_sinks())}")
    try:
        module = import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise MissingPackageError(f"sinks: {name} needs a package: pip install {name} ({error})") from error
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, MetricSink)]
    return next(kind for kind in kinds if kind is not MetricSink)
