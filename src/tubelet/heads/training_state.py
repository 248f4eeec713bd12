"""The state of a training of heads, in a file: a training that was interrupted resumes to the same weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tubelet.errors import first_line
from tubelet.io.arrays import read_pt
from tubelet.io.files import atomic_write
from tubelet.io.text import file_error

VERSION = 2
"""Format of the file: `version`, `step`, `heads` and, until the last step, `optimizer`."""

StateDicts = Mapping[str, nn.Module | torch.optim.Optimizer]
"""Key in the file -> the object whose state it is."""

_REMEDY = "delete this state of a training of heads, and run the command again"


def state_path(folder: Path, identity: str) -> Path:
    """The file of a training.

    Args:
        folder: the folder of such files.
        identity: as JSON, everything that would change the outcome; each has a file of its own.
    """
    return folder / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.pt"


def load_state(path: Path, parts: StateDicts, device: torch.device) -> int:
    """Load a state into its objects; those that the file does not have stay as they are.

    Args:
        path: the file.
        parts: the objects.
        device: where tensors are loaded to.

    Returns:
        the number of steps done; 0 without a file.

    Raises:
        TubeletError: if the file cannot be read, or does not fit the objects.
    """
    if not path.exists():
        return 0
    state = read_pt(path, _REMEDY, device)
    try:
        version, step = state.pop("version"), int(state.pop("step"))
        for name, content in state.items() if version == VERSION else ():
            parts[name].load_state_dict(content)
    except Exception as error:  # modules and optimizers raise anything on a state of another form
        raise file_error(path, f"does not fit this training ({first_line(error)})", _REMEDY) from error
    if version != VERSION:
        raise file_error(path, f"version is {version!r:.20}, expected {VERSION}", _REMEDY)
    if step < 0:
        raise file_error(path, f"step is {step}, expected 0 or more", _REMEDY)
    return step


def write_state(path: Path, parts: StateDicts, step: int) -> None:
    """Write the state of objects, and the number of steps done.

    Raises:
        TubeletError: if it cannot be written.
    """
    with atomic_write(path, also=(RuntimeError,)) as partial:
        content = {name: part.state_dict() for name, part in parts.items()}
        torch.save(content | {"version": VERSION, "step": step}, partial)
