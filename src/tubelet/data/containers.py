"""What a media file's container says about itself, read off a few bytes: is it there, and is it whole."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from av.error import DecoderNotFoundError, FFmpegError

from tubelet.types import Blob, DecodeError

Media = str | Path | Blob  # a file, or what one holds

# Bytes that may be missing at the end before a file counts as cut off: some writers miscount their last header.
_SLACK = 64
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_DATA_BOXES = (b"moov", b"moof", b"mdat")


@contextmanager
def plain_words(path: str, reason: str) -> Iterator[None]:
    """Turn what FFmpeg and the operating system raise into a DecodeError with `reason`."""
    try:
        yield
    except DecoderNotFoundError as error:
        raise DecodeError(
            path, "its codec is not supported by this build of FFmpeg: convert it, e.g. to H.264"
        ) from error
    except PermissionError as error:
        raise DecodeError(path, "may not be read: check its permissions") from error
    except (FFmpegError, OSError, ValueError, OverflowError, IndexError, MemoryError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise DecodeError(path, f"{reason} (FFmpeg: {said})") from error


def name_of(media: Media) -> str:
    """What errors call a file."""
    return media.name if isinstance(media, Blob) else str(media)


def open_media(media: Media) -> BinaryIO:
    """A file's bytes, to be read from any place."""
    return io.BytesIO(media.data) if isinstance(media, Blob) else Path(media).open("rb")


def check_present(media: Media) -> None:
    """A DecodeError unless the media is a file, or bytes, with something in it."""
    if _size_of(media) == 0:
        raise DecodeError(name_of(media), "is empty (0 bytes)")


def _size_of(media: Media) -> int:
    if isinstance(media, Blob):
        return len(media.data)
    name, file = str(media), Path(media)
    try:
        size = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DecodeError(name, "does not exist") from error
    except OSError as error:
        raise DecodeError(name, f"cannot be read ({error.strerror})") from error
    if file.is_dir():
        raise DecodeError(name, "is a folder, not a file")
    return size


def check_complete(media: Media) -> None:
    """A DecodeError if the container's own sizes say that its end is missing; reads a few bytes only."""
    name, size = name_of(media), _size_of(media)
    with plain_words(name, "cannot be read"), open_media(media) as file:
        head = file.read(64)
        if head[4:8] in _FIRST_BOXES:
            promised, indexed = _mp4_extent(file, size)
            if not indexed:
                raise DecodeError(name, "is cut off or was never finished: its index (moov) is missing")
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            promised = _matroska_extent(head)
        elif head[:4] == b"RIFF":
            length = int.from_bytes(head[4:8], "little")
            promised = 0 if length == 0xFFFFFFFF else 8 + length  # not known when it was written
        else:
            return
    if promised - size > _SLACK:
        raise DecodeError(name, f"is cut off: it has {size} bytes, its header promises {promised}")


def _mp4_extent(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Where the last of the top-level boxes of an MP4 of `size` bytes ends, and whether its index is among them."""
    at, indexed = 0, False
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # too large for 32 bits
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # up to the end of the file
            length = size - at
        if length < 8 or (at + length > size and head[4:8] not in _DATA_BOXES):
            break  # no box of a film: something else was appended, which players ignore
        indexed |= head[4:8] == b"moov" and at + length <= size
        at += length
    return at, indexed


def _matroska_extent(head: bytes) -> int:
    """Where the segment of a Matroska or WebM file ends by its header; 0 if the header leaves it open."""
    length, at = _matroska_length(head, 4)
    at += length
    if head[at : at + 4] != b"\x18\x53\x80\x67" or at + 12 > len(head):
        return 0
    length, begin = _matroska_length(head, at + 4)
    return begin + length


def _matroska_length(data: bytes, at: int) -> tuple[int, int]:
    """The variable-length number at `at`, 0 if it stands for unknown, and where it ends."""
    width = 9 - data[at].bit_length()  # leading zero bits tell how many bytes follow
    if width > 8:
        return 0, at + 1
    bits = 7 * width
    value = int.from_bytes(data[at : at + width], "big") & ((1 << bits) - 1)
    return (0 if value == (1 << bits) - 1 else value), at + width
