"""Settings of embedding a collection."""

from dataclasses import dataclass

from tubelet.config.fields import (
    Count,
    Fraction,
    Frames,
    PathText,
    Processes,
    Rate,
    Samples,
    Seconds,
    Settings,
    Side,
    require_clip,
)

DUPLICATE_MARGIN = 0.3
"""By how much clips of near-duplicates are more similar to each other than to the rest of a collection."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Settings):
    """Settings of the clips of a collection and of their features."""

    image_size: Side | None = None
    """Side of the center crop, in pixels; None is the model's own, see docs/features.md."""
    frames: Frames | None = None
    """Frames of a clip; None is the model's own."""
    fps: Rate | None = None
    """Frames per second of a clip; None is the model's own. Shorter videos are sampled at a higher one, and counted."""
    stride_s: Seconds | None = None
    """Seconds from clip to clip of a video; None places clips end to end, spread evenly over the video."""
    causal: bool = False
    """Whether a row is a time step whose features come from its frames and those before it only, encoded from the clip
    that ends with it; stride_s is then from time step to time step, by default each."""
    dense: bool = False
    """Keep all tokens, not only their mean."""
    all_levels: bool = False
    """Keep all output levels, not only the deepest."""
    batch_size: Samples = 8
    """Clips per batch."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the encoding process."""
    prefetch_mb: Count = 2048
    """Maximum of prefetched clips in megabytes (10^6 bytes), at least one batch; fewer workers start if it holds less
    than a batch for each."""
    allow_path: tuple[PathText, ...] = ()
    """Folders and URLs, besides a manifest's own folder, that the manifest's files may lie in."""
    prune: bool = False
    """Remove the rows of files that no longer exist."""
    max_failed_fraction: Fraction = 0.05
    """Fraction of the files that may be unreadable before the command stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip(self.frames or 1, self.image_size or 1)
