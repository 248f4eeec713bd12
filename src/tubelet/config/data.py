"""Settings of sources, clips, masks and shards."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from tubelet.config.fields import (
    Count,
    Fraction,
    Frames,
    PathText,
    Rate,
    Settings,
    Side,
    Workers,
    require,
    require_clip,
)
from tubelet.grid import Modality
from tubelet.value_checks import Bounds


@dataclass(frozen=True, kw_only=True)
class BlockMask(Settings):
    """One multi-block mask: the target is the union of random rectangles, each spanning all time steps."""

    blocks: Annotated[int, Bounds(1, 1024)]
    """Number of rectangles."""
    area: Annotated[float, Bounds(0, 1, exclusive=True)]
    """Fraction of the frame that one rectangle covers."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Range of aspect ratios, height over width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.aspect
        require(0 < low <= high, "aspect", f"is {self.aspect}, expected two ascending ratios above 0")


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Settings):
    """The masks drawn for every batch (docs/system.md, step 3)."""

    video: tuple[BlockMask, ...] = (BlockMask(blocks=8, area=0.15), BlockMask(blocks=2, area=0.7))
    """Masks of a video batch: many small blocks, and few large ones."""
    image: tuple[BlockMask, ...] = (BlockMask(blocks=10, area=0.15),)
    """Masks of an image batch."""
    truncation_group_size: Count = 24
    """Samples whose masks are truncated to the shortest among them: the release's batch size per device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("video", "image"):
            require(bool(getattr(self, name)), name, "is empty, expected at least one mask")

    def specs_for(self, modality: Modality) -> tuple[BlockMask, ...]:
        """The masks of a batch of this modality."""
        return self.image if modality is Modality.IMAGE else self.video


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Settings of sources, sampling and clips."""

    sources: Annotated[tuple[PathText, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")] = ()
    """Folders, media files, globs, frames (DIR/%06d.png), lists (CSV, TSV, TXT or JSONL), and folders of shards; paths
    or URLs."""
    allow_path: tuple[PathText, ...] = ()
    """Folders and URLs, besides a manifest's own folder, that the manifest's files may lie in."""
    source_weights: tuple[Annotated[float, Bounds(0, 1e12, exclusive=True)], ...] = ()
    """Sampling weight of each source, for videos and images separately; by default all files are equally likely."""
    image_size: Side = 256
    """Side of the square crop, in pixels."""
    frames: Frames = 16
    """Frames of a clip."""
    fps: Rate = 4.0
    """Frames per second of a clip; shorter videos are sampled at a higher rate, and counted."""
    clips_per_video: Annotated[int, Bounds(1, 1024)] = 1
    """Clips taken from a video each time it is opened."""
    image_fraction: Fraction = 0.5
    """Fraction of images among the samples of a step, if the sources have both images and videos."""
    image_frames: Frames = 1
    """Frames of a still image: 1 uses the image tokenizer; more repeat it for the video tokenizer, as in V-JEPA 2.0."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the random crop's area, as a fraction of the frame."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    """Range of the random crop's aspect ratio, width over height."""
    flip: bool = True
    """Whether samples are flipped horizontally with probability 0.5."""
    workers: Workers = "auto"
    """Decoding processes of each training process; 0 decodes in the training process. auto is one for each core that it
    may use, less one, at most 16."""
    prefetch_mb: Count = 2048
    """Maximum of prefetched samples per training process in megabytes (10^6 bytes), at least one step; fewer workers
    start if it holds less than a step for each."""
    max_failed_fraction: Fraction = 0.05
    """Fraction of the files that may be unreadable before the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.source_weights) in (0, len(self.sources)),
            "source_weights",
            f"has {len(self.source_weights)} numbers for {len(self.sources)} sources: give one per source, or none",
        )
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1, "crop_scale", f"is {self.crop_scale}, expected two ascending fractions of the frame"
        )
        low, high = self.crop_aspect
        require(0 < low <= high, "crop_aspect", f"is {self.crop_aspect}, expected two ascending ratios above 0")
        require_clip(max(self.frames, self.image_frames), self.image_size)

    def frames_for(self, modality: Modality) -> int:
        """Frames of a sample of this modality."""
        return self.image_frames if modality is Modality.IMAGE else self.frames


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Settings):
    """How source files are transcoded into shards."""

    size: Annotated[int, Bounds(16, 8192, unit="pixels")] = 256
    """Short side in pixels; smaller media keep their size."""
    fps: Rate = 8.0
    """Frames per second that are kept, each with its timestamp in the source; an upper bound of a run's rate."""
    segment_s: Annotated[float, Bounds(0, 604_800, exclusive=True, unit="seconds")] = 20.0
    """Minimum seconds of a segment; a video is split into equal segments, and no clip can be longer."""
    gop: Annotated[int, Bounds(1, 10_000, unit="frames")] = 8
    """Frames per group of pictures: shorter groups are faster to seek in and larger."""
    crf: Annotated[int, Bounds(0, 51)] = 20
    """H.264 quality from 0 (lossless) to 51."""
    image_quality: Annotated[int, Bounds(1, 100)] = 92
    """JPEG quality of still images, 1 to 100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.segment_s * self.fps >= 2,
            "segment_s",
            f"is {self.segment_s}, expected at least two frames, {2 / self.fps:g} s at {self.fps:g} fps",
        )
