"""Zarr arrays of version 2 and 3, read with zarr, a chunk at a time.

Axes are those of OME-NGFF, else the array's `dimension_names` (in version 2, `_ARRAY_DIMENSIONS`), else those of NumPy
arrays: (T, H, W) or (T, H, W, C). Of a group, the largest level of OME-NGFF is read, or its only array.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.stacks.stack import (
    CHUNK_BYTES,
    Stack,
    as_stack_error,
    existing_path,
    info_of,
    layout_of,
    unnamed_layout,
)
from tubelet.errors import DecodeError

_KIND = "Zarr"
_NAMES = {
    "T": ("t", "time", "frame", "frames"),
    "Z": ("z", "depth", "slice", "slices", "plane", "level"),
    "C": ("c", "channel", "channels", "band", "bands", "s", "sample", "samples"),
    "Y": ("y", "row", "rows", "height", "h", "lat", "latitude"),
    "X": ("x", "column", "columns", "col", "width", "w", "lon", "longitude"),
}
_LETTERS = {name: letter for letter, names in _NAMES.items() for name in names}
_UNIT_S = {"second": 1.0, "millisecond": 1e-3, "microsecond": 1e-6, "nanosecond": 1e-9, "minute": 60.0, "hour": 3600.0}


def open_stack(path: str | Path) -> Stack:
    """Open an array or group, see `tubelet.data.stacks.open_stack`."""
    name, local = str(path), existing_path(path)
    with as_stack_error(name, _KIND, "zarr"):
        import zarr

        node = zarr.open(str(local), mode="r")
    with as_stack_error(name, _KIND):
        array, axes, fps = _array_and_axes(name, node)
        layout = unnamed_layout(name, array.shape) if axes is None else layout_of(name, axes, array.shape)
        dtype = np.dtype(array.dtype)
        info = info_of(name, layout, dtype, fps=fps)
        size = math.prod(map(int, array.chunks)) * dtype.itemsize
        if size > CHUNK_BYTES:
            raise DecodeError(name, f"has chunks of {size} bytes, above the limit of {CHUNK_BYTES}; write smaller ones")

    def read(indices: np.ndarray) -> np.ndarray:
        with as_stack_error(name, _KIND):
            return layout.frames(np.asarray(array.oindex[layout.selection(indices)]))

    return Stack(info, read, lambda: None)


def _array_and_axes(name: str, node: Any) -> tuple[Any, list[str] | None, float | None]:
    """The array of a node, the letter of each of its axes if they have names, and frames per second."""
    attributes = dict(node.attrs)
    if not hasattr(node, "shape"):
        scales = (attributes.get("ome") or attributes).get("multiscales")
        if scales:
            array = node[scales[0]["datasets"][0]["path"]]
            axes = [axis if isinstance(axis, str) else axis["name"] for axis in scales[0]["axes"]]
            return array, [_letter(axis) for axis in axes], _rate(scales[0])
        arrays = dict(node.arrays())
        if len(arrays) != 1:
            names = ", ".join(sorted(arrays)[:10]) or "none"
            raise DecodeError(
                name, f"is a group of {len(arrays)} arrays ({names}), expected one; copy one of them to a NAME.zarr"
            )
        (node,) = arrays.values()
        attributes = dict(node.attrs)
    named = getattr(node.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
    if named and all(named):
        return node, [_letter(axis) for axis in named], None
    return node, None, None


def _letter(axis: str) -> str:
    return _LETTERS.get(str(axis).lower(), "Q")


def _rate(scale: Mapping[str, Any]) -> float | None:
    """Frames per second by the first level's scale of the time axis, if it has a unit of time."""
    for axis, size in zip(scale["axes"], _scale_of(scale), strict=False):
        unit = axis.get("unit") if isinstance(axis, dict) else None
        if unit in _UNIT_S and _letter(axis["name"]) == "T" and size > 0:
            return 1 / (float(size) * _UNIT_S[unit])
    return None


def _scale_of(scale: Mapping[str, Any]) -> list[float]:
    changes = scale["datasets"][0].get("coordinateTransformations") or []
    return next((change["scale"] for change in changes if change.get("type") == "scale"), [])
