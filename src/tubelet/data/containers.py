"""What a media file's container says about itself, read off a few bytes: is it there, and is it whole."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, cast

import av
from av.error import DecoderNotFoundError, FFmpegError

from tubelet.data.limits import VIDEO_PIXELS
from tubelet.data.storage import RemoteFile, is_url
from tubelet.types import Blob, DecodeError, one_line

Media = str | Path | Blob  # a file, the URL of one, or what one holds

_MP4, _MATROSKA, _MPEGTS = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"
# These formats store the display time of every packet. AVI does not: there FFmpeg guesses it while it decodes, and
# leaving out pictures would change its guesses.
TIMED_FORMATS = (_MP4, _MATROSKA, _MPEGTS)
# A broadcast recording may begin or be cut anywhere, and AVI decoders meet slightly odd streams in healthy files: only
# formats whose packets are whole by construction are held to the letter.
STRICT_FORMATS = (_MP4, _MATROSKA)
_STRICT = {"err_detect": "explode"}
# Containers that hold their pictures themselves. Among FFmpeg's others are playlists, which make it open whatever files
# and addresses they name.
_FORMATS = (_MP4, _MATROSKA, _MPEGTS, "avi", "mpeg", "flv", "asf", "ogg")
# Decoders hold to it before they make room for a picture, whatever size the stream says on the way.
_BOUNDED = {"max_pixels": str(VIDEO_PIXELS)}
_GUARDED = _BOUNDED | {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}

# Bytes that may be missing at the end before a file counts as cut off: some writers miscount their last header.
_SLACK = 64
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_DATA_BOXES = (b"moov", b"moof", b"mdat")
# FFmpeg reads so much of an MPEG transport stream to learn what is in it.
_PROBED = 5_000_000
# Heads of packets (ISO 13818-1, 2.4.3.2) with a payload in which a table may begin.
_TABLE_HEAD = re.compile(rb"\x47[\x40-\x7f].[\x10-\x1f\x30-\x3f]", re.DOTALL)
_PACKET_BYTES, _PROGRAM_MAP = 188, 2
_H264 = 0x1B


@contextmanager
def plain_words(path: str, reason: str, file: object = None) -> Iterator[None]:
    """Turn what FFmpeg and the operating system raise into a DecodeError with `reason`.

    If `file` is remote and failed meanwhile, that is the reason, whatever was made of it.
    """
    try:
        yield
        check_reached(file)
    except (FFmpegError, OSError, ValueError, ArithmeticError, IndexError, MemoryError) as error:
        check_reached(file)
        raise _in_words(path, reason, error) from error


def check_reached(file: object) -> None:
    """What kept a remote file from being read, if something did: a library may have taken it for the file's end.

    Raises:
        StorageError: the storage cannot be reached.
        DecodeError: the file is gone.
    """
    if isinstance(file, RemoteFile) and file.failure:
        raise file.failure


def _in_words(path: str, reason: str, error: Exception) -> DecodeError:
    if isinstance(error, DecoderNotFoundError):
        return DecodeError(path, "its codec is not supported by this build of FFmpeg: convert it, e.g. to H.264")
    if isinstance(error, PermissionError):
        return DecodeError(path, "may not be read: check its permissions")
    said = getattr(error, "strerror", None) or one_line(error)
    return DecodeError(path, f"{reason} (FFmpeg: {said})")


def name_of(media: Media) -> str:
    """What errors call a file."""
    return media.name if isinstance(media, Blob) else str(media)


def open_media(media: Media) -> BinaryIO:
    """A file's bytes, to be read from any place; there is at least one.

    Raises:
        DecodeError: it is missing, empty, may not be read, or is no file.
        StorageError: it lies behind a URL that cannot be reached.
    """
    name = name_of(media)
    if isinstance(media, Blob):
        size, file = len(media.data), io.BytesIO(media.data)
    elif is_url(media):
        remote = RemoteFile(name)
        size, file = remote.size, cast(io.BytesIO, remote)
    else:
        size = _size_of(Path(media))
        with plain_words(name, "cannot be read"):
            file = cast(io.BytesIO, Path(media).open("rb"))  # noqa: SIM115 - the caller closes it
    if size == 0:
        file.close()
        raise DecodeError(name, "is empty (0 bytes)")
    return file


def open_container(media: Media, file: BinaryIO) -> Any:
    """FFmpeg's reader of a file that `open_media` opened; files of this machine it opens once more, by their name."""
    file.seek(0)
    by_name = not isinstance(media, Blob) and not is_url(media)
    return av.open(str(media) if by_name else file, options=_GUARDED, metadata_errors="ignore")


