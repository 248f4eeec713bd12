"""H.264 that begins with a keyframe of an open group of pictures: its leading pictures cannot be decoded."""

import re
from collections.abc import Iterator
from typing import Any

_START_CODE = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
_NAL_TYPE, _IDR = 0x1F, 5


def drop_leading_pictures(packets: Iterator[Any], extradata: bytes | None) -> Iterator[Any]:
    """Packets of an H.264 stream without the leading pictures of its first keyframe.

    If the stream begins with a keyframe that is not an IDR picture, the packets shown before it are predicted from
    missing frames. FFmpeg drops such frames, or reports them as corrupt where it is strict. Other codecs mark them, and
    their decoders drop them. Where the keyframe is at time zero, Matroska cannot give the leading ones a timestamp.
    """
    first = next(packets, None)
    if first is None:
        return
    yield first
    if not first.is_keyframe or first.pts is None:
        yield from packets
        return
    whole = later = False
    for packet in packets:
        later = later or (packet.pts is not None and packet.pts > first.pts)
        if not whole and (packet.pts < first.pts if packet.pts is not None else not later):
            whole = _is_idr(bytes(first), extradata)
            if not whole:
                continue
        whole = whole or packet.is_keyframe
        yield packet


def _is_idr(data: bytes, extradata: bytes | None) -> bool:
    """Whether an access unit is an instantaneous decoding refresh, after which nothing earlier is shown."""
    if not extradata or extradata[0] != 1:  # a byte stream with start codes
        return any(match[1][0] & _NAL_TYPE == _IDR for match in _START_CODE.finditer(data))
    width = (extradata[4] & 3) + 1
    at = 0
    while at + width < len(data):
        if data[at + width] & _NAL_TYPE == _IDR:
            return True
        at += width + int.from_bytes(data[at : at + width], "big")
    return False
