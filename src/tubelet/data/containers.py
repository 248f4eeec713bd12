"""Media files opened: their bytes, FFmpeg's reader of them, and plain words for whatever goes wrong."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, cast

import av
from av.error import DecoderNotFoundError, FFmpegError

from tubelet.data.batch import MediaBytes
from tubelet.data.limits import VIDEO_PIXELS
from tubelet.data.storage import RemoteFile, is_url
from tubelet.data.suffixes import MATROSKA, MP4, VIDEO_CONTAINERS
from tubelet.errors import DecodeError, first_line

Media = str | Path | MediaBytes  # a file, the URL of one, or what one holds

# Formats whose packets are whole by construction are held to the letter. A broadcast recording may begin or be cut
# anywhere, and AVI decoders meet slightly odd streams in healthy files.
STRICT_FORMATS = (MP4, MATROSKA)
_STRICT = {"err_detect": "explode"}
# Decoders hold to it before they make room for an image, whatever size the stream says on the way.
_BOUNDED = {"max_pixels": str(VIDEO_PIXELS)}
_GUARDED = _BOUNDED | {"format_whitelist": ",".join(VIDEO_CONTAINERS), "protocol_whitelist": "file"}


# What FFmpeg and the operating system raise for a file that cannot be read.
READ_ERRORS = (FFmpegError, OSError, ValueError, ArithmeticError, IndexError, MemoryError)


@contextmanager
def as_decode_error(path: str, reason: str, file: object = None) -> Iterator[None]:
    """Turn what FFmpeg and the operating system raise into a DecodeError with `reason`.

    If `file` is remote and failed meanwhile, that is the reason, whatever was made of it.
    """
    try:
        yield
        raise_remote_failure(file)
    except READ_ERRORS as error:
        raise_remote_failure(file)
        raise to_decode_error(path, reason, error) from error


def raise_remote_failure(file: object) -> None:
    """What kept a remote file from being read, if something did: a library may have taken it for the file's end.

    Raises:
        StorageError: the storage cannot be reached.
        DecodeError: the file is gone.
    """
    if isinstance(file, RemoteFile) and file.failure:
        raise file.failure


def to_decode_error(path: str, reason: str, error: Exception) -> DecodeError:
    """A DecodeError with `reason` for one of `READ_ERRORS`."""
    if isinstance(error, DecoderNotFoundError):
        return DecodeError(path, "its codec is not supported by this build of FFmpeg; convert it, e.g. to H.264")
    if isinstance(error, PermissionError):
        return DecodeError(path, "permission denied; check its permissions")
    said = getattr(error, "strerror", None) or first_line(error)
    return DecodeError(path, f"{reason} (FFmpeg: {said})")


def media_name(media: Media) -> str:
    """What errors call a file."""
    return media.name if isinstance(media, MediaBytes) else str(media)


def open_media(media: Media) -> BinaryIO:
    """A file's bytes, to be read from any place; there is at least one.

    Raises:
        DecodeError: it is missing, empty, may not be read, or is no file.
        StorageError: it lies behind a URL that cannot be reached.
    """
    name = media_name(media)
    if isinstance(media, MediaBytes):
        size, file = len(media.data), io.BytesIO(media.data)
    elif is_url(media):
        remote = RemoteFile(name)
        size, file = remote.size, cast(io.BytesIO, remote)
    else:
        size = _size_of(Path(media))
        with as_decode_error(name, "cannot be read"):
            file = cast(io.BytesIO, Path(media).open("rb"))  # noqa: SIM115 - the caller closes it
    if size == 0:
        file.close()
        raise DecodeError(name, "is empty (0 bytes)")
    return file


def open_container(media: Media, file: BinaryIO, options: Mapping[str, str]) -> Any:
    """FFmpeg's reader of a file that `open_media` opened; files of this machine it opens once more, by their name.

    Args:
        media: the file.
        file: its bytes.
        options: of FFmpeg's demuxer, besides those that keep it from other files.
    """
    file.seek(0)
    by_name = not isinstance(media, MediaBytes) and not is_url(media)
    return av.open(str(media) if by_name else file, options={**_GUARDED, **options}, metadata_errors="ignore")


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
        raise DecodeError(ascii(name), "is not a valid file name") from error
    if S_ISDIR(found.st_mode):
        raise DecodeError(name, "is a folder, not a file")
    if not S_ISREG(found.st_mode):  # a pipe or a device has no end
        raise DecodeError(name, "is not a regular file; copy it to one")
    return found.st_size
