"""The limit on the fraction of unreadable files."""

from collections.abc import Collection
from itertools import islice

from tubelet.errors import BadFile, DataError

FEW = 10
"""Bad files up to which a command reads all others before it fails, so that it names all of them at once."""


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
        raise DataError(
            f"{named}{more}; {len(bad)} of {total} file{'s' * (total != 1)} ({100 * len(bad) / total:.0f} %) cannot be "
            f"read, more than the {100 * limit:.0f} % that --max-failed-fraction allows"
        )
