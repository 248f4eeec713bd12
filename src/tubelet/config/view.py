"""Settings of a page of features."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tubelet.config.fields import Frames, Rate, Settings, Side
from tubelet.value_checks import Bounds


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Settings):
    """Settings of a page of features."""

    image_size: Side | None = None
    """Shorter side of the frames that the model sees, in pixels; None is the model's own, at least 24 patches."""
    frames: Frames | None = None
    """Frames of a window of a video; windows overlap by half. None is the model's own."""
    fps: Rate | None = None
    """Frames per second of a video that the model sees; the page plays all frames. None is the model's own."""
    levels: tuple[Annotated[int, Bounds(-64, 63)], ...] = ()
    """Output levels in the page, 0 the shallowest and -1 the deepest; none means all."""
    encoder: Literal["teacher", "student", "both"] | None = None
    """Encoders in the page; None is the teacher, or the only one in the file."""
    directions: Annotated[int, Bounds(3, 64)] = 64
    """Most directions that features are projected to; fewer where the page would be too large."""
    surprise: bool = True
    """Whether the page has the predictor's error for each token, where the model has its predictor."""
