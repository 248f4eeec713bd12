"""Records of data sets: what a layout loads and a task reads.

Shapes: H x W pixels of an image, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tubelet.config import PixelStatistics
from tubelet.data.decode import Video, read_frames
from tubelet.data.images import read_image
from tubelet.data.palette_png import VOID
from tubelet.datasets.annotations import image_shape, read_gray_png, read_object_mask, to_class_indices
from tubelet.datasets.locate import find_other_suffix
from tubelet.errors import BadFile, DataError, DecodeError, MissingFileError


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """A data set for a downstream task.

    Attributes:
        kind: Kind of data set, for error messages.
        name: Name of the data set in results, with the test split where that is not obvious.
        excluded: Reason -> number of files or samples that are listed or present but in neither split.
    """

    kind: ClassVar[str]
    name: str
    excluded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProbeProtocol:
    """Published settings for a probe on frozen clip or image features.

    Attributes:
        image_size: Side of a view in pixels.
        frames: Frames of a segment; 1 for images.
        frame_step: Distance between two frames of a segment, in frames of the video.
        segments: Segments of a video, which the probe sees together.
        views: Square crops along the long side of a test file, over which its probabilities are averaged.
        epochs: Passes over the training split.
        batch_size: Samples of a batch.
        learning_rates: Peak learning rates of the probes trained side by side, combined with each weight decay.
        weight_decays: Weight decays of the probes trained side by side.
        warmup_epochs: Epochs of linear warm-up.
        start_lr: Learning rate at the start of the warm-up.
    """

    image_size: int = 256
    frames: int = 16
    frame_step: int = 4
    segments: int = 1
    views: int = 1
    epochs: int = 20
    batch_size: int = 256
    learning_rates: tuple[float, ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    warmup_epochs: float = 0.0
    start_lr: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LabeledFile:
    """A media file and its class.

    Attributes:
        path: Image or video file.
        label: Index of the class.
    """

    path: Path
    label: int


@dataclass(frozen=True, kw_only=True)
class ClassificationDataset(DatasetRecord):
    """Images or videos of one class each.

    Attributes:
        classes: K class names.
        train: Training files.
        test: Test files.
        protocol: Published settings for an attentive probe.
        list_format: How lists without a header were interpreted; empty for lists with a defined format.
    """

    kind = "classification"
    classes: tuple[str, ...]
    train: list[LabeledFile]
    test: list[LabeledFile]
    protocol: ProbeProtocol
    list_format: str = ""


@dataclass(frozen=True, kw_only=True)
class ActionSegment:
    """An annotated action.

    Attributes:
        name: Unique name.
        path: Video file.
        start_s: Start of the action, in seconds.
        narration: Description of the action.
        verb: Index of the verb class.
        noun: Index of the noun class.
    """

    name: str
    path: Path
    start_s: float
    narration: str
    verb: int
    noun: int


@dataclass(frozen=True, kw_only=True)
class AnticipationDataset(DatasetRecord):
    """Videos with actions to anticipate.

    Attributes:
        verbs: Names of the verb classes.
        nouns: Names of the noun classes.
        train: Training actions.
        test: Test actions.
    """

    kind = "anticipation"
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    train: list[ActionSegment]
    test: list[ActionSegment]


@dataclass(frozen=True, kw_only=True)
class DenseSample:
    """An image, or one frame of a video, with a target of the same height and width.

    Attributes:
        name: Unique name, in results and as the seed of the sample's crops.
        image: Image or video file.
        target: File of the target.
        frame: Index of the video frame; None if `image` is an image, or `time_s` is set.
        time_s: Presentation time of the video frame, in seconds; None if `image` is an image, or `frame` is set.
    """

    name: str
    image: Path
    target: Path
    frame: int | None = None
    time_s: float | None = None

    def load_image(self, pixels: PixelStatistics | None = None) -> NDArray[Any]:
        """The image as a model takes it, see `tubelet.data.model_frames`.

        Args:
            pixels: Statistics of the model; None for one of 8-bit RGB.

        Returns:
            (H, W, 3) uint8 RGB, or (H, W, C) normalized float32.

        Raises:
            DecodeError: The file is unreadable, or the video has no such frame.
        """
        # Here, because it needs torch, which processes that only look at files need not import.
        from tubelet.data.model_frames import open_frames, read_still, to_input

        if self.time_s is not None:
            with open_frames(self.image, pixels) as reader:
                return reader.clips([[self.time_s]])[0].pixels[0].numpy()
        if self.frame is None:
            return read_still(self.image, pixels).numpy()
        frames = read_frames(self.image).pixels
        if self.frame >= len(frames):
            raise DecodeError(str(self.image), f"has {len(frames)} frames, but frame {self.frame} is requested")
        image = frames[self.frame].numpy()
        return image if pixels is None else to_input(image, pixels, str(self.image)).numpy()

    def show_image(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB to look at; values of more than 8 bits are shown as in `tubelet.Video`.

        Raises:
            DecodeError: See `load_image`.
        """
        if self.time_s is not None:
            with Video(self.image, display=True) as video:
                return video.clips([[self.time_s]])[0].pixels[0].numpy()
        return read_image(self.image, display=True).numpy() if self.frame is None else self.load_image()

    def image_shape(self) -> tuple[int, int]:
        """(H, W) of the image, from the header of its file.

        Raises:
            DecodeError: The file is unreadable.
        """
        if self.frame is not None or self.time_s is not None:
            with Video(self.image, full_depth=True) as video:  # a deep stack has no window to be shown by
                return video.info.height, video.info.width
        return image_shape(self.image)


