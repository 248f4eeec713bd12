"""DICOM files of the tests, with values of 12 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = "DOE^JANE"


def write_dicom(path: Path, values: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> None:
    """Write (H, W) or (T, H, W) uint16 values of 12 bits; `elements` are added to the usual ones, or replace them."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = syntax
    data = pydicom.Dataset()
    data.file_meta = meta
    usual = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": generate_uid(),
        "PatientName": PATIENT,
        "Modality": "MR",
        "Rows": values.shape[-2],
        "Columns": values.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
    }
    if values.ndim == 3:
        usual["NumberOfFrames"] = len(values)
    for name, value in (usual | elements).items():
        setattr(data, name, value)
    data.PixelData = values.astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)
