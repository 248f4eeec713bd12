"""What is read, how it is cut, and what is hidden of it."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from tubelet.config.fields import (
    Count,
    Fraction,
    Frames,
    Processes,
    Rate,
    Settings,
    Side,
    require,
    require_clip,
)
from tubelet.grid import Modality
from tubelet.validation import Bounds


@dataclass(frozen=True, kw_only=True)
class BlockMask(Settings):
    """One multi-block mask: the union of random rectangles, each spanning all of time, is what must be predicted."""

    blocks: Annotated[int, Bounds(1, 1024)]
    """How many rectangles."""
    area: Annotated[float, Bounds(0, 1, exclusive=True)]
    """Fraction of the frame that one rectangle covers."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Range of height over width."""

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
    """Samples of a step whose masks are cut to the length of the shortest: the release's batch of one device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("video", "image"):
            require(bool(getattr(self, name)), name, "has no masks, expected at least one")

    def specs_for(self, modality: Modality) -> tuple[BlockMask, ...]:
        """Those of a modality's batch."""
        return self.image if modality is Modality.IMAGE else self.video


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """What is read and how it is cut."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")] = ()
    """Folders, media files, globs, lists (CSV, TSV, TXT or JSONL), and folders of shards; paths or URLs."""
    allow_path: tuple[str, ...] = ()
    """Folders and URLs that manifests may name files of, besides those below a manifest's own folder."""
    source_weights: tuple[Annotated[float, Bounds(0, 1e12, exclusive=True)], ...] = ()
    """Sampling weight of each source, for videos and images separately; none samples every file equally often."""
    image_size: Side = 256
    """Side of the square crop, in pixels."""
    frames: Frames = 16
    """Frames of a clip."""
    fps: Rate = 4.0
    """Frames per second that a clip is sampled at; a video too short for it is read at a higher rate, and counted."""
    clips_per_video: Annotated[int, Bounds(1, 1024)] = 1
    """Clips taken from a video each time it is opened."""
    image_fraction: Fraction = 0.5
    """Fraction of a step's samples that are images, where the sources hold both images and videos."""
    image_frames: Frames = 1
    """Frames of a still image: 1 uses the image tokenizer; more repeat it for the video tokenizer, as in V-JEPA 2.0."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the random crop's area over the frame's."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    """Range of the random crop's width over height."""
    flip: bool = True
    """Whether half of the samples are mirrored."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the training process."""
    prefetch_mb: Count = 2048
    """Megabytes (10^6 bytes) of samples that each training process has made ahead at most, but one step always; where
    they do not hold a step for each worker, fewer workers start."""
    max_failed_fraction: Fraction = 0.05
    """Fraction of the files that may be unreadable before the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.source_weights) in (0, len(self.sources)),
            "source_weights",
            f"has {len(self.source_weights)} numbers for {len(self.sources)} sources: give one for each, or none",
        )
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "crop_scale", f"is {self.crop_scale}, expected two ascending shares of the frame")
        low, high = self.crop_aspect
        require(0 < low <= high, "crop_aspect", f"is {self.crop_aspect}, expected two ascending ratios above 0")
        require_clip(max(self.frames, self.image_frames), self.image_size)

    def frames_of(self, modality: Modality) -> int:
        """Frames of a modality's samples."""
        return self.image_frames if modality is Modality.IMAGE else self.frames


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Settings):
    """How source files are cut into the members of shards."""

    size: Annotated[int, Bounds(16, 8192, unit="pixels")] = 256
    """Pixels of the short side of what is kept; smaller pictures stay as they are."""
    fps: Rate = 8.0
    """Frames per second that are kept, each with its own time in the source; no run can ask for a higher rate."""
    segment_s: Annotated[float, Bounds(0, 604_800, exclusive=True, unit="seconds")] = 20.0
    """Seconds of a segment: a video is cut into equal ones of at least this length; no clip can be longer."""
    gop: Annotated[int, Bounds(1, 10_000, unit="frames")] = 8
    """Frames from one keyframe to the next: fewer are faster to enter and take more space."""
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
