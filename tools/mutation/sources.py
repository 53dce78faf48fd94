"""One small sound source in every format, as file name -> bytes."""

import csv
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Files = dict[str, bytes]

FRAMES, SLICES, SIZE, PIXEL_MM, STEP_MM = 8, 2, 20, 1.5, 8.0
TURN = [0.6, 0.8, 0.0, 0.48, -0.36, -0.8]  # columns and rows of an oblique stack
_AT = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5))
_RADIUS = 5 + 1.5 * np.cos(2 * np.pi * np.arange(FRAMES) / FRAMES)
_NOISE = np.random.default_rng(0).integers(0, 250, (SLICES, SIZE, SIZE))
# A disc that beats, on slices that differ more than their phases; uint16 [T, Z, H, W].
CINE = (_NOISE + 300 * (_RADIUS[:, None, None] > _AT)[:, None]).astype(np.uint16)
RING = np.where((_AT > 4) & (_AT < 7), 3, 0).astype(np.uint8)
MASK = np.stack([RING, np.where((RING == 3) & (np.arange(SIZE) > 12), 2, RING)])  # [Z, H, W]
_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4"


def plane_affine() -> np.ndarray:
    """(column, row, slice) to RAS mm."""
    out = np.eye(4)
    turn = np.array(TURN)
    out[:3, 0], out[:3, 1] = turn[:3] * PIXEL_MM, turn[3:] * PIXEL_MM
    out[:3, 2] = np.cross(turn[:3], turn[3:]) * STEP_MM
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ out


def nifti_bytes(
    array: np.ndarray, affine: np.ndarray | None, change: Callable[[Any], None] | None = None
) -> bytes:
    """``(X, Y, Z[, T])`` as an uncompressed NIfTI file; ``change`` may alter the header."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    if change is not None:
        change(image.header)
        image = nibabel.Nifti1Image(array, None, image.header)
    return image.to_bytes()


def dicom_image(t: int, z: int) -> Any:
    """One image of the cine, with its pixels."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(_ENHANCED_MR)
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{z}.{t}")
    out = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    turn = np.array(TURN)
    values = {
        "SOPClassUID": _ENHANCED_MR, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.2", "FrameOfReferenceUID": "1.2.4",
        "PatientID": "P1", "PatientName": "N", "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"], "SeriesNumber": 5, "SeriesDescription": "cine",
        "Rows": SIZE, "Columns": SIZE, "SamplesPerPixel": 1, "BitsAllocated": 16,
        "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
        "PhotometricInterpretation": "MONOCHROME2", "PixelSpacing": [PIXEL_MM, PIXEL_MM],
        "SliceThickness": STEP_MM, "ImageOrientationPatient": TURN,
        "InstanceNumber": 1 + t + 50 * z,
        "ImagePositionPatient": (np.cross(turn[:3], turn[3:]) * STEP_MM * z).tolist(),
        "TriggerTime": 40.0 * t, "CardiacNumberOfImages": FRAMES, "NominalInterval": 320,
        "RescaleSlope": 1, "RescaleIntercept": 0,
    }  # fmt: skip
    for name, value in values.items():
        setattr(out, name, value)
    out.PixelData = CINE[t, z].tobytes()
    out["PixelData"].VR = "OW"
    return out


def dicom_bytes(image: Any, **how: Any) -> bytes:
    """A file of a data set."""
    out = io.BytesIO()
    image.save_as(out, **({"enforce_file_format": True} | how))
    return out.getvalue()


def _dicom() -> Files:
    out = {
        f"A/{(5 * t + 3) % FRAMES}_{z}.dcm": dicom_bytes(dicom_image(t, z))
        for z in range(SLICES)
        for t in range(FRAMES)
    }
    return out | {"A_lge_mask.nii": nifti_bytes(MASK.T, plane_affine())}


def _nifti() -> Files:
    return {
        "A_cine.nii": nifti_bytes(CINE.T, plane_affine()),
        "A_lge_mask.nii": nifti_bytes(MASK.T, plane_affine()),
    }


