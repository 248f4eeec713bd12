"""Videos that a browser can play: the source if it is playable, otherwise a small copy."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tubelet.data.file_types import MATROSKA, MP4
from tubelet.data.stacks import is_stack
from tubelet.data.video.reader import VideoReader
from tubelet.errors import DecodeError
from tubelet.prediction.media_predictions import MediaPredictions, stack_fps
from tubelet.prediction.video_writer import rewrite_video

COPIES = "players"
COPY_LINES = 480
COPY_CRF = 26
_LATEST_START_S = 0.02  # browsers count from zero and the tables from the first frame: half a frame at 25 a second
_LOG = logging.getLogger(__name__)
# What Chromium, Firefox and Safari all play; they do not read Matroska other than WebM.
_CODECS = {MP4: ("h264",), MATROSKA: ("vp8", "vp9")}
_SUFFIXES = {MP4: (".mp4", ".m4v", ".mov"), MATROSKA: (".webm",)}
_PIXELS = ("yuv420p", "yuvj420p")


@dataclass(frozen=True)
class Player:
    """What a page shows of a file.

    Attributes:
        link: address relative to the page; empty where there is nothing to show.
        note: sentence for the reader, empty for none.
    """

    link: str
    note: str = ""


def make_player(each: MediaPredictions, folder: Path) -> Player:
    """Prepare a file for playback in a browser, at the times of the tables; for a video perhaps a small copy.

    A copy has the same presentation times, at most 480 lines and no sound. A copy that is newer than its source is
    kept.

    Args:
        each: the file.
        folder: the folder of the page; copies are written into its folder `players`.
    """
    if each.file is None:
        return Player(relative_link(each.drawn, folder)) if each.drawn else Player("", "It is not on this machine.")
    if each.duration_s <= 0:
        return Player(relative_link(each.file, folder))
    try:
        if is_playable(each.file):
            return Player(relative_link(each.file, folder))
        if each.drawn is not None:
            return Player(relative_link(each.drawn, folder))
        copy = folder / COPIES / f"{hashlib.sha256(os.fsencode(each.path)).hexdigest()[:12]}.mp4"
        if not copy.is_file() or copy.stat().st_mtime < each.file.stat().st_mtime:
            _LOG.info("%s: browsers do not play it as it is; writing a small copy", each.path)
            fps = stack_fps(each.file, each.duration_s)
            rewrite_video(each.file, copy, COPY_LINES, enlarge=False, crf=COPY_CRF, stack_fps=fps)
        return Player(relative_link(copy, folder), f"A small copy: browsers do not play {each.file.name} as it is.")
    except (DecodeError, OSError) as error:
        return Player("", str(error))


def is_playable(file: Path) -> bool:
    """Whether all common browsers play a video, and show each frame at the second at which the tables have it.

    Raises:
        DecodeError: if it cannot be read.
    """
    if is_stack(file):
        return False
    reader = VideoReader(file)
    try:
        reader.prepare()
        return (
            reader.decoder.name.removeprefix("lib").split("-")[0] in _CODECS.get(reader.format, ())
            and file.suffix.lower() in _SUFFIXES[reader.format]
            and reader.decoder.pix_fmt in _PIXELS
            and reader.timeline is None
            and not reader.interlaced
            and abs(float(reader.start * reader.tick)) <= _LATEST_START_S
        )
    finally:
        reader.close()


def relative_link(file: Path, folder: Path) -> str:
    """The address of a file relative to a folder, quoted for a page."""
    return quote(os.fsencode(Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix()))