def decoder_options(container: str) -> dict[str, str]:
    """What FFmpeg's decoder is told of a stream out of a container of this format."""
    return _BOUNDED | (_STRICT if container in STRICT_FORMATS else {})


def _size_of(file: Path) -> int:
    name = str(file)
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DecodeError(name, "does not exist") from error
    except OSError as error:
        raise DecodeError(name, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DecodeError(ascii(name), "cannot be the name of a file") from error
    if S_ISDIR(found.st_mode):
        raise DecodeError(name, "is a folder, not a file")
    if not S_ISREG(found.st_mode):  # a pipe or a device has no end
        raise DecodeError(name, "is no regular file: copy it to one")
    return found.st_size


def open_whole(media: Media) -> BinaryIO:
    """As `open_media`, of a video; also a DecodeError if the container's own sizes say that its end is missing."""
    file = open_media(media)
    try:
        _check_complete(name_of(media), file)
    except BaseException:
        file.close()
        raise
    return file


def _check_complete(name: str, file: BinaryIO) -> None:
    """Reads a few bytes only; of formats that do not begin with a size, what FFmpeg reads of them anyway."""
    with plain_words(name, "cannot be read", file):
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
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
            file.seek(0)
            _check_programs(name, file.read(_PROBED))
            return
    if promised - size > _SLACK:
        raise DecodeError(name, f"is cut off: it has {size} bytes, its header promises {promised}")


def _check_programs(name: str, data: bytes) -> None:
    """Refuse a transport stream whose streams turn to H.264 on the way.

    FFmpeg 8 aborts the whole process (an assertion of `has_decode_delay_been_guessed`) if it meets such news when it
    has opened another decoder and has not seen enough of the file yet.
    """
    codecs: dict[int, int] = {}
    for stream, codec in _mapped_streams(data):
        before = codecs.setdefault(stream, codec)
        if before != codec and _H264 in (before, codec):
            raise DecodeError(name, f"changes its codec on the way (stream {stream}): split it there")


def _mapped_streams(data: bytes) -> Iterator[tuple[int, int]]:
    """Packet identifier and type of each stream, by the program maps of a transport stream (ISO 13818-1, 2.4.4.8)."""
    for head in _TABLE_HEAD.finditer(data):
        at = head.start()
        payload = _payload(data, at)
        table = payload[1 + payload[0] :] if payload else b""  # past the pointer to where it begins
        if len(table) < 12 or table[0] != _PROGRAM_MAP:
            continue
        length = 3 + _low(table[1:3], 12)
        stream = _low(data[at + 1 : at + 3], 13)
        while len(table) < length and data[at + _PACKET_BYTES : at + _PACKET_BYTES + 1] == b"\x47":
            at += _PACKET_BYTES  # the table goes on in later packets of its stream
            if _low(data[at + 1 : at + 3], 13) == stream:
                table += _payload(data, at)
        end = min(len(table), length - 4)  # a checksum follows
        place = 12 + _low(table[10:12], 12)
        while place + 5 <= end:
            yield _low(table[place + 1 : place + 3], 13), table[place]
            place += 5 + _low(table[place + 3 : place + 5], 12)


def _payload(data: bytes, at: int) -> bytes:
    """What a packet carries, past its head and its adaptation field."""
    packet = data[at : at + _PACKET_BYTES]
    start = 4 + (1 + packet[4] if len(packet) > 4 and packet[3] & 0x20 else 0)
    return packet[start:] if len(packet) > 3 and packet[3] & 0x10 else b""


def _low(data: bytes, bits: int) -> int:
    """The number in the lowest bits of some bytes."""
    return int.from_bytes(data, "big") & ((1 << bits) - 1)


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
