"""Transforms for classification: segments in time, square crops along the long side, or the center of an image.

V views of a file, each of S segments. Views and segments that would be equal to each other are cut once: a square
image has one view, a video no longer than a segment one segment. To attention, tokens that all come several times
are the same as tokens that come once, and so is an average of equal answers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.clips import crops_along, resize_center_crop, segment_times, to_colors
from tubelet.data.decode import Frames
from tubelet.data.model_frames import open_frames, read_still
from tubelet.tasks.common.extract import Source

_MARGIN = 256 / 224  # an image's short side over the side of its middle square, as is usual since AlexNet


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """The views of a video; a transform of `extract`.

    Attributes:
        size: side of a view in pixels.
        frames: T of a segment.
        frame_step: frames of the video from one frame of a segment to the next.
        segments: clips spread over the video.
        views: squares from one end of the image's long side to the other; one is the middle.
    """

    size: int
    frames: int
    frame_step: int
    segments: int = 1
    views: int = 1

    def __call__(self, source: Source) -> Tensor:
        """(V, S, C, T, H, W) uint8, or normalized floats."""
        return torch.stack([crops_along(clip.pixels, self.size, self.views) for clip in self.read(source)], dim=1)

    def read(self, source: Source) -> list[Frames]:
        """The segments as they are in the file, and the times of their frames."""
        with open_frames(source.files[0], source.pixels) as video:
            return video.clips(
                segment_times(video.info, self.frames, video.info.fps / self.frame_step, self.segments)[0]
            )

    @property
    def recipe(self) -> dict[str, Any]:
        """What the features depend on."""
        return {"transform": "segments"} | asdict(self)


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """The middle of an image; a transform of `extract`.

    Attributes:
        size: side of the square in pixels.
    """

    size: int

    def __call__(self, source: Source) -> Tensor:
        """(1, 1, C, 1, H, W) uint8, or normalized floats."""
        image = read_still(source.files[0], source.pixels)
        square = resize_center_crop(image.unsqueeze(0), round(self.size * _MARGIN))
        first = (square.shape[2] - self.size) // 2
        return square[:, :, first : first + self.size, first : first + self.size][None, None]

    @property
    def recipe(self) -> dict[str, Any]:
        """What the features depend on."""
        return {"transform": "middle"} | asdict(self)


View = ClipView | ImageView


def shown_frames(view: View, source: Source, at_most: int = 5) -> dict[str, NDArray[np.uint8]]:
    """Frames of the middle of a file, as the model gets them: time of each -> (H, W, 3)."""
    if isinstance(view, ImageView):
        return {"image": to_colors(view(source)[0, 0, :, 0], source.pixels).permute(1, 2, 0).numpy()}
    clips = view.read(source)
    middle = clips[len(clips) // 2]
    colors = to_colors(resize_center_crop(middle.pixels, view.size), source.pixels)
    return frames_by_time(colors, middle.times, at_most)


def frames_by_time(pixels: Tensor, times: Sequence[float] | np.ndarray, at_most: int) -> dict[str, NDArray[np.uint8]]:
    """Frames at even distances of a clip (C, T, H, W), each under its second; those shown twice once."""
    chosen = sorted({i * (len(times) - 1) // max(at_most - 1, 1) for i in range(at_most)})
    return {f"{times[i]:.2f} s": pixels[:, i].permute(1, 2, 0).numpy() for i in chosen}
