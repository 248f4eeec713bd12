"""Which of a run's processes this one is, by the variables that launchers such as torchrun set."""

import os
from typing import NamedTuple

from tubelet.errors import ConfigError, TubeletError

_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What these are in a single process; any other value means that there are more.
_SINGLE = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}


class Launch(NamedTuple):
    """One process among those of a run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on this machine, from 0.
        local_size: how many are on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


def read_launch() -> Launch | None:
    """Read the variables that a launcher sets; None where there is no launcher, or no other process.

    Raises:
        TubeletError: if a launcher's variables contradict each other, or only some are set: they may be left over in a
            shell, and waiting for processes that were never started would take minutes.
    """
    variables = {name: os.environ[name] for name in _SINGLE if os.environ.get(name)}
    for name, value in variables.items():
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise ConfigError(
                f"{name} is {value[:40]!r} in the environment, expected a whole number as a launcher sets it: "
                f"`unset {name}` to train in one process"
            )
    values = {name: int(value) for name, value in variables.items()}
    if all(values[name] == _SINGLE[name] for name in values):
        return None
    missing = [name for name in _REQUIRED if not os.environ.get(name)]
    if missing:
        named = " and ".join(f"{name} is {values[name]}" for name in values if values[name] != _SINGLE[name])
        raise ConfigError(
            f"{named} in the environment, but {' and '.join(missing)} not set, so that this is no process of a "
            f"distributed run: `unset {' '.join(values)}` to train in one process, or start several by torchrun"
        )
    rank, size = values["RANK"], values["WORLD_SIZE"]
    if rank >= size:
        raise ConfigError(
            f"RANK is {rank} and WORLD_SIZE {size} in the environment, expected a rank below the number of processes: "
            f"`unset {' '.join(values)}` to train in one process, or start several by torchrun"
        )
    return None if size == 1 else Launch(rank, size, values.get("LOCAL_RANK", 0), values.get("LOCAL_WORLD_SIZE", size))


def local_processes() -> int:
    """How many processes of this run are on this machine; 1 where a launcher's variables make no sense."""
    try:
        launch = read_launch()
    except TubeletError:
        return 1
    return launch.local_size if launch else 1


def is_local_rank0() -> bool:
    """Whether this process is the one that acts for its machine; also where a launcher's variables make no sense."""
    try:
        launch = read_launch()
    except TubeletError:
        return True
    return launch is None or launch.local_rank == 0
