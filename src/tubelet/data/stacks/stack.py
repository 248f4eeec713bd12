"""The interface that the readers of all stack formats implement, and the layout of array axes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubelet.data.size_limits import check_frame_size
from tubelet.errors import DecodeError, MissingPackageError, TubeletError

# Channels of a frame: more are an axis that was taken for the channels.
MAX_CHANNELS = 64
# Frames of a stack, a day at 1,000 a second; and bytes that are unpacked at once.
MAX_FRAMES = 86_400_000
CHUNK_BYTES = 2**31


@dataclass(frozen=True)
class StackInfo:
    """Properties of a stack of frames.

    Attributes:
        frames: number of frames T.
        height: rows H of a frame.
        width: columns W of a frame.
        channels: values C of a pixel.
        dtype: NumPy's name of the type of the values, such as "uint16".
        bits: significant bits of a value, of which the type may have more.
        fps: frames per second; None if the file states no rate.
        window: values that the file asks to show as black and as white; None if it states none.
    """

    frames: int
    height: int
    width: int
    channels: int
    dtype: str
    bits: int
    fps: float | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Stack:
    """An open stack.

    Attributes:
        info: its properties.
        read: function from (n,) ascending, distinct frame numbers to (n, H, W, C) values of `info.dtype`.
        close: function that closes the file.
    """

    info: StackInfo
    read: Callable[[np.ndarray], np.ndarray]
    close: Callable[[], object]


@dataclass(frozen=True)
class AxisLayout:
    """How the axes of an array become frames, height, width and channels.

    Attributes:
        axes: letter of each axis: T for the frames, C for the channels, Y, X, and 1 for others, of size one.
        shape: size of each axis.
    """

    axes: str
    shape: tuple[int, ...]

    def size(self, axis: str) -> int:
        """The size of an axis, 1 if the array has none of it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def selection(self, indices: np.ndarray) -> tuple[slice | np.ndarray, ...]:
        """The index of some frames into the array."""
        return tuple(indices if axis == "T" else slice(None) for axis in self.axes)

    def frames(self, block: np.ndarray) -> np.ndarray:
        """An array of these axes, of any number of frames, as (T, H, W, C)."""
        indices = [index for index, axis in enumerate(self.axes) if axis != "1"]
        block = block.reshape([block.shape[index] for index in indices])
        axes = "".join(self.axes[index] for index in indices)
        for axis in "TC":
            if axis not in axes:
                block, axes = block[None], axis + axes
        return block.transpose([axes.index(axis) for axis in "TYXC"])


def layout_of(path: str, axes: Sequence[str], shape: Sequence[int]) -> AxisLayout:
    """Decide which axes of an array are frames and channels.

    The frames are the axis T; without one, the only other axis (Z for depth, or pages without a name). The channels are
    the axis C or S. Axes of size one are dropped.

    Args:
        path: name of the file, for messages.
        axes: letter of each axis: T, Z, C, S, Y, X, or any other one.
        shape: size of each axis.

    Raises:
        DecodeError: an image has no rows or columns, or several axes might be the frames or the channels.
    """
    problem = f"has the axes {''.join(axes)} of sizes {' x '.join(map(str, shape))}"
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise DecodeError(path, f"{problem}, expected Y and X once; save it with names of its axes")
    long = [index for index, axis in enumerate(axes) if shape[index] != 1 and axis not in "YX"]
    channels = [index for index in long if axes[index] in "CS"]
    others = [index for index in long if axes[index] not in "CS"]
    times = [index for index in others if axes[index] == "T"] or others
    if len(times) > 1 or len(others) > len(times) or len(channels) > 1:
        raise DecodeError(
            path,
            f"{problem}, expected one axis of frames (T, else Z or pages) and one of channels (C or S); "
            "save each volume or channel set as a file of its own",
        )
    names = {**dict.fromkeys(times, "T"), **dict.fromkeys(channels, "C")}
    letters = "".join(axis if axis in ("Y", "X") else names.get(index, "1") for index, axis in enumerate(axes))
    return AxisLayout(letters, tuple(map(int, shape)))


def unnamed_layout(path: str, shape: Sequence[int]) -> AxisLayout:
    """The layout of an array without names of axes: (T, H, W) or (T, H, W, C).

    Raises:
        DecodeError: it has other axes, or sizes as of an image or of channels that come before the rows.
    """
    sizes = " x ".join(map(str, shape))
    if len(shape) not in (3, 4):
        raise DecodeError(
            path,
            f"has {len(shape)} axes ({sizes}) without names, expected 3 (frames, height, width) or 4 (with channels "
            "last)",
        )
    if len(shape) == 3 and shape[2] <= 4 < min(shape[:2]):
        raise DecodeError(path, f"has the shape {sizes}, as an image of colors, expected frames first; add that axis")
    if len(shape) == 4 and shape[3] > 4 and (shape[1] <= 4 or (shape[0] <= 4 and shape[2] <= shape[3])):
        raise DecodeError(
            path, f"has the shape {sizes}, as of channels before the rows, expected channels last; transpose it"
        )
    return layout_of(path, "TYXC"[: len(shape)], shape)


def info_of(
    path: str,
    layout: AxisLayout,
    dtype: np.dtype,
    bits: int | None = None,
    fps: float | None = None,
    window: tuple[float, float] | None = None,
) -> StackInfo:
    """Properties of a stack, checked.

    Raises:
        DecodeError: its values are not real numbers, or its sizes are absurd.
    """
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise DecodeError(path, f"has values of type {dtype}, expected whole or floating-point numbers")
    frames, height, width, channels = (layout.size(axis) for axis in "TYXC")
    if not frames * height * width * channels:
        raise DecodeError(path, f"has the shape {' x '.join(map(str, layout.shape))}: no pixels; remove it")
    if channels > MAX_CHANNELS:
        raise DecodeError(
            path,
            f"has {channels} channels, above the limit of {MAX_CHANNELS}; its shape is "
            f"{' x '.join(map(str, layout.shape))}: are the channels another axis?",
        )
    if frames > MAX_FRAMES:
        raise DecodeError(path, f"has {frames} frames, above the limit of {MAX_FRAMES}; split it")
    check_frame_size(path, width, height)
    native = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    depth = bits or (1 if dtype.kind == "b" else 8 * dtype.itemsize)
    rate = fps if fps and 0 < fps < 1e6 else None
    return StackInfo(frames, height, width, channels, native.name, depth, rate, window)


@contextmanager
def as_stack_error(path: str, what: str, package: str = "") -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a DecodeError.

    The library's own message is left out: it may quote what the file says about a person.

    Args:
        path: name of the file, for messages.
        what: kind of the file.
        package: package that reads it, if it is imported in the block.

    Raises:
        DecodeError: the library raised an error.
        MissingPackageError: the package is not installed.
    """
    try:
        yield
    except TubeletError:
        raise
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: {what} files need {package or error.name}: pip install 'tubelet[stacks]'"
        ) from error
    except Exception as error:  # libraries raise nearly anything on corrupt files
        raise DecodeError(path, f"corrupt or truncated {what} file ({type(error).__name__}); copy it again") from error


def existing_path(path: str | Path) -> Path:
    """The path of a local stack.

    Raises:
        DecodeError: it does not exist.
    """
    local = Path(path)
    try:
        local.stat()
    except OSError as error:
        reason = (
            "does not exist"
            if isinstance(error, FileNotFoundError | NotADirectoryError)
            else f"cannot be read ({error.strerror})"
        )
        raise DecodeError(str(path), reason) from error
    return local
