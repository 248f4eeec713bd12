"""NumPy arrays: `.npy`, of which frames alone are read, and `.npz` with one array, which is read as a whole.

Axes: (T, H, W) or (T, H, W, C).
"""

from pathlib import Path

from tubelet.data.size_limits import ARRAY_BYTES
from tubelet.data.stacks.stack import Stack, existing, info_of, layout_of
from tubelet.errors import DecodeError, TubeletError
from tubelet.io.arrays import map_npy, read_single_npz


def open_stack(path: str | Path) -> Stack:
    """Open an array, see `tubelet.data.stacks.open_stack`."""
    name, place = str(path), existing(path)
    try:
        array = map_npy(place) if place.suffix.lower() == ".npy" else read_single_npz(place, ARRAY_BYTES)
    except TubeletError as error:
        raise DecodeError(name, str(error).removeprefix(f"{place}: ")) from error
    if array.ndim not in (3, 4):
        shape = " x ".join(map(str, array.shape))
        raise DecodeError(
            name, f"has {array.ndim} axes ({shape}), expected 3 (frames, height, width) or 4 (with channels last)"
        )
    layout = layout_of(name, "TYXC"[: array.ndim], array.shape)
    info = info_of(name, layout, array.dtype)
    return Stack(info, lambda indices: layout.frames(array[layout.selection(indices)]), lambda: None)
