"""The header of a video's container, read from a few bytes: is the file complete, and does it have edit lists."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO

from tubelet.data.containers import Media, as_decode_error, media_name, open_media
from tubelet.errors import DecodeError

# Bytes that may be missing at the end before a file counts as truncated: some writers miscount their last header.
_TOLERATED_BYTES = 64
_REMEDY = "copy it again, or remove it"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_DATA_BOXES = (b"moov", b"moof", b"mdat")
# Boxes of an index that are parsed, and bytes of an edit list that are read, before the file counts as corrupt.
_MAX_BOXES, _MAX_EDITS = 10_000, 2**20
# Bytes of an MPEG transport stream that FFmpeg probes.
_PROBED = 5_000_000
# Heads of packets (ISO 13818-1, 2.4.3.2) with a payload in which a table may begin.
_TABLE_HEAD = re.compile(rb"\x47[\x40-\x7f].[\x10-\x1f\x30-\x3f]", re.DOTALL)
_PACKET_BYTES, _PROGRAM_MAP = 188, 2
_H264 = 0x1B


@dataclass(frozen=True)
class Edit:
    """One entry of an edit list (ISO 14496-12, 8.6.6).

    Attributes:
        length_s: duration of its presentation, in seconds.
        begin: tick of the media at which it begins; None for a pause.
        rate: speed of playback; 0 shows one frame all the time.
    """

    length_s: Fraction
    begin: int | None
    rate: Fraction


@dataclass(frozen=True)
class ContainerHeader:
    """Properties of a container.

    Attributes:
        size: bytes of the file.
        fragmented: whether the index of an MP4 is distributed over fragments.
        edits: edit lists of the tracks of an MP4 by track number.
    """

    size: int
    fragmented: bool = False
    edits: dict[int, tuple[Edit, ...]] = field(default_factory=dict)


def open_validated(media: Media) -> tuple[BinaryIO, ContainerHeader]:
    """Open a video, see `open_media`, and read its header.

    Raises:
        DecodeError: the file cannot be read, or is shorter than its header says.
        StorageError: its URL cannot be reached.
    """
    file = open_media(media)
    try:
        return file, _read_header(media_name(media), file)
    except BaseException:
        file.close()
        raise


def _read_header(name: str, file: BinaryIO) -> ContainerHeader:
    """Read a few bytes only; of formats without a size at the start, those that FFmpeg probes anyway."""
    with as_decode_error(name, "cannot be read", file):
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(64)
        header = ContainerHeader(size)
        if head[4:8] in _FIRST_BOXES:
            declared, index, fragmented = _mp4_extent(file, size)
            if index is None:
                raise DecodeError(name, f"truncated or never finished: its index (moov) is missing; {_REMEDY}")
            header = ContainerHeader(size, fragmented, _edit_lists(name, file, *index))
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            declared = _matroska_extent(head)
        elif head[:4] == b"RIFF":
            length = int.from_bytes(head[4:8], "little")
            declared = 0 if length == 0xFFFFFFFF else 8 + length  # unknown when it was written
        else:
            file.seek(0)
            _check_programs(name, file.read(_PROBED))
            return header
    if declared - size > _TOLERATED_BYTES:
        raise DecodeError(name, f"truncated: has {size} bytes, header says {declared}; {_REMEDY}")
    return header


def _check_programs(name: str, data: bytes) -> None:
    """Refuse a transport stream in which a stream changes to H.264.

    FFmpeg 8 aborts the whole process (an assertion of `has_decode_delay_been_guessed`) if it meets such a change
    after it has opened another decoder and before it has probed enough of the file.
    """
    codecs: dict[int, int] = {}
    for stream, codec in _mapped_streams(data):
        before = codecs.setdefault(stream, codec)
        if before != codec and _H264 in (before, codec):
            raise DecodeError(name, f"its codec changes (stream {stream}); split it there")


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
        offset = 12 + _low(table[10:12], 12)
        while offset + 5 <= end:
            yield _low(table[offset + 1 : offset + 3], 13), table[offset]
            offset += 5 + _low(table[offset + 3 : offset + 5], 12)


def _payload(data: bytes, at: int) -> bytes:
    """The payload of a packet, after its header and its adaptation field."""
    packet = data[at : at + _PACKET_BYTES]
    start = 4 + (1 + packet[4] if len(packet) > 4 and packet[3] & 0x20 else 0)
    return packet[start:] if len(packet) > 3 and packet[3] & 0x10 else b""


def _low(data: bytes, bits: int) -> int:
    """The number in the lowest bits of big-endian bytes."""
    return int.from_bytes(data, "big") & ((1 << bits) - 1)


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and first and last byte of the content, of the boxes between two positions of an MP4."""
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        file.seek(at)
        head = file.read(16)
        length, begin = int.from_bytes(head[:4], "big"), at + 8
        if length == 1:  # too large for 32 bits
            length, begin = int.from_bytes(head[8:16], "big"), at + 16
        elif length == 0:  # up to the end
            length = end - at
        if length < begin - at:
            return
        yield head[4:8], begin, min(at + length, end)
        at += length


