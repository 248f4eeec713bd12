"""How media are covered by the clips of a head, in prediction as in training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tubelet.heads.head_file import HeadInput, HeadSpec
from tubelet.heads.window_grid import Window, iter_windows, row_windows, step_seconds


@dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """How videos are covered by windows.

    Attributes:
        clips: the clips; for heads of images, clips of one frame at the rate of their stride.
        tubelet: frames of a time step.
        whole: whether a video that is shorter than a clip is seen as a whole, at a higher rate, as in the training of
            heads of clips; otherwise its last frame is repeated, as in the training of timelines.
    """

    clips: HeadInput
    tubelet: int
    whole: bool

    @classmethod
    def of_head(cls, spec: HeadSpec, tubelet: int) -> "WindowLayout":
        """The layout of a head.

        Args:
            spec: the head.
            tubelet: frames of a time step of the encoder.
        """
        clips = spec.input
        if clips.frames == 1:
            clips, tubelet = replace(clips, fps=1 / clips.stride_s), 1
        return cls(clips=clips, tubelet=tubelet, whole=spec.task != "timeline")

    @property
    def pixels(self) -> "WindowLayout":
        """The layout without what is done to tokens: heads of the same one can share an encoding."""
        return replace(self, clips=replace(self.clips, levels=(-1,), cells=0))

    @property
    def step_s(self) -> float:
        """Seconds of a time step."""
        return step_seconds(self.clips, self.tubelet)

    def windows(self, duration_s: float) -> Iterator[Window]:
        """The windows of a video of some seconds, in order."""
        if self.whole and duration_s < self.clips.frames / self.clips.fps * (1 - 1e-6):
            (times,) = row_windows(0.0, duration_s, duration_s, self.clips)
            yield Window(times, 0, self.clips.frames // self.tubelet, 0)
        else:
            yield from iter_windows(duration_s, self.clips, self.tubelet)

    def times(self, duration_s: float) -> Iterator[float]:
        """The times of all windows of a video, ascending, each once."""
        latest = -1.0
        for window in self.windows(duration_s):
            for second in window.times.tolist():
                if second > latest:
                    yield second
                    latest = second

    def count(self, duration_s: float) -> int:
        """Number of windows of a video."""
        return sum(1 for _ in self.windows(duration_s))
