"""How many files may be bad."""

from collections.abc import Collection

from tubelet.errors import BadFile, DataError


def check_bad_share(bad: Collection[BadFile], total: int, share: float) -> None:
    """Stop when too many files are bad.

    Args:
        bad: files that cannot be read.
        total: of how many.
        share: of these may be bad.

    Raises:
        DataError: more are.
    """
    if len(bad) > share * total:
        raise DataError(
            f"{next(iter(bad))}; {len(bad)} of {total} files ({100 * len(bad) / total:.0f} %) cannot be read, more "
            f"than the {100 * share:.0f} % that --max-failed-fraction allows"
        )
