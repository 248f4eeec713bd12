"""The state of a training of heads, in a file: one that was stopped goes on and ends with the same weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tubelet.errors import first_line
from tubelet.io.arrays import read_pt
from tubelet.io.files import atomic_write
from tubelet.io.text import file_error

Parts = Mapping[str, nn.Module | torch.optim.Optimizer]
"""What the file calls a part of the state -> that part."""


_DELETE = "delete this state of a training of heads, and run the command again"


def state_path(folder: Path, stated: str) -> Path:
    """The file of a training.

    Args:
        folder: of such files.
        stated: as JSON, all that would change the outcome; for each another file.
    """
    return folder / f"{hashlib.blake2b(stated.encode(), digest_size=16).hexdigest()}.pt"


def take_up(path: Path, parts: Parts, counter: str, device: torch.device) -> int:
    """Bring parts to the state that a file holds, those aside that it was written without.

    Returns:
        what the file has under the name of the counter; 0 without a file.

    Raises:
        TubeletError: if it cannot be read, or does not fit the parts.
    """
    if not path.exists():
        return 0
    state = read_pt(path, _DELETE, device)
    try:
        for name in state.keys() - {counter}:
            parts[name].load_state_dict(state[name])
        done = int(state[counter])
    except Exception as error:  # modules and optimizers raise anything on a state of another form
        raise file_error(path, f"does not fit this training ({first_line(error)})", _DELETE) from error
    if done < 0:
        raise file_error(path, f"its {counter} is {done}, expected 0 or more", _DELETE)
    return done


def write_state(path: Path, parts: Parts, counter: str, done: int) -> None:
    """Write the state of parts, and how much is done under the name of the counter.

    Raises:
        TubeletError: if it cannot be written.
    """
    with atomic_write(path, also=(RuntimeError,)) as partial:
        torch.save({name: part.state_dict() for name, part in parts.items()} | {counter: done}, partial)
