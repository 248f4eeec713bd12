"""NumPy arrays: `.npy`, of which only frames are read, and `.npz` with one array, which is read as a whole.

Axes: (T, H, W) or (T, H, W, C).
"""

from pathlib import Path

from tubelet.data.size_limits import ARRAY_BYTES
from tubelet.data.stacks.stack import Stack, existing_path, info_of, unnamed_layout
from tubelet.errors import DecodeError, TubeletError
from tubelet.io.arrays import map_npy, npz_names, read_single_npz


def may_be_frames(path: str | Path) -> bool:
    """Whether the header of an array is that of frames; a damaged `.npy` counts as such, to be reported."""
    file = Path(path)
    if file.suffix.lower() == ".npz":
        try:
            return len(npz_names(file)) == 1
        except TubeletError:
            return False
    try:
        array = map_npy(file)
    except TubeletError:
        return True
    return array.ndim in (3, 4) and array.dtype.kind in "buif"


def open_stack(path: str | Path) -> Stack:
    """Open an array, see `tubelet.data.stacks.open_stack`."""
    name, local = str(path), existing_path(path)
    try:
        array = map_npy(local) if local.suffix.lower() == ".npy" else read_single_npz(local, ARRAY_BYTES)
    except TubeletError as error:
        raise DecodeError(name, str(error).removeprefix(f"{local}: ")) from error
    layout = unnamed_layout(name, array.shape)
    info = info_of(name, layout, array.dtype)
    return Stack(info, lambda indices: layout.frames(array[layout.selection(indices)]), lambda: None)