@dataclass(frozen=True, kw_only=True)
class DenseDataset(DatasetRecord):
    """Images with a target value for each pixel.

    Attributes:
        train: Training samples.
        test: Test samples.
    """

    train: list[DenseSample]
    test: list[DenseSample]

    def read_values(self, sample: DenseSample) -> NDArray[Any]:
        """(H, W) values of a target file; the default reads a PNG of one channel."""
        return read_gray_png(sample.target)


@dataclass(frozen=True, kw_only=True)
class SegmentationDataset(DenseDataset):
    """Images with a class for each pixel.

    Attributes:
        classes: K class names.
        class_of_label: (256,) uint8 class index of each label in the target files, or `IGNORED`.
        known_labels: (256,) bool, labels that occur in the data set; any other is an error.
        image_size: Short side of the images in pixels during evaluation; None for the default of the protocol.
    """

    kind = "segmentation"
    classes: tuple[str, ...]
    class_of_label: NDArray[np.uint8]
    known_labels: NDArray[np.bool_]
    image_size: int | None = None

    def load_target(self, sample: DenseSample) -> NDArray[np.uint8]:
        """(H, W) uint8 class indices, `IGNORED` for pixels that do not count.

        Raises:
            DataError: The file is unreadable, or has a label that the data set does not have.
        """
        return to_class_indices(sample.target, self.read_values(sample), self.class_of_label, self.known_labels)


