"""The native clip of a model: the size, length and frame rate that it uses by default."""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from tubelet.checkpoint.registry import RELEASED
from tubelet.config import DataConfig, ModelConfig
from tubelet.errors import escape_unprintable
from tubelet.io.text import parse_json

logger = logging.getLogger(__name__)

_FRAMES, _FPS = 16, 4.0  # of V-JEPA's pre-training and of most of its evaluations; its cool-down has 64 frames
_HEADER_KEY = "clip"
_printed: set[str] = set()
ClipSource = Literal["run", "published", "assumed"]


class _ClipEntry(TypedDict):
    """The entry of a file's header."""

    image_size: int
    frames: int
    fps: float
    source: ClipSource


class NativeClip(NamedTuple):
    """The clips that a model is for.

    Attributes:
        image_size: side of the center crop in pixels.
        frames: number of frames.
        fps: frames per second.
        source: "run" if a run of this package was trained on such clips; "published" if a released name or the metadata
            of another program say so; "assumed" if nothing does.
    """

    image_size: int
    frames: int = _FRAMES
    fps: float = _FPS
    source: ClipSource = "published"

    @classmethod
    def of_run(cls, data: DataConfig) -> "NativeClip":
        """The clips that a run was trained on."""
        return cls(data.image_size, data.frames, data.fps, "run")

    @classmethod
    def of_name(cls, name: str, config: ModelConfig) -> "NativeClip":
        """The clips of a released model by its name; of any other, those of the pre-training grid, which is assumed."""
        if name in RELEASED:
            return cls(int(name.rpartition("-")[2]))
        return cls(config.rope_grid * config.patch_size, source="assumed")

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, Any], sizes: Sequence[str], frames: Sequence[str], fps: str
    ) -> "NativeClip | None":
        """The clips in the metadata of another program; None if they have no image size.

        Args:
            fields: the metadata.
            sizes: names that the image size may have, the first one first.
            frames: names that the number of frames may have.
            fps: name of the rate.
        """
        size, rate = _first_count(fields, sizes), fields.get(fps)
        if not (isinstance(rate, (int, float)) and math.isfinite(rate) and rate > 0):
            rate = _FPS
        return None if size is None else cls(size, _first_count(fields, frames) or _FRAMES, float(rate))

    @classmethod
    def from_header(cls, header: Mapping[str, str], where: str) -> "NativeClip | None":
        """The clips in the header of a safetensors file; None if it has none.

        Raises:
            DataError: if the entry is damaged.
        """
        if _HEADER_KEY not in header:
            return None
        return cls(**parse_json(header[_HEADER_KEY], f"{where}: the clip in its header", _ClipEntry))

    def to_header(self) -> dict[str, str]:
        """The entry of a header; none if the clips are assumed."""
        return {} if self.source == "assumed" else {_HEADER_KEY: json.dumps(self._asdict())}

    def override(self, image_size: int | None, frames: int | None, fps: float | None) -> "NativeClip":
        """A copy with those settings replaced that are not None."""
        return self._replace(
            image_size=image_size or self.image_size, frames=frames or self.frames, fps=fps or self.fps
        )

    def __str__(self) -> str:
        frames = f"{self.frames} frame{'s' * (self.frames != 1)}"
        return f"{self.image_size} x {self.image_size} px, {frames} at {self.fps:g} fps"


def choose_clip(
    name: str, native: NativeClip, image_size: int | None, frames: int | None, fps: float | None
) -> NativeClip:
    """The clip of a command: the user's options, and otherwise the model's native values, which are logged.

    Args:
        name: name of the model.
        native: the model's own clips.
        image_size: value of --image-size.
        frames: value of --frames.
        fps: value of --fps.
    """
    chosen = native.override(image_size, frames, fps)
    log_native(name, native, str(chosen), {"--image-size": image_size, "--frames": frames, "--fps": fps})
    return chosen


def log_native(name: str, native: NativeClip, clips: str, options: Mapping[str, float | None]) -> None:
    """Log what a model runs at, unless all of it was set.

    Args:
        name: name of the model.
        native: its own clips.
        clips: a phrase on the clips that it runs at.
        options: option -> its value; None takes the model's own.
    """
    own = [option for option, value in options.items() if value is None]
    if not own:
        return
    origin = "assumed, since its file does not say" if native.source == "assumed" else "its own"
    if len(own) == len(options):
        note = f"{origin}; {', '.join(own)} {'change them' if len(own) > 1 else 'changes it'}"
    else:
        note = f"{' and '.join(own)}: {origin}"
    log_or_print_once(f"{name}: {clips} ({note})")


def log_or_print_once(message: str) -> None:
    """Log a choice that was made for the user; where no handler would show it, print it to standard error, once.

    Python discards what is logged at INFO unless a program asks for it. A level of the logger `tubelet` above INFO
    silences the message.
    """
    logger.info(message)
    chain = (logger, *(logging.getLogger(name) for name in ("tubelet.checkpoint", "tubelet", None)))
    handlers = [handler for each in chain for handler in each.handlers if not isinstance(handler, logging.NullHandler)]
    levels = [each.level for each in chain[:-1] if each.level != logging.NOTSET]
    if handlers or message in _printed or any(level > logging.INFO for level in levels):
        return
    _printed.add(message)
    print(f"tubelet: {escape_unprintable(message)}", file=sys.stderr)


def _first_count(fields: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The first of some fields that is a positive whole number."""
    return next((fields[name] for name in names if type(fields.get(name)) is int and fields[name] > 0), None)
