"""The limit on the fraction of unreadable files."""

from collections.abc import Collection
from itertools import islice

from tubelet.errors import BadFile, DataError

FEW = 10
"""Bad files up to which a command reads all others before it fails, so that it names all of them at once."""
_MOST_DIGITS = 6


def check_failed_fraction(bad: Collection[BadFile], total: int, limit: float, *, finished: bool) -> None:
    """Raise an error if too many files are unreadable.

    Args:
        bad: files that cannot be read.
        total: number of all files.
        limit: largest fraction of them that may be unreadable.
        finished: whether all files were tried; before that, up to `FEW` bad files are no error.

    Raises:
        DataError: the fraction is larger; names up to `FEW` of the files.
    """
    if len(bad) > max(limit * total, 0 if finished else FEW):
        names = dict.fromkeys(map(str, bad))  # several spans of a file are one name
        named = "; ".join(islice(names, FEW))
        more = f"; and {len(names) - FEW} more" if len(names) > FEW else ""
        raise DataError(f"{named}{more}; {describe_failed_fraction(len(bad), total, limit)}")


def describe_failed_fraction(bad: int, total: int, limit: float) -> str:
    """How many files are unreadable and how many may be, in percent, with as many digits as tell the two apart.

    Args:
        bad: number of files that cannot be read.
        total: number of all files.
        limit: largest fraction of them that may be unreadable, which `bad` exceeds.
    """
    found, allowed = next(
        (texts for digits in range(_MOST_DIGITS) if len(set(texts := _percentages(bad / total, limit, digits))) > 1),
        _percentages(bad / total, limit, _MOST_DIGITS),
    )
    return (
        f"{bad} of {total} file{'s' * (total != 1)} ({found} %) cannot be read, more than the {allowed} % that "
        "--max-failed-fraction allows"
    )


def _percentages(found: float, limit: float, digits: int) -> tuple[str, str]:
    return f"{100 * found:.{digits}f}", f"{100 * limit:.{digits}f}"
