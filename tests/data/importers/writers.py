"""Cases as other people's software writes them. Only tests use this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from scipy.io import savemat

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"


def affine(pixel_mm: float, slice_mm: float = 8.0) -> np.ndarray:
    """Columns to the patient's left, rows to posterior: no flip is needed for display."""
    return np.diag([-pixel_mm, -pixel_mm, slice_mm, 1.0])


def write_nifti(
    folder: Path, case: str, cine: np.ndarray, mask: np.ndarray | None, *, pixel_mm: float = 2.0
) -> Path:
    """``cine`` [T, H, W] or [T, Z, H, W]; ``mask`` [H, W] or [Z, H, W]."""
    folder.mkdir(parents=True, exist_ok=True)
    if cine.ndim == 3:
        cine, mask = cine[:, None], None if mask is None else mask[None]
    path = folder / f"{case}_cine.nii.gz"
    nibabel.save(nibabel.Nifti1Image(cine.transpose(3, 2, 1, 0), affine(pixel_mm)), path)
    if mask is not None:
        image = nibabel.Nifti1Image(mask.transpose(2, 1, 0), affine(pixel_mm))
        nibabel.save(image, folder / f"{case}_lge_mask.nii.gz")
    return path


def dicom_header(case: str, rows: int, columns: int, **changes: Any) -> FileDataset:
    """A grey MR image without pixels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(MR)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    out = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    out.SOPClassUID, out.SOPInstanceUID = MR, meta.MediaStorageSOPInstanceUID
    out.PatientID, out.Modality, out.ImageType = case, "MR", ["ORIGINAL", "PRIMARY", "M"]
    out.SeriesInstanceUID = "1.2.3"
    out.Rows, out.Columns, out.SamplesPerPixel = rows, columns, 1
    out.PhotometricInterpretation, out.PixelRepresentation = "MONOCHROME2", 0
    for name, value in changes.items():
        setattr(out, name, value)
    return out


def set_pixels(image: FileDataset, pixels: np.ndarray) -> None:
    """Store 8- or 16-bit pixels."""
    bits = pixels.dtype.itemsize * 8
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    raw = pixels.tobytes()
    image.PixelData = raw + b"\0" * (len(raw) % 2)
    image["PixelData"].VR = "OB" if bits == 8 else "OW"


def write_dicom(
    folder: Path,
    case: str,
    cine: np.ndarray,
    mask: np.ndarray | None,
    *,
    pixel_mm: float = 2.0,
    step_mm: float = 8.0,
    **changes: Any,
) -> Path:
    """Classic single-frame files, named so that neither names nor instances are in time order.

    Slices lie along the patient's axis; the mask is a NIfTI file in the source folder.
    """
    cine = cine[:, None] if cine.ndim == 3 else cine
    frames, slices, rows, columns = cine.shape
    out = folder / case
    out.mkdir(parents=True, exist_ok=True)
    for z in range(slices):
        for t in range(frames):
            image = dicom_header(
                case, rows, columns, PixelSpacing=[pixel_mm, pixel_mm], SliceThickness=step_mm,
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0], TriggerTime=30.0 * t,
                ImagePositionPatient=[0, 0, z * step_mm], CardiacNumberOfImages=frames,
                InstanceNumber=1 + (7 * t + 3) % frames + z * frames, **changes,
            )  # fmt: skip
            set_pixels(image, cine[t, z])
            image.save_as(out / f"{(11 * t + 5) % frames:03d}_{z}.dcm", enforce_file_format=True)
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        grid = affine(pixel_mm, step_mm)
        image = nibabel.Nifti1Image(mask.transpose(2, 1, 0), grid)
        nibabel.save(image, folder / f"{case}_lge_mask.nii.gz")
    return out


def write_enhanced(folder: Path, case: str, cine: np.ndarray, *, pixel_mm: float = 2.0) -> Path:
    """One enhanced multi-frame file, frames by time and then slice; ``cine`` [T, Z, H, W]."""
    frames, slices, rows, columns = cine.shape
    image = dicom_header(case, rows, columns, SOPClassUID=ENHANCED_MR)
    image.file_meta.MediaStorageSOPClassUID = UID(ENHANCED_MR)
    image.NumberOfFrames = frames * slices

    def item(**values: Any) -> pydicom.Sequence:
        data = pydicom.Dataset()
        for name, value in values.items():
            setattr(data, name, value)
        return pydicom.Sequence([data])

    image.SharedFunctionalGroupsSequence = item(
        PixelMeasuresSequence=item(PixelSpacing=[pixel_mm, pixel_mm], SliceThickness=8),
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    )
    image.PerFrameFunctionalGroupsSequence = pydicom.Sequence(
        [
            item(
                FrameContentSequence=item(
                    StackID="1", InStackPositionNumber=z + 1, TemporalPositionIndex=t + 1
                ),
                PlanePositionSequence=item(ImagePositionPatient=[0, 0, -8.0 * z]),
                CardiacSynchronizationSequence=item(NominalCardiacTriggerDelayTime=30.0 * t),
            )[0]
            for t in range(frames)
            for z in range(slices)
        ]
    )
    set_pixels(image, cine)
    out = folder / case
    out.mkdir(parents=True, exist_ok=True)
    image.save_as(out / "multi.dcm", enforce_file_format=True)
    return out


def write_old_multiframe(folder: Path, case: str, cine: np.ndarray) -> Path:
    """NumberOfFrames and FrameTime, no geometry; ``cine`` [T, H, W]."""
    image = dicom_header(case, *cine.shape[1:], NumberOfFrames=len(cine), FrameTime=30)
    set_pixels(image, cine)
    out = folder / case
    out.mkdir(parents=True, exist_ok=True)
    image.save_as(out / "old.dcm", enforce_file_format=True)
    return out


def segment_stacks(
    cine: np.ndarray, mask: np.ndarray | None, *, pixel_mm: float = 2.0
) -> list[dict[str, Any]]:
    """``setstruct`` of a cine [T, H, W] and its LGE mask, contours traced from the mask."""
    shared = {
        "ImageViewPlane": "Short-axis", "ResolutionX": pixel_mm, "ResolutionY": pixel_mm,
        "SliceThickness": 8.0, "SliceGap": 0.0, "ImagePosition": np.zeros((1, 3)),
        "ImageOrientation": np.array([[1.0, 0, 0, 0, 1, 0]]),
        "IntensityScaling": 255.0, "IntensityOffset": 0.0,
    }  # fmt: skip
    scaled = (cine.transpose(1, 2, 0)[..., None] / 255.0).astype(np.float32)
    first = {"ImageType": "Cine", "IM": scaled, "Scar": np.zeros((0, 0))}
    out: list[dict[str, Any]] = [shared | first]
    if mask is not None:
        endo, epi = trace(mask)
        contours = {
            f"{name}{axis}": points[:, i][:, None, None] + 1.0
            for name, points in (("Endo", endo), ("Epi", epi))
            for i, axis in enumerate("XY")
        }
        scar = {
            "Result": np.isin(mask, (1, 2))[..., None].astype(np.uint8),
            "NoReflow": (mask == 2)[..., None].astype(np.uint8),
        }
        still = {"ImageType": "Late enhancement", "IM": scaled[:, :, :1], "Scar": scar}
        out.append(shared | contours | still)
    return out


def outline(region: np.ndarray) -> np.ndarray:
    """Polygon (row, column) along the pixels: left edges downwards, right edges upwards."""
    rows = np.flatnonzero(region.any(axis=1))
    left = [(r + d, np.flatnonzero(region[r])[0] - 0.5) for r in rows for d in (-0.5, 0.5)]
    right = [(r + d, np.flatnonzero(region[r])[-1] + 0.5) for r in rows for d in (-0.5, 0.5)]
    return np.array(left + right[::-1])


def trace(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Endo- and epicardial polygons that rasterise to the ring of a mask."""
    ring, filled = mask > 0, np.zeros(mask.shape, bool)
    for r in np.flatnonzero(ring.any(axis=1)):
        columns = np.flatnonzero(ring[r])
        filled[r, columns[0] : columns[-1] + 1] = True
    return outline(filled & ~ring), outline(filled)


