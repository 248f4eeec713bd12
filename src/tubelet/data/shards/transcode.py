"""Transcode one source file into the members of shards."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from tubelet.config import ShardConfig
from tubelet.data.containers import Media, media_name
from tubelet.data.decode import Video, VideoInfo
from tubelet.data.images import read_image_array
from tubelet.data.sample_index import Sample
from tubelet.data.stacks.depth import depth_beyond_rgb
from tubelet.errors import DecodeError
from tubelet.grid import Modality

# Fine enough that a reader, which allows half a tick, finds each frame at exactly its timestamp in the source.
_TICKS = 90_000
# Number of segments that one frame may fill, so that nearly still videos do not become many shards.
_STILL = 4


@dataclass(frozen=True)
class EncodedSegment:
    """The content of a member of a shard: the bytes of an MP4 or JPEG, and its fields in the index; see `Member`."""

    data: bytes
    modality: Modality
    start_s: float
    duration_s: float
    fps: float
    width: int
    height: int


def transcode(sample: Sample, modality: Modality, config: ShardConfig) -> Iterator[EncodedSegment]:
    """Transcode one file or span into segments, in order; one segment of a video at a time is in memory.

    Raises:
        DecodeError: the file cannot be read, perhaps after some segments; or it is a stack of more than 8 bits.
    """
    if depth := depth_beyond_rgb(sample.media):
        reason = f"has {depth}, shards have 8-bit RGB; train on the stacks themselves, with --stats of `tubelet stats`"
        raise DecodeError(media_name(sample.media), reason)
    if modality is Modality.IMAGE:
        yield _image(sample.media, config)
    else:
        yield from _segments(sample, config)


def _image(media: Media, config: ShardConfig) -> EncodedSegment:
    pixels = read_image_array(media)
    height, width = scaled_size(pixels.shape[0], pixels.shape[1], config.size, multiple=1)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=config.image_quality)
    return EncodedSegment(file.getvalue(), Modality.IMAGE, 0.0, 0.0, 0.0, width, height)


def _segments(sample: Sample, config: ShardConfig) -> Iterator[EncodedSegment]:
    """Equal segments of a video or span, each with the frames that are shown at the times 0, 1 / fps, 2 / fps, ...

    A frame keeps the time at which it begins: a read between two of these times is off by less than 1 / fps, a read at
    one of them gives the same frame. There are at most four segments for each frame of the video.
    """
    with Video(sample.media) as video:
        info = sample.limit(video.info)
        total = int(np.ceil(info.duration_s * config.fps - 1e-3))
        if total < 2:
            raise DecodeError(info.path, f"lasts {info.duration_s:.3f} s, less than two frames at {config.fps:g} fps")
        count = max(1, min(int(info.duration_s / config.segment_s + 1e-3), _STILL * (info.frames or total)))
        bounds = [total * k // count for k in range(count + 1)]
        height, width = scaled_size(info.height, info.width, config.size, multiple=2)
        at, segment, encoder = 0, 0, _Mp4Encoder(config, height, width)
        for image, begins_s, repeats in video.scan(sample.start_s + np.arange(total) / config.fps, (height, width)):
            begins_s -= sample.start_s
            shown_until = at + repeats
            while at < shown_until:
                # The source's timestamps may round a frame to a little after the time that shows it.
                encoder.add(image, min(begins_s, at / config.fps) - bounds[segment] / config.fps)
                at = min(shown_until, bounds[segment + 1])
                if at == bounds[segment + 1]:
                    if encoder.frames == 1:  # a still image; a video has two frames
                        encoder.add(image, (at - 1 - bounds[segment]) / config.fps)
                    encoded = _segment(encoder, info, config, bounds[segment], None if at == total else at)
                    yield replace(encoded, start_s=encoded.start_s + sample.start_s)
                    segment, encoder = segment + 1, _Mp4Encoder(config, height, width)


def _segment(
    encoder: "_Mp4Encoder", info: VideoInfo, config: ShardConfig, first: int, end: int | None
) -> EncodedSegment:
    """A complete segment from frame time `first` to frame time `end`, or to the end of the video."""
    start_s = first / config.fps
    duration_s = (info.duration_s if end is None else end / config.fps) - start_s
    fps = min(config.fps, info.fps or config.fps)
    return EncodedSegment(encoder.close(), Modality.VIDEO, start_s, duration_s, fps, encoder.width, encoder.height)


def scaled_size(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """Height and width, multiples of `multiple`, of an image whose short side shrinks to at most `size` pixels."""
    scale = min(1.0, size / min(height, width))
    high, wide = (max(multiple, round(length * scale / multiple) * multiple) for length in (height, width))
    return high, wide


class _Mp4Encoder:
    """An MP4 in memory: H.264 of short GOPs, without the features that are slow to decode."""

    def __init__(self, config: ShardConfig, height: int, width: int) -> None:
        self.height, self.width, self.frames = height, width, 0
        self.file = io.BytesIO()
        self.container = av.open(self.file, "w", format="mp4", container_options={"fflags": "+bitexact"})
        self.stream = self.container.add_stream("libx264", rate=Fraction(config.fps).limit_denominator(1000))
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, _TICKS)
        self.stream.codec_context.thread_count = 1  # files are spread over processes; and the same bytes each time
        self.stream.options = {
            "preset": "superfast",
            "tune": "fastdecode",
            "crf": str(config.crf),
            "g": str(config.gop),
            "bf": "0",
            "sc_threshold": "0",
            "threads": "1",
        }
        self.converter = VideoReformatter()

    def add(self, image: np.ndarray, begins_s: float) -> None:
        """Show (H, W, 3) uint8 from `begins_s` on; the first one from 0 on, whenever it began."""
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = self.converter.reformat(rgb, format="yuv420p", threads=1)
        frame.pts = round(begins_s * _TICKS) if self.frames else 0
        frame.time_base = Fraction(1, _TICKS)
        self.container.mux(self.stream.encode(frame))
        self.frames += 1

    def close(self) -> bytes:
        """The bytes of the complete file."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file.getvalue()
