"""Limits on what a file may declare: a file that is small on disk can be huge in memory.

All limits are far above the sizes of videos, photographs and data sets; docs/data.md lists them.
"""

from tubelet.config.fields import CLIP_PIXELS
from tubelet.errors import DecodeError

# Pixels of a frame of a video: 8192 x 4320, more than 8K.
VIDEO_PIXELS = 8192 * 4320
# Pixels of a still image: Pillow's own limit.
IMAGE_PIXELS = 2**30 // 12
# Seconds of a video: a week; and of one frame: an hour, as of a slide in a recorded lecture.
DURATION_S = 7 * 24 * 3600
FRAME_S = 3600
# Characters of a line of a manifest or of an index of shards.
LINE_CHARACTERS = 2**16
# Bytes of a manifest.
MANIFEST_BYTES = 2**30
# Bytes of all arrays in a file of ground truth, unpacked.
ARRAY_BYTES = 2**30


def check_frame_size(path: str, width: int, height: int) -> None:
    """Reject a video whose frames are too large."""
    if width * height > VIDEO_PIXELS:
        limit = f"the limit of {VIDEO_PIXELS / 1e6:.0f} million"
        raise DecodeError(path, f"has frames of {width}x{height} pixels, above {limit}; make it smaller")


def check_clip(path: str, count: int, width: int, height: int) -> None:
    """Reject a clip that would take too much memory."""
    if count * width * height > CLIP_PIXELS:
        limit = f"the limit of {CLIP_PIXELS / 1e6:.0f} million pixels at once"
        raise DecodeError(
            path, f"{count} frames of {width}x{height} pixels exceed {limit}; make it smaller, or read fewer frames"
        )


def check_duration(path: str, seconds: float) -> None:
    """Reject a video whose header declares an absurd duration."""
    if not seconds <= DURATION_S:
        days = DURATION_S // (24 * 3600)
        raise DecodeError(path, f"its header says {seconds:.3g} s, above the limit of {days} days; split it")


def check_gap(path: str, seconds: float, begins_s: float) -> None:
    """Reject a video with a frame of absurd duration, such as concatenated recordings of different times."""
    if seconds > FRAME_S:
        raise DecodeError(
            path,
            f"timestamps jump: the frame at {begins_s:.1f} s lasts {seconds:.0f} s, "
            f"above the limit of {FRAME_S} s; split it there",
        )