def write_mat7(
    folder: Path,
    case: str,
    cine: np.ndarray,
    mask: np.ndarray | None,
    *,
    pixel_mm: float = 2.0,
    change: Callable[[list[dict[str, Any]]], object] = lambda stacks: None,
    compress: bool = True,
) -> Path:
    """MATLAB v7, as ``save`` writes it; ``change`` may alter the stacks (cine, LGE)."""
    folder.mkdir(parents=True, exist_ok=True)
    stacks = segment_stacks(cine, mask, pixel_mm=pixel_mm)
    change(stacks)
    names = sorted({name for stack in stacks for name in stack})
    array = np.empty((1, len(stacks)), dtype=[(name, object) for name in names])
    for i, stack in enumerate(stacks):
        for name in names:
            array[name][0, i] = stack.get(name, np.zeros((0, 0)))
    path = folder / f"{case}.mat"
    savemat(path, {"setstruct": array, "info": {"Name": case}}, do_compression=compress)
    return path


def write_mat73(folder: Path, case: str, cine: np.ndarray, mask: np.ndarray | None, **kw) -> Path:
    """MATLAB v7.3: HDF5 with reversed axes and references."""
    folder.mkdir(parents=True, exist_ok=True)
    stacks = segment_stacks(cine, mask, **kw)
    names = sorted({name for stack in stacks for name in stack})
    path = folder / f"{case}.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        count = 0

        def store(parent: h5py.Group, name: str, value: Any) -> h5py.HLObject:
            if isinstance(value, dict):
                group = parent.create_group(name)
                for key, inner in value.items():
                    store(group, key, inner)
                return group
            if isinstance(value, str):
                data = np.array([[ord(c)] for c in value], np.uint16)
                dataset = parent.create_dataset(name, data=data)
                dataset.attrs["MATLAB_class"] = np.bytes_("char")
                return dataset
            array = np.atleast_2d(value)
            if not array.size:
                dataset = parent.create_dataset(name, data=np.zeros(2, np.uint64))
                dataset.attrs["MATLAB_empty"] = 1
                return dataset
            dataset = parent.create_dataset(name, data=array.transpose())
            dataset.attrs["MATLAB_class"] = np.bytes_("double")
            return dataset

        group, refs = file.create_group("setstruct"), file.create_group("#refs#")
        for name in names:
            row = np.empty((len(stacks), 1), h5py.ref_dtype)
            for i, stack in enumerate(stacks):
                item = store(refs, f"r{count}", stack.get(name, np.zeros((0, 0))))
                count += 1
                row[i, 0] = item.ref
            group.create_dataset(name, data=row, dtype=h5py.ref_dtype)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(126) + b"\x02IM")
    return path


