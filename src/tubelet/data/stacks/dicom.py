"""DICOM: files of several frames, and series of slices."""

from pathlib import Path

DICOM_SUFFIXES = (".dcm", ".dicom")


def is_series_folder(path: Path) -> bool:
    """Whether a path is a folder with DICOM slices."""
    try:
        return path.is_dir() and any(each.suffix.lower() in DICOM_SUFFIXES for each in path.iterdir())
    except OSError:
        return False