class Region(NamedTuple):
    """A rectangle of an image in pixels: rows `top` to `bottom`, columns `left` to `right`, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, kw_only=True)
class DepthDataset(DenseDataset):
    """Images with a depth for each pixel.

    Attributes:
        units_per_meter: Divisor that turns the values of a target file into meters.
        max_depth: Largest depth that counts, in meters.
        input_crop: (rows, columns) in pixels of the model's input: at the bottom of the image, centered horizontally.
            None, and for smaller images, is the whole image.
        eval_crop: (top, left, bottom, right) of the region that is scored, as fractions of the image.
        input_height: Height in pixels to which the input is resized; None keeps it.
        train_crop: (rows, columns) of a training crop, as fractions of the input.
    """

    kind = "depth"
    units_per_meter: float
    max_depth: float
    input_crop: tuple[int, int] | None
    eval_crop: tuple[float, float, float, float]
    input_height: int | None
    train_crop: tuple[float, float]

    def load_target(self, sample: DenseSample) -> NDArray[np.float32]:
        """(H, W) float32 depth in meters, 0 where it is unknown or beyond `max_depth`.

        Raises:
            DataError: The file is unreadable, or is not a depth map.
        """
        meters = self.read_meters(sample)
        valid = np.isfinite(meters) & (meters > 0) & (meters < self.max_depth)
        return np.where(valid, meters, 0).astype(np.float32)

    def read_meters(self, sample: DenseSample) -> NDArray[Any]:
        """(H, W) depth in meters as the target file has it; the default reads a 16-bit PNG."""
        values = self.read_values(sample)
        if values.dtype == np.uint8:
            raise DataError(f"{sample.target}: 8-bit PNG, expected 16-bit depth")
        return values.astype(np.float32) / self.units_per_meter

    def input_region(self, shape: tuple[int, int]) -> Region:
        """Part of an image of (H, W) pixels that the model receives."""
        H, W = shape
        if self.input_crop is None or self.input_crop[0] > H or self.input_crop[1] > W:
            return Region(0, 0, H, W)
        rows, columns = self.input_crop
        left = (W - columns) // 2
        return Region(H - rows, left, H, left + columns)

    def eval_region(self, shape: tuple[int, int]) -> Region:
        """Part of an image of (H, W) pixels that is scored."""
        (H, W), (top, left, bottom, right) = shape, self.eval_crop
        return Region(int(top * H), int(left * W), int(bottom * H), int(right * W))


@dataclass(frozen=True, kw_only=True)
class VideoObjectSequence:
    """A video as a sequence of images, with masks that introduce its objects.

    Attributes:
        name: Name of the sequence.
        frames: Image files in temporal order.
        reference_masks: Index of a frame -> mask file that introduces the objects that first occur there.
        first_frames: Number of each object -> index of the frame that introduces it. None if every object of the
            first mask is to be tracked.
        masks: Ground-truth mask file of every frame; None if the ground truth is not public.
        frames_to_predict: Indices of the frames whose masks are written for an evaluator.
    """

    name: str
    frames: list[Path]
    reference_masks: dict[int, Path]
    first_frames: dict[int, int] | None
    masks: list[Path] | None
    frames_to_predict: list[int]

    def load_references(self) -> dict[int, dict[int, NDArray[np.bool_]]]:
        """Index of a frame -> number of each object introduced there -> its mask (H, W).

        Raises:
            DecodeError: A mask is unreadable, has another size than its frame, or lacks an object.
        """
        references = {}
        for frame, path in self.reference_masks.items():
            labels = read_object_mask(path, self.frames[frame])
            present = [int(n) for n in np.unique(labels) if n not in (0, VOID)]
            if self.first_frames is None:
                if present != list(range(1, len(present) + 1)) or not present:
                    raise DecodeError(str(path), f"has objects {present}, expected consecutive numbers from 1")
                new = present
            else:
                new = [number for number, first in self.first_frames.items() if first == frame]
                missing = [number for number in new if number not in present]
                if missing:
                    raise DecodeError(str(path), f"has no object {missing[0]}, which meta.json starts in this frame")
            references[frame] = {number: labels == number for number in new}
        return references


@dataclass(frozen=True, kw_only=True)
class VideoObjectDataset(DatasetRecord):
    """Videos with objects to segment and follow.

    Attributes:
        sequences: Test sequences, in the order of the data set.
        output_folder: Folder, below that of the results, in which the evaluator expects one folder a sequence.
    """

    kind = "video object segmentation"
    sequences: list[VideoObjectSequence]
    output_folder: str


@dataclass(frozen=True, kw_only=True)
class TrackedVideo:
    """A video with points that are annotated in every frame.

    Attributes:
        path: Video file.
        annotation: File with the tracks.
        motion: Description of the camera's motion.
    """

    path: Path
    annotation: Path
    motion: str


class PointTracks(NamedTuple):
    """Tracks of P points through a video of T frames.

    Attributes:
        points: (P, T, 2) float32 x and y in pixels of the video, from its top left corner.
        visible: (P, T) bool, False where a point is outside the frame or occluded.
        shape: (T, H, W) of the video that was annotated.
    """

    points: NDArray[np.float32]
    visible: NDArray[np.bool_]
    shape: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class TrackingDataset(DatasetRecord):
    """Videos with points to track.

    Attributes:
        test: Test videos.
        image_size: Short side of the videos in pixels.
        frames: Frames that every video has at least.
    """

    kind = "point tracking"
    test: list[TrackedVideo]
    image_size: int
    frames: int

    def load_tracks(self, video: TrackedVideo) -> PointTracks:
        """Read the annotation of a video; a layout returns a subclass that does.

        Raises:
            DataError: The file is missing or malformed.
        """
        raise NotImplementedError


def check_samples(samples: list[DenseSample], split: str, root: Path) -> list[DenseSample]:
    """Return the samples of a split after checking that there are some and that all their files exist.

    Raises:
        DataError: The split is empty.
        MissingFileError: A file is missing.
    """
    if not samples:
        raise DataError(f"{root}: no images in the {split} split")
    for sample in samples:
        for path, kind in ((sample.image, "image"), (sample.target, "annotation")):
            if not path.is_file():
                other = find_other_suffix(path)
                hint = f"; found {other.name} instead" if other else ""
                raise MissingFileError(f"{path}: missing {kind} of {sample.name} in the {split} split{hint}")
    return samples


S = TypeVar("S", LabeledFile, ActionSegment)


def drop_missing_files(samples: Sequence[S], split: str, max_failed_fraction: float) -> tuple[list[S], list[BadFile]]:
    """Separate the samples of a split whose file exists from the missing files.

    Raises:
        DataError: The split is empty.
        MissingFileError: A larger fraction of the files is missing than allowed.
    """
    if not samples:
        raise DataError(f"the {split} split lists no files")
    existing, missing = [], []
    for sample in samples:
        if sample.path.is_file():
            existing.append(sample)
        else:
            missing.append(BadFile(str(sample.path), "listed but missing"))
    if len(missing) > max_failed_fraction * len(samples) or not existing:
        other = find_other_suffix(Path(missing[0].path))
        hint = f" (found {other.name} instead)" if other else ""
        raise MissingFileError(
            f"{missing[0].path}: listed in the {split} split but missing{hint}, like {len(missing) - 1} more of its "
            f"{len(samples)} files; --max-failed-fraction {len(missing) / len(samples):.3g} would skip them"
        )
    return existing, missing
