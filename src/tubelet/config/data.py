"""What is read, how it is cut, and what is hidden of it."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

import tyro

from tubelet.config.fields import require
from tubelet.types import Modality


@dataclass(frozen=True, kw_only=True)
class BlockMask:
    """One multi-block mask: the union of random rectangles, each spanning all of time, is what must be predicted."""

    blocks: int
    """How many rectangles."""
    area: float
    """Share of the frame that one rectangle covers."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Range of height over width."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """The masks drawn for every batch (SYSTEM step 3)."""

    video: tuple[BlockMask, ...] = (BlockMask(blocks=8, area=0.15), BlockMask(blocks=2, area=0.7))
    """Masks of a video batch: many small blocks, and few large ones."""
    image: tuple[BlockMask, ...] = (BlockMask(blocks=10, area=0.15),)
    """Masks of an image batch."""
    group: int = 24
    """Samples of a step whose masks are cut to the length of the shortest: the release's batch of one device."""

    def __post_init__(self) -> None:
        require(self.group >= 1, f"group is {self.group}, expected at least 1 sample")

    def of(self, modality: Modality) -> tuple[BlockMask, ...]:
        """Those of a modality's batch."""
        return self.image if modality is Modality.IMAGE else self.video


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how it is cut."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")] = ()
    """Folders, media files, globs, CSV or JSONL manifests, and folders of shards; paths or URLs."""
    allow_outside: tuple[str, ...] = ()
    """Folders and URLs that manifests may name files of, besides those below a manifest's own folder."""
    weights: tuple[float, ...] = ()
    """Sampling weight of each source, for videos and images separately; none samples every file equally often."""
    image_size: int = 256
    """Side of the square crop, in pixels."""
    frames: int = 16
    """Frames of a clip."""
    fps: float = 4.0
    """Frames per second that a clip is sampled at; a video too short for it is read at a higher rate, and counted."""
    clips_per_video: int = 1
    """Clips taken from a video each time it is opened."""
    image_share: float = 0.5
    """Share of a step's samples that are images, where the sources hold both images and videos."""
    image_frames: int = 1
    """Frames of a still image: 1 uses the image tokenizer; more repeat it for the video tokenizer, as in V-JEPA 2.0."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the random crop's area over the frame's."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    """Range of the random crop's width over height."""
    flip: bool = True
    """Whether half of the samples are mirrored."""
    workers: int = 1
    """Decoding processes; 0 decodes in the training process."""
    prefetch_mb: int = 2048
    """Megabytes (10^6 bytes) of samples that each training process has made ahead at most, but one step always; where
    they do not hold a step for each worker, fewer workers start."""
    max_bad_share: float = 0.05
    """Share of the files that may be unreadable before the run stops."""

    def __post_init__(self) -> None:
        for name in ("sources", "allow_outside"):
            value = getattr(self, name)
            require(not isinstance(value, str), f"{name} is {value!r}, expected a tuple: ({value!r},)")
            object.__setattr__(self, name, tuple(map(str, value)))  # paths may be given as such
        require(
            len(self.weights) in (0, len(self.sources)),
            f"there are {len(self.weights)} weights for {len(self.sources)} sources: give one for each, or none",
        )
        for weight in self.weights:
            known = f"a weight is {weight}, expected a number above 0: leave out a source that is not wanted"
            require(0 < weight < inf, known)
        require(0 < self.fps < inf, f"fps is {self.fps}, expected a positive rate")
        require(self.frames >= 1, f"frames is {self.frames}, expected at least 1")
        require(self.image_frames >= 1, f"image_frames is {self.image_frames}, expected at least 1")
        require(self.clips_per_video >= 1, f"clips_per_video is {self.clips_per_video}, expected at least 1")
        require(self.prefetch_mb >= 1, f"prefetch_mb is {self.prefetch_mb}, expected at least 1 megabyte")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"crop_scale is {self.crop_scale}, expected two ascending shares of the frame")
        low, high = self.crop_aspect
        require(0 < low <= high < inf, f"crop_aspect is {self.crop_aspect}, expected two ascending ratios above 0")
        require(0 <= self.image_share <= 1, f"image_share is {self.image_share}, expected a share from 0 to 1")
        require(0 <= self.max_bad_share <= 1, f"max_bad_share is {self.max_bad_share}, expected a share from 0 to 1")
        require(self.workers >= 0, f"workers is {self.workers}, expected 0 or more processes")

    def frames_of(self, modality: Modality) -> int:
        """Frames of a modality's samples."""
        return self.image_frames if modality is Modality.IMAGE else self.frames


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How source files are cut into the members of shards."""

    size: int = 256
    """Pixels of the short side of what is kept; smaller pictures stay as they are."""
    fps: float = 8.0
    """Frames per second that are kept, each with its own time in the source; no run can ask for a higher rate."""
    segment_s: float = 20.0
    """Seconds of a segment: a video is cut into equal ones of at least this length; no clip can be longer."""
    gop: int = 8
    """Frames from one keyframe to the next: fewer are faster to enter and take more space."""
    crf: int = 20
    """H.264 quality from 0 (lossless) to 51."""
    image_quality: int = 92
    """JPEG quality of still images, 1 to 100."""

    def __post_init__(self) -> None:
        require(self.size >= 16, f"size is {self.size}, expected at least 16 pixels")
        require(0 < self.fps <= 1000, f"fps is {self.fps}, expected a rate above 0 and at most 1000")
        require(
            self.segment_s * self.fps >= 2,
            f"segment_s is {self.segment_s}, expected at least two frames, {2 / self.fps:g} s at {self.fps:g} fps",
        )
        require(self.gop >= 1, f"gop is {self.gop}, expected at least 1 frame")
        require(0 <= self.crf <= 51, f"crf is {self.crf}, expected 0 to 51")
        require(1 <= self.image_quality <= 100, f"image_quality is {self.image_quality}, expected 1 to 100")
