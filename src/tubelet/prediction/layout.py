"""How the clips of a head cover media, in prediction as in training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tubelet.grid import Modality
from tubelet.heads.head_file import HeadInput, HeadSpec
from tubelet.heads.window_grid import Window, iter_windows, row_windows, step_seconds


@dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """How videos are covered by windows.

    A video that is shorter than a clip is seen as a whole, at a higher rate, as in the training of heads of clips; or
    its last frame is repeated, as in the training of timelines; or both, for heads of both kinds.

    Attributes:
        clips: the clips; for heads of images, clips of one frame at the rate of their stride.
        tubelet: frames of a time step.
        stretched: whether a short video is seen at a higher rate.
        padded: whether the last frame of a short video is repeated.
        whole: whether frames are seen whole, in several squares, instead of their central square; for pixels.
    """

    clips: HeadInput
    tubelet: int
    stretched: bool
    padded: bool
    whole: bool = False

    @classmethod
    def of_head(cls, spec: HeadSpec, tubelet: int) -> "WindowLayout":
        """The layout of a head.

        Args:
            spec: the head.
            tubelet: frames of a time step of the encoder.
        """
        clips, padded = spec.input, spec.task == "timeline" or spec.input.padded
        if clips.frames == 1:
            clips, tubelet = replace(clips, fps=1 / clips.stride_s), 1
        whole = spec.task in ("segmentation", "depth")
        return cls(clips=clips, tubelet=tubelet, stretched=not padded, padded=padded, whole=whole)

    @property
    def shareable(self) -> "WindowLayout":
        """What heads must have in common to share an encoding: all but token reduction and short videos."""
        clips = replace(self.clips, levels=(-1,), cells=0, padded=False)
        return replace(self, clips=clips, stretched=False, padded=False)

    @property
    def step_s(self) -> float:
        """Seconds of a time step."""
        return step_seconds(self.clips, self.tubelet)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What is read: videos, and images where heads take single frames."""
        return tuple(Modality) if self.clips.frames == 1 and self.stretched else (Modality.VIDEO,)

    def is_short(self, duration_s: float) -> bool:
        """Whether a video is shorter than a clip; before causal clips the first frame is repeated instead."""
        return duration_s < self.clips.frames / self.clips.fps * (1 - 1e-6) and not self.clips.causal

    def windows(self, duration_s: float) -> Iterator[tuple[Window, bool]]:
        """The windows of a video of some seconds, in order, and whether each is a short video at a higher rate."""
        short = self.is_short(duration_s)
        if short and self.stretched:
            (times,) = row_windows(0.0, duration_s, duration_s, self.clips)
            yield Window(times, 0, self.clips.frames // self.tubelet, 0), True
        if not short or self.padded:
            for window in iter_windows(duration_s, self.clips, self.tubelet):
                yield window, False

    def times(self, duration_s: float) -> NDArray[np.float64]:
        """The times of all windows of a video, ascending, each once."""
        times = np.fromiter(self._new_times(duration_s), np.float64)
        return np.unique(times) if self.stretched and self.padded else times

    def _new_times(self, duration_s: float) -> Iterator[float]:
        """The times of a window that earlier windows do not have."""
        latest = -1.0
        for window, stretched in self.windows(duration_s):
            for second in window.times.tolist():
                if second > latest or stretched:
                    yield second
                    latest = -1.0 if stretched else second

    def count(self, duration_s: float) -> int:
        """Number of windows of a video."""
        return sum(1 for _ in self.windows(duration_s))
