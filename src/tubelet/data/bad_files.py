"""The limit on the fraction of unreadable files."""

from collections.abc import Collection

from tubelet.errors import BadFile, DataError


def check_failed_fraction(bad: Collection[BadFile], total: int, limit: float) -> None:
    """Raise an error if too many files are unreadable.

    Args:
        bad: files that cannot be read.
        total: number of all files.
        limit: largest fraction of them that may be unreadable.

    Raises:
        DataError: the fraction is larger.
    """
    if len(bad) > limit * total:
        raise DataError(
            f"{next(iter(bad))}; {len(bad)} of {total} files ({100 * len(bad) / total:.0f} %) cannot be read, more "
            f"than the {100 * limit:.0f} % that --max-failed-fraction allows"
        )
