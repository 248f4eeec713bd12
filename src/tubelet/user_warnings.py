"""Warnings that show the line of the user's own code."""

import sys
import warnings

from tubelet.errors import TubeletWarning

_SKIPPED = {"tubelet", "torch", "huggingface_hub", "contextlib", "functools"}
"""Packages between a user's call and a warning: this one, and those that wrap its functions."""


def warn_user(message: str) -> None:
    """Warn at the innermost line of the call stack that is not of this package, once for each line and message."""
    # Not by `skip_file_prefixes`, which Python 3.11 does not have.
    frame = called_by = sys._getframe(1)
    while str(frame.f_globals.get("__name__")).partition(".")[0] in _SKIPPED:
        if frame.f_back is None:  # a thread of this package
            frame = called_by
            break
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        TubeletWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