def write_png(folder: Path, case: str, cine: np.ndarray, mask: np.ndarray | None) -> Path:
    """The released code's layout; the first frame is the key frame."""
    images, masks = folder / "img_dir", folder / "ann_dir"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    for t, frame in enumerate(cine):
        Image.fromarray(frame).save(images / f"{case}_{t:02d}_input.png")
    if mask is not None:
        Image.fromarray(mask).save(masks / f"{case}_00_gt.png")
    return images


def write_npz(
    folder: Path, case: str, cine: np.ndarray, mask: np.ndarray | None, *, pixel_mm: float = 2.0
) -> Path:
    """A plain archive."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case}.npz"
    masks: dict[str, Any] = {} if mask is None else {"lge_mask": mask}
    np.savez_compressed(path, cine=cine, pixel_mm=pixel_mm, **masks)
    return path


SHORT_AXIS = (0.7122, 0.7011, -0.0344, -0.3077, 0.2678, -0.9130)  # as hearts lie


def write_series(
    folder: Path,
    cine: np.ndarray,
    *,
    turn: Sequence[float] = (1, 0, 0, 0, 1, 0),
    origin: Sequence[float] = (0, 0, 0),
    step_mm: float = 8.0,
    pixel_mm: float = 2.0,
    name: str = "i",
    **tags: Any,
) -> list[Path]:
    """A classic series as scanners write it, one file a phase; ``cine`` [T, Z, H, W] of uint16.

    Slices lie ``step_mm`` apart along the normal from ``origin``. ``tags`` are values, functions of
    (phase, slice), or None for a tag that is missing. Returns the files, slice by slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    normal = np.cross(turn[:3], turn[3:])
    for z, t in np.ndindex(*cine.shape[1::-1]):
        usual: dict[str, Any] = {
            "StudyInstanceUID": "1.2", "SeriesNumber": 5, "SeriesDescription": "cine_sax",
            "PixelSpacing": [pixel_mm, pixel_mm], "ImageOrientationPatient": list(turn),
            "ImagePositionPatient": [round(v, 6) for v in np.array(origin) + z * step_mm * normal],
            "SliceLocation": z * step_mm, "SliceThickness": 8, "TriggerTime": 40.0 * t,
            "InstanceNumber": 1 + t + z * len(cine), "CardiacNumberOfImages": len(cine),
        }  # fmt: skip
        image = dicom_header("P1", *cine.shape[2:])
        for key, value in (usual | tags).items():
            value = value(t, z) if callable(value) else value
            if value is not None:
                setattr(image, key, value)
        set_pixels(image, cine[t, z])
        out.append(folder / f"{name}{z:02d}_{t:03d}.dcm")
        image.save_as(out[-1], enforce_file_format=True)
    return out