def nrrd_bytes(**header: Any) -> bytes:
    """A segmentation as 3D Slicer writes it; None takes a field out."""
    import nrrd

    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ plane_affine()
    usual = {
        "space": "left-posterior-superior", "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3], "kinds": ["domain"] * 3, "encoding": "gzip",
        "Segment0_ID": "a", "Segment0_Name": "myocardium", "Segment0_LabelValue": "3",
        "Segment0_Layer": "0", "Segment1_ID": "b", "Segment1_Name": "MVO",
        "Segment1_LabelValue": "2", "Segment1_Layer": "0",
    }  # fmt: skip
    whole = {key: value for key, value in (usual | header).items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nrrd"
        nrrd.write(str(path), MASK.T, whole)
        return path.read_bytes()


def _nrrd() -> Files:
    return {"A_cine.nii": _nifti()["A_cine.nii"], "A_lge_mask.seg.nrrd": nrrd_bytes()}


def stacks() -> list[dict[str, Any]]:
    """``setstruct`` of a file of Segment: the cine, and LGE with its scar."""
    shared = {
        "ImageViewPlane": "Short-axis", "ResolutionX": PIXEL_MM, "ResolutionY": PIXEL_MM,
        "SliceThickness": STEP_MM, "SliceGap": 0.0, "ImagePosition": np.zeros((1, 3)),
        "ImageOrientation": np.array([TURN]), "IntensityScaling": 600.0, "IntensityOffset": 0.0,
    }  # fmt: skip
    images = (CINE.transpose(2, 3, 0, 1) / 600).astype(np.float32)  # (X, Y, T, Z)
    scar = {
        "Result": np.isin(MASK, (1, 2)).transpose(1, 2, 0).astype(np.uint8),
        "NoReflow": (MASK == 2).transpose(1, 2, 0).astype(np.uint8),
    }
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for_z = np.ones((1, 1, SLICES))
    contours = {
        f"{name}{axis}": (radius * wave(angle) + SIZE / 2 + 0.5)[:, None, None] * for_z
        for name, radius in (("Endo", 4.0), ("Epi", 7.0))
        for axis, wave in (("X", np.cos), ("Y", np.sin))
    }
    empty = np.zeros((0, 0))
    return [
        shared
        | {"ImageType": "Cine", "IM": images, "Scar": empty}
        | dict.fromkeys(contours, empty),
        shared | {"ImageType": "Late enhancement", "IM": images[:, :, :1], "Scar": scar} | contours,
    ]


def mat_bytes(content: list[dict[str, Any]], *, compress: bool = True, **more: Any) -> bytes:
    """MATLAB v7 of a list of stacks, and other variables."""
    from scipy.io import savemat

    names = sorted({name for stack in content for name in stack})
    array = np.empty((1, len(content)), dtype=[(name, object) for name in names])
    for i, stack in enumerate(content):
        for name in names:
            array[name][0, i] = stack.get(name, np.zeros((0, 0)))
    out = io.BytesIO()
    savemat(out, {"setstruct": array, "info": {"Name": "A"}, **more}, do_compression=compress)
    return out.getvalue()


def _mat() -> Files:
    return {"A.mat": mat_bytes(stacks())}


def png_bytes(image: Any, **how: Any) -> bytes:
    """A grey array, or an image of Pillow, as PNG."""
    from PIL import Image

    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, "PNG", **how)
    return out.getvalue()


def _png() -> Files:
    frames = {
        f"A_{t:02d}_input.png": png_bytes((CINE[t, 1] // 3).astype(np.uint8)) for t in range(FRAMES)
    }
    return frames | {"A_00_gt.png": png_bytes(MASK[1])}


def npz_arrays() -> dict[str, Any]:
    """What the archive holds."""
    return {"cine": CINE[:, 1], "pixel_mm": PIXEL_MM, "lge_mask": MASK[1]}


def npz_bytes(arrays: dict[str, Any], *, compress: bool = False) -> bytes:
    """An archive of arrays."""
    out = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(out, **arrays)
    return out.getvalue()


def _npz() -> Files:
    return {"A.npz": npz_bytes(npz_arrays())}


TABLE = [
    ["case_id", "patient_id", "label", "split", "centre_row", "centre_column", "end_diastole"],
    ["A_s00", "P7", "0", "train", "9.5", "9", "0"],
    ["A_s01", "P7", "1", "train", "10", "9.5", "1"],
]


def csv_bytes(rows: list[list[str]] = TABLE, **how: Any) -> bytes:
    """A table of the cases."""
    out = io.StringIO(newline="")
    csv.writer(out, **how).writerows(rows)
    return out.getvalue().encode()


def _csv() -> Files:
    return _nifti() | {"table.csv": csv_bytes()}


SOURCES: dict[str, Callable[[], Files]] = {
    "dicom": _dicom,
    "nifti": _nifti,
    "nrrd": _nrrd,
    "mat": _mat,
    "png": _png,
    "npz": _npz,
    "csv": _csv,
}
