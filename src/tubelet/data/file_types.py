"""Suffixes of media files: one table for listing, lists, shards, encoding and messages."""

import re
from functools import cache

# FFmpeg's names of the supported containers, and their suffixes. Playlists are not among them: they would make FFmpeg
# open whatever files and addresses they list.
VIDEO_CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": (".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"),
    "matroska,webm": (".mkv", ".webm"),
    "avi": (".avi", ".divx"),
    "mpegts": (".ts", ".mts", ".m2ts", ".m2t"),
    "mpeg": (".mpg", ".mpeg", ".vob"),
    "flv": (".flv",),
    "asf": (".wmv", ".asf"),
    "ogg": (".ogv", ".ogm"),
    "mxf": (".mxf",),
    "mpegvideo": (".m2v",),
    "gif": (".gif",),
}
MP4, MATROSKA, AVI, MPEG_TS, MPEG_PS, FLV = tuple(VIDEO_CONTAINERS)[:6]

VIDEO_SUFFIXES = frozenset(suffix for suffixes in VIDEO_CONTAINERS.values() for suffix in suffixes)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES

# Modules of tubelet.data.stacks and the suffixes that they read; a TIFF file of one page is an image.
STACK_FORMATS = {
    "tiff": (".tif", ".tiff"),
    "numpy_array": (".npy", ".npz"),
    "zarr_array": (".zarr",),
    "dicom": (".dcm", ".dicom"),
}
STACK_SUFFIXES = frozenset(suffix for suffixes in STACK_FORMATS.values() for suffix in suffixes) - IMAGE_SUFFIXES
# What a list may name. A column of arrays next to one of videos has labels or features.
LISTED_SUFFIXES = MEDIA_SUFFIXES | STACK_SUFFIXES - frozenset(STACK_FORMATS["numpy_array"])


@cache
def any_of(suffixes: frozenset[str]) -> str:
    """A regular expression (RE2) for one of some suffixes, in lower case."""
    return "(?:" + "|".join(re.escape(suffix) for suffix in sorted(suffixes)) + ")"


@cache
def names_with(suffixes: frozenset[str]) -> str:
    """A regular expression (RE2) for paths that end in one of some suffixes; a URL may end in a query."""
    pattern = any_of(suffixes)
    return rf"(?i)[^/]{pattern}$|^https?://[^?#]*[^/]{pattern}[?#]"
