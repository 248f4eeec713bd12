"""Opening of media files: their bytes, FFmpeg's demuxer, and one error class for the exceptions of both."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, cast

import av
from av.error import DecoderNotFoundError, FFmpegError

from tubelet.data.batch import MediaBytes
from tubelet.data.file_types import MATROSKA, MP4, VIDEO_CONTAINERS
from tubelet.data.size_limits import VIDEO_PIXELS
from tubelet.data.storage import RemoteFile, is_url
from tubelet.errors import DecodeError, TubeletError, first_line

Media = str | Path | MediaBytes  # path or URL of a file, or its content

# Formats whose packets are complete by construction are decoded strictly. A broadcast recording may begin or end
# anywhere, and AVI decoders report errors in healthy files.
STRICT_FORMATS = (MP4, MATROSKA)
_STRICT = {"err_detect": "explode"}
# Decoders check it before they allocate a frame, whatever size the stream declares.
_BOUNDED = {"max_pixels": str(VIDEO_PIXELS)}
_GUARDED = _BOUNDED | {"format_whitelist": ",".join(VIDEO_CONTAINERS), "protocol_whitelist": "file"}


# Exceptions of FFmpeg and the operating system for a file that cannot be read.
READ_ERRORS = (FFmpegError, OSError, ValueError, ArithmeticError, IndexError, MemoryError)


@contextmanager
def as_decode_error(path: str, reason: str, file: object = None) -> Iterator[None]:
    """Turn exceptions of FFmpeg and the operating system into a DecodeError with `reason`.

    If a read of the remote `file` failed, that error is raised instead.
    """
    try:
        yield
        raise_remote_failure(file)
    except TubeletError:
        raise
    except READ_ERRORS as error:
        raise_remote_failure(file)
        raise to_decode_error(path, reason, error) from error


def raise_remote_failure(file: object) -> None:
    """Raise the error of a failed read of a remote file, which a library may have mistaken for the end of the file.

    Raises:
        StorageError: the storage cannot be reached.
        DecodeError: the file was deleted.
    """
    if isinstance(file, RemoteFile) and file.failure:
        raise file.failure


def to_decode_error(path: str, reason: str, error: Exception) -> DecodeError:
    """A DecodeError with `reason` for one of `READ_ERRORS`."""
    if isinstance(error, DecoderNotFoundError):
        return DecodeError(path, "its codec is not supported by this build of FFmpeg; convert it, e.g. to H.264")
    if isinstance(error, PermissionError):
        return DecodeError(path, "permission denied; check its permissions")
    detail = getattr(error, "strerror", None) or first_line(error)
    return DecodeError(path, f"{reason} (FFmpeg: {detail})")


def media_name(media: Media) -> str:
    """The name of a file in messages."""
    return media.name if isinstance(media, MediaBytes) else str(media)


def open_media(media: Media) -> BinaryIO:
    """Open a media file for random access to its bytes.

    Raises:
        DecodeError: the file is missing, empty, unreadable, or not a regular file.
        StorageError: its URL cannot be reached.
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
    """Open FFmpeg's demuxer for a file from `open_media`; a local file is opened again, by its name.

    Args:
        media: the file.
        file: its bytes.
        options: options of the demuxer, in addition to those that keep it from opening other files.
    """
    file.seek(0)
    by_name = not isinstance(media, MediaBytes) and not is_url(media)
    return av.open(str(media) if by_name else file, options={**_GUARDED, **options}, metadata_errors="ignore")


def decoder_options(container: str) -> dict[str, str]:
    """Options of FFmpeg's decoder for a stream in a container of this format."""
    return _BOUNDED | (_STRICT if container in STRICT_FORMATS else {})


def _size_of(file: Path) -> int:
    name = str(file)
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DecodeError(name, "does not exist") from error
    except OSError as error:
        raise DecodeError(name, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DecodeError(ascii(name), "is not a valid file name") from error
    if S_ISDIR(status.st_mode):
        raise DecodeError(name, "is a folder, not a file")
    if not S_ISREG(status.st_mode):  # a pipe or a device may never end
        raise DecodeError(name, "is not a regular file; copy it to one")
    return status.st_size