def _edit_lists(name: str, file: BinaryIO, begin: int, end: int) -> dict[int, tuple[Edit, ...]]:
    """The edit list of each track in an index between two positions of an MP4."""
    edit_lists: dict[int, tuple[Edit, ...]] = {}
    timescale = 0
    for kind, first, last in _boxes(file, begin, end):
        if kind == b"mvhd":
            timescale = _number(file, first, (20, 12))
        elif kind == b"trak":
            parts = {part: (start, stop) for part, start, stop in _boxes(file, first, last)}
            inner = {part: (start, stop) for part, start, stop in _boxes(file, *parts.get(b"edts", (0, 0)))}
            if b"tkhd" in parts and b"elst" in inner and timescale:
                entries = _edits(name, file, inner[b"elst"], timescale)
                edit_lists[_number(file, parts[b"tkhd"][0], (20, 12))] = entries
    return edit_lists


def _number(file: BinaryIO, begin: int, offsets: tuple[int, int]) -> int:
    """A number of 32 bits in a versioned box, whose position depends on whether its times have 64 bits."""
    file.seek(begin)
    data = file.read(32)
    offset = offsets[0] if data[:1] == b"\x01" else offsets[1]
    return int.from_bytes(data[offset : offset + 4], "big")


def _edits(name: str, file: BinaryIO, place: tuple[int, int], timescale: int) -> tuple[Edit, ...]:
    begin, end = place
    if end - begin > _MAX_EDITS:
        raise DecodeError(name, f"has an edit list of {end - begin} bytes, above the limit of {_MAX_EDITS}; {_REMEDY}")
    file.seek(begin)
    data = file.read(end - begin)
    wide = 8 if data[:1] == b"\x01" else 4
    count = min(int.from_bytes(data[4:8], "big"), (len(data) - 8) // (2 * wide + 4))
    edits = []
    for at in range(8, 8 + count * (2 * wide + 4), 2 * wide + 4):
        length = int.from_bytes(data[at : at + wide], "big")
        media = int.from_bytes(data[at + wide : at + 2 * wide], "big", signed=True)
        rate = Fraction(int.from_bytes(data[at + 2 * wide : at + 2 * wide + 4], "big", signed=True), 1 << 16)
        edits.append(Edit(Fraction(length, timescale), None if media < 0 else media, rate))
    return tuple(edits)


def _mp4_extent(file: BinaryIO, size: int) -> tuple[int, tuple[int, int] | None, bool]:
    """Where the last top-level box of an MP4 of `size` bytes ends, where its index is, and if it has fragments."""
    at, index, fragmented = 0, None, False
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, begin = int.from_bytes(head[:4], "big"), at + 8
        if length == 1:  # too large for 32 bits
            length, begin = int.from_bytes(head[8:16], "big"), at + 16
        elif length == 0:  # up to the end of the file
            length = size - at
        if length < begin - at or (at + length > size and head[4:8] not in _DATA_BOXES):
            break  # not a box of a video: appended data, which players ignore
        if head[4:8] == b"moov" and at + length <= size:
            index = index or (begin, at + length)
        fragmented |= head[4:8] == b"moof"
        at += length
    return at, index, fragmented


def _matroska_extent(head: bytes) -> int:
    """Where the segment of a Matroska or WebM file ends by its header; 0 if the header does not say."""
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
