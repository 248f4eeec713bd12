"""Writing of frames to an MP4 that players and browsers support, each frame at its own time."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from tubelet.data.decode import Video
from tubelet.io.files import atomic_write
from tubelet.io.overwrite_checks import VIDEO_MARK


def round_to_even(number: float) -> int:
    """The nearest even number of pixels, at least 2, as 4:2:0 chroma subsampling requires."""
    return 2 * max(1, round(number / 2))


def write_frames(
    frames: Iterator[tuple[NDArray[np.uint8], float]],
    out: Path | BinaryIO,
    time_base: Fraction,
    duration_s: float,
    crf: int = 20,
) -> None:
    """Write frames as H.264 in MP4, each at its own time.

    Args:
        frames: (H, W, 3) uint8 of even sizes, and the second from which each is shown.
        out: the file.
        time_base: seconds of a tick; frames begin at whole ticks.
        duration_s: seconds from the start to the end of the last frame.
        crf: x264's constant rate factor.
    """
    lengths: deque[int] = deque()  # of frames in the encoder, in ticks
    with ExitStack() as opened:
        options = {"movflags": "faststart"} if isinstance(out, Path) else {}
        target: Any = str(out) if isinstance(out, Path) else out
        container: Any = opened.enter_context(av.open(target, "w", format="mp4", options=options))
        container.metadata["comment"] = VIDEO_MARK
        stream: Any = None

        def mux(packets: list[Any]) -> None:
            for packet in packets:
                packet.duration = lengths.popleft()
                container.mux(packet)

        previous: Any = None
        for pixels, second in frames:
            if stream is None:
                stream = _open_stream(container, pixels.shape, time_base, crf)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(second / time_base), time_base
            if previous is not None:
                if frame.pts <= previous.pts:
                    continue  # timestamps go back: the frame is never shown
                lengths.append(frame.pts - previous.pts)
                mux(stream.encode(previous))
            previous = frame
        if previous is not None:
            lengths.append(max(1, round(duration_s / time_base) - previous.pts))
            mux(stream.encode(previous))
            mux(stream.encode(None))


def span_frames(
    video: Video, size: tuple[int, int], start_s: float = 0.0, end_s: float | None = None
) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """The frames of a span of a video at a size, and the second from its start at which each begins to be shown."""
    if start_s == 0 and end_s is None:
        yield from video.iter_frames(size)
        return
    times = video.frame_times()
    times = times[(times > start_s) & (times < (np.inf if end_s is None else end_s - 1e-6))]
    for pixels, begins_s, _ in video.scan(np.append(start_s, times), size):
        yield pixels, max(0.0, begins_s - start_s)


def rewrite_video(
    file: Path,
    out: Path,
    lines: int,
    change: Callable[[NDArray[np.uint8], float], NDArray[np.uint8]] = lambda pixels, second: pixels,
    *,
    enlarge: bool = True,
    crf: int = 20,
    bounds_s: tuple[float, float | None] = (0.0, None),
    stack_fps: float | None = None,
) -> None:
    """Write a video or a span of it as MP4, scaled and perhaps changed, without sound; frames keep their times.

    Args:
        file: the video.
        out: the MP4.
        lines: height of the frames in pixels, before they are changed.
        change: function of a scaled frame (H, W, 3) and its second to the frame that is written.
        enlarge: whether frames of fewer lines are enlarged.
        crf: x264's constant rate factor.
        bounds_s: start and end of what is written, in seconds of the video; None for its end.
        stack_fps: frames per second of a stack that states no rate.

    Raises:
        DecodeError: if the video cannot be read.
        FileError: if the MP4 cannot be written.
    """
    with (
        Video(file, stack_fps=stack_fps, display=True) as video,
        atomic_write(out, also=(FFmpegError,)) as partial,
    ):
        height = lines if enlarge else min(lines, video.info.height)
        size = round_to_even(height), round_to_even(height * video.info.width / video.info.height)
        frames = ((change(pixels, second), second) for pixels, second in span_frames(video, size, *bounds_s))
        duration_s = (video.info.duration_s if bounds_s[1] is None else bounds_s[1]) - bounds_s[0]
        write_frames(frames, partial, video.time_base, duration_s, crf)


def _open_stream(container: Any, shape: tuple[int, ...], time_base: Fraction, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=30)
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = stream.time_base = time_base
    # Without frames that are stored out of order, decoding times are presentation times and no edit list is needed.
    stream.options = {"preset": "veryfast", "crf": str(crf), "bf": "0"}
    return stream
