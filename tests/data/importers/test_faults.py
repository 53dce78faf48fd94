"""What hospitals' folders hold beside sound images: a bad case is refused and the others go on.

Every fault is a file written here, beside one sound case of the same format.
"""

import gzip
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless
from scipy.io import savemat

from mvo_jax.data.cohort.prepare import read_rejected
from mvo_jax.data.cohort.work import Recipe, prepare_one
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer, importer_of
from mvo_jax.data.importers.mat5 import claimed_bytes
from mvo_jax.data.importers.table import read_table
from mvo_jax.data.slices import Rejected, Target
from mvo_jax.errors import UserError
from tests.data.importers import writers
from tests.data.importers.reading import BEAT, MVO_RING, RING, change, prepared

FRAMES, SIZE, PIXEL_MM = 10, 32, 2.0
TARGET = Target(frames=FRAMES, image_size=SIZE, spacing_mm=PIXEL_MM)
CINE, MASK, MVO_MASK = BEAT, RING, MVO_RING
# Eight slices that differ more than their phases do, [T, Z, H, W].
SLICES = np.random.default_rng(1).integers(0, 200, (8, SIZE, SIZE), np.uint8) + CINE[:, None] // 8
REPORT = UID("1.2.840.10008.5.1.4.1.1.88.22")


run = partial(prepared, target=TARGET)


def check_message(cause: str, remedy: str, *words: str) -> None:
    """Cause and remedy are a line each, and not the length of a page."""
    for text in (cause, remedy):
        assert text.strip()
        assert "\n" not in text
        assert len(text) < 700
        assert "Traceback" not in text
    assert all(word in cause for word in words)


def content(name: str, of: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(of)


# NIfTI
def nifti(folder: Path, cine: np.ndarray = CINE, mask: np.ndarray | None = MASK) -> Path:
    return writers.write_nifti(folder, "bad", cine, mask, pixel_mm=PIXEL_MM)


def nifti_array(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray | None = None,
    name: str = "bad_cine.nii.gz",
) -> Path:
    """An array as it lies in the file, (X, Y, Z, T) if it is right."""
    path = folder / name
    image = nibabel.Nifti1Image(array, writers.affine(PIXEL_MM))
    if affine is not None:
        for field, row in zip(("srow_x", "srow_y", "srow_z"), affine, strict=True):
            image.header[field] = row
        image = nibabel.Nifti1Image(array, None, image.header)
        image.header["sform_code"], image.header["qform_code"] = 1, 0
    nibabel.save(image, path)
    return path


def rewrite_header(path: Path, offset: int, form: str, *values: float) -> None:
    """Change bytes of a compressed NIfTI file's header."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def claims(*axes: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        rewrite_header(nifti(folder), 40, f"<{len(axes) + 1}h", len(axes), *axes)

    return write


def with_mask(mask: np.ndarray, **changes: Any) -> Callable[[Path], None]:
    """A mask as it lies in the file, (X, Y, Z)."""

    def write(folder: Path) -> None:
        nifti(folder, mask=None)
        image = nibabel.Nifti1Image(mask, changes.get("affine", writers.affine(PIXEL_MM)))
        nibabel.save(image, folder / "bad_lge_mask.nii.gz")

    return write


def with_pixel(value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        cine = CINE.astype(np.float32)
        cine[3, 4, 5] = value
        nifti(folder, cine)

    return write


def cut(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def plain(folder: Path, name: str) -> Path:
    """Without compression, whatever the name says."""
    return nifti_array(folder, CINE.T[:, :, None], name="plain.nii").rename(folder / name)


def link_to(place: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "bad_cine.nii.gz").symlink_to(folder / place)


def stray_pixel(folder: Path) -> None:
    """A mask with a pixel 160 mm off: no crop holds it."""
    cine = np.pad(CINE, ((0, 0), (24, 24), (24, 24)))
    mask = np.pad(MASK, 24)
    mask[0, 0] = 1
    nifti(folder, cine, mask)


FAR = writers.affine(PIXEL_MM)
FAR[:3, 3] = 500.0
RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]
SINGULAR = np.zeros((3, 4))
UNKNOWN_LABELS = MASK.T[:, :, None].copy()
UNKNOWN_LABELS[0, 0] = 7
FRACTIONS = MASK.T[:, :, None] + np.float32(0.5)
NAN_MASK = np.where(MASK == 0, np.nan, MASK).astype(np.float32).T[:, :, None]

NIFTI = {
    "zero-length": (content("bad_cine.nii.gz", b""), "0 bytes"),
    "truncated": (lambda f: cut(nifti(f, mask=None)), "cannot be read"),
    "truncated, not compressed": (lambda f: cut(plain(f, "bad_cine.nii")), "cannot be read"),
    "not gzip": (lambda f: plain(f, "bad_cine.nii.gz"), "gzip"),
    "gzip named .nii": (lambda f: nifti(f, mask=None).rename(f / "bad_cine.nii"), "cannot be read"),
    "a web page": (content("bad_cine.nii.gz", b"<html>Please log in</html>"), "gzip"),
    "gzip of text": (content("bad_cine.nii.gz", gzip.compress(b"x" * 500)), "cannot be"),
    "2^15 per axis": (claims(32767, 32767, 32767, 32767), "GiB"),
    "more than the file holds": (claims(512, 512, 20, 30), "cannot be"),
    "no voxel": (claims(32, 32, 0, 10),),
    "negative axis": (claims(32, -32, 1, 10),),
    "unknown type": (lambda f: rewrite_header(nifti(f), 70, "<h", 77),),
    "infinite intercept": (lambda f: rewrite_header(nifti(f), 112, "<ff", 2.0, np.inf),),
    "link to itself": (link_to("bad_cine.nii.gz"),),
    "link to nowhere": (link_to("../moved away.nii.gz"), "does not exist"),
    "axes T, X, Y, Z": (
        lambda f: nifti_array(f, np.zeros((20, 64, 64, 6), np.uint8)), "20x64x64x6", "no short-axis"
    ),
    "axes X, Y, T, Z": (lambda f: nifti_array(f, SLICES.transpose(3, 2, 0, 1)), "10 slices"),
    "axes X, Y, T": (lambda f: nifti_array(f, CINE.transpose(2, 1, 0)), "3 axes"),
    "five axes": (lambda f: nifti_array(f, np.zeros((8, 8, 1, 8, 3), np.uint8)), "5 axes"),
    "RGB": (lambda f: nifti_array(f, np.zeros((SIZE, SIZE, 1, FRAMES), RGB)), "colour"),
    "complex": (lambda f: nifti_array(f, CINE.T[:, :, None].astype(np.complex64)), "complex"),
    "NaN": (with_pixel(np.nan), "1 pixels", "NaN"),
    "Inf": (with_pixel(-np.inf), "infinite"),
    "constant": (lambda f: nifti(f, np.full_like(CINE, 9)), "constant"),
    "three frames": (lambda f: nifti(f, CINE[:3]), "3 frames"),
    "tiny images": (lambda f: nifti(f, CINE[:, :8, :8], None), "8x8"),
    "no orientation": (lambda f: nifti_array(f, CINE.T[:, :, None], SINGULAR), "orientation"),
    "pixels in metres": (
        lambda f: nifti_array(f, CINE.T[:, :, None], writers.affine(0.0015)[:3]), "mm"
    ),
    "unknown labels": (with_mask(UNKNOWN_LABELS), "bad_lge_mask.nii.gz", "[7]"),
    "interpolated mask": (with_mask(FRACTIONS), "bad_lge_mask.nii.gz", "between"),
    "NaN in the mask": (with_mask(NAN_MASK), "bad_lge_mask.nii.gz", "NaN"),
    "mask with phases": (
        with_mask(np.zeros((SIZE, SIZE, 1, FRAMES), np.uint8)), "bad_lge_mask.nii.gz", "4 axes",
    ),
    "mask elsewhere": (
        with_mask(MVO_MASK.T[:, :, None], affine=FAR),
        "bad_lge_mask.nii.gz", "bad_cine.nii.gz", "nothing",
    ),
    "stray pixel of a mask": (stray_pixel, "crop"),
    "label 1, mask without MVO": (nifti, "label 1", "no MVO"),
    "label 1, no mask": (lambda f: nifti(f, mask=None), "label 1", "no LGE"),
    "label 0, mask with MVO": (lambda f: nifti(f, mask=MVO_MASK), "label 0", "MVO"),
    "centre outside": (nifti, "outside"),
    "end-diastole outside": (nifti, "frame 10 of 10"),
    "listed and lost": (lambda f: None, "bad_moved.nii.gz", "does not exist"),
}  # fmt: skip


# DICOM
def dicom(folder: Path, cine: np.ndarray = CINE, **changes: Any) -> Path:
    return writers.write_dicom(folder, "bad", cine, None, pixel_mm=PIXEL_MM, **changes)


def one_file(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(sorted(dicom(folder).iterdir())[4])


def every_file(
    edit: Callable[[Any], object] = lambda image: None, **tags: Any
) -> Callable[[Path], object]:
    """A sound series of which every header is changed."""
    return lambda folder: change(dicom(folder).iterdir(), edit, **tags)


def compressed(syntax: UID) -> Callable[[Any], None]:
    def edit(image: Any) -> None:
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = encapsulate([b"\xff\x4f" + b"\0" * 98])
        image["PixelData"].VR = "OB"

    return edit


def raw_tag(name: str, value: bytes) -> Callable[[Any], None]:
    """A value that the writer would refuse."""

    def edit(image: Any) -> None:
        tag, kind = image[name].tag, image[name].VR
        image._dict[tag] = RawDataElement(tag, kind, len(value), value, 0, False, True)

    return edit


def two_patients(folder: Path) -> None:
    """Slices of two people in one folder, as after a slip of the mouse."""
    for z, name in enumerate(("ANNA", "BERT")):
        for path in dicom(folder).glob("[!p]*.dcm"):
            change([path], PatientID=name, ImagePositionPatient=[0, 0, 8.0 * z])
            path.rename(path.with_name(f"p{z}_{path.name}"))


def same_slice_twice(folder: Path) -> None:
    """Scanned again, no copy."""
    for path in sorted(dicom(folder, CINE + 1, SeriesInstanceUID="1.2.4").iterdir()):
        path.rename(path.with_name(f"again_{path.name}"))
    dicom(folder)


def a_report(image: Any) -> None:
    del image.Rows, image.Columns, image.PixelData
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = REPORT


def many_frames(folder: Path) -> None:
    """A header of one pixel and half a billion frames."""
    image = writers.dicom_header("bad", 1, 1, NumberOfFrames=500_000_000, FrameTime=30)
    writers.set_pixels(image, CINE[0])
    (folder / "bad").mkdir(parents=True)
    image.save_as(folder / "bad" / "many.dcm", enforce_file_format=True)


def other_frames(folder: Path) -> None:
    out = writers.write_enhanced(folder, "bad", CINE[:, None])
    image = pydicom.dcmread(out / "multi.dcm")
    image.NumberOfFrames = FRAMES - 1
    image.PixelData = image.PixelData[: -SIZE * SIZE]
    image.save_as(out / "multi.dcm")


def dicom_colour(image: Any) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
    image.PlanarConfiguration = 0
    image.PixelData = np.zeros((SIZE, SIZE, 3), np.uint8).tobytes()


NO_DECODER = () if get_decoder(JPEGLSLossless).is_available else ("no decoder",)
DICOM = {
    "zero-length": (one_file(lambda p: p.write_bytes(b"")), "0 bytes"),
    "truncated": (one_file(lambda p: cut(p, 0.7)), ".dcm"),
    "cut in the header": (one_file(lambda p: cut(p, 0.1)), ".dcm"),
    "no DICOM": (one_file(lambda p: p.write_text("no image" * 50)), ".dcm", "as DICOM"),
    "colour": (every_file(dicom_colour), ".dcm", "colour"),
    "2^16 per axis": (every_file(Rows=65535, Columns=65535), ".dcm", "GiB"),
    "half a billion frames": (many_frames, "many.dcm", "frames"),
    "frames without headers": (other_frames, "multi.dcm", "9 frames and headers of 10"),
    "compressed, no codec": (
        every_file(compressed(JPEGLSLossless)), ".dcm", "JPEG-LS", *NO_DECODER,
    ),
    "compressed, damaged": (
        every_file(compressed(JPEG2000Lossless)), ".dcm", "JPEG 2000", "compressed pixels",
    ),
    "no pixels": (every_file(PixelData=None), ".dcm", "pixels"),
    "no bits": (every_file(BitsAllocated=None), ".dcm", "pixels"),
    "spacing of nought": (every_file(PixelSpacing=[0, 0]), "mm"),
    "no spacing": (every_file(PixelSpacing=None, Rows=16, Columns=64), "spacing"),
    "spacing no number": (every_file(raw_tag("PixelSpacing", b"a\\b ")), ".dcm"),
    "no times": (every_file(TriggerTime=None, InstanceNumber=None), "phases", "apart"),
    "a phase lost": (one_file(lambda p: p.unlink()), "[9] images", "10 are expected"),
    "a phase lost, count unknown": (
        lambda f: (every_file(CardiacNumberOfImages=None)(f), (f / "bad" / "002_0.dcm").unlink()),
        "phase is missing",
    ),
    "same slice twice": (same_slice_twice, "two series", "Found:"),
    "two patients": (two_patients, "ANNA", "BERT"),
    "only a report": (every_file(a_report), "no DICOM image"),
    "a localiser": (lambda f: dicom(f, CINE[:3]), "no cine", "Found:"),
    "constant": (lambda f: dicom(f, np.zeros_like(CINE)), "constant"),
    "link to itself": (one_file(lambda p: (p.unlink(), p.symlink_to(p))), ".dcm"),
}  # fmt: skip


# The released code's PNGs
def png(folder: Path, cine: np.ndarray = CINE, mask: np.ndarray | None = MASK) -> Path:
    return writers.write_png(folder, "bad", cine, mask)


def frame(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(png(folder) / "bad_04_input.png")


def save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(array).save(path)


def huge_png(path: Path) -> None:
    """2^15 pixels along each side in a hundred bytes."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", 1 << 15, 1 << 15, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def same_frame_twice(folder: Path) -> None:
    png(folder)
    (folder / "more").mkdir()
    save(CINE[0])(folder / "more" / "bad_00_input.png")


PNG = {
    "zero-length": (frame(lambda p: p.write_bytes(b"")), "bad_04_input.png"),
    "truncated": (frame(cut), "bad_04_input.png", "PNG"),
    "a JPEG": (frame(lambda p: Image.fromarray(CINE[0]).save(p, format="JPEG")), "bad_04_input"),
    "colour": (frame(save(np.zeros((SIZE, SIZE, 3), np.uint8))), "bad_04", "colour"),
    "2^15 per axis": (frame(huge_png), "bad_04_input.png"),
    "frame lost": (frame(Path.unlink), "bad_00_input.png", "[4]"),
    "sizes": (frame(save(CINE[0, :20])), "differ in size"),
    "unknown labels": (lambda f: png(f, mask=MASK + 4), "bad_00_gt.png", "[4, 7]"),
    "mask of another size": (lambda f: png(f, mask=MASK[:20]), "(20, 32)"),
    "two masks": (
        lambda f: (png(f), save(MASK)(f / "ann_dir" / "bad_03_gt.png")), "bad_03_gt.png", "2 masks"
    ),
    "the same frame twice": (same_frame_twice, "bad_00_input.png", "same frame"),
    "only a mask": (
        lambda f: [path.unlink() for path in png(f).glob("bad_*")], "bad_00_gt.png", "no _input.png"
    ),
}  # fmt: skip


# NumPy archives
def npz(**arrays: Any) -> Callable[[Path], None]:
    content = {"cine": CINE, "pixel_mm": PIXEL_MM, **arrays}
    content = {key: value for key, value in content.items() if value is not None}
    return lambda folder: np.savez(folder / "bad.npz", **content)


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def huge_npz(folder: Path) -> None:
    """A header that claims 2^15 along each axis before ten bytes."""
    text = str({"descr": "<u1", "fortran_order": False, "shape": (1 << 15,) * 3}).encode()
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"
        archive.writestr("cine.npy", head + b"0123456789")


def claiming_npz(folder: Path) -> None:
    npz()(folder)
    content = bytearray((folder / "bad.npz").read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 3_000_000_000)
    (folder / "bad.npz").write_bytes(content)


NPZ = {
    "zero-length": (content("bad.npz", b""),),
    "truncated": (lambda f: (npz()(f), cut(f / "bad.npz", 0.8)), "cannot be read"),
    "damaged": (lambda f: (npz()(f), flipped_byte(f / "bad.npz")), "cannot be read"),
    "object arrays": (npz(cine=np.array([CINE, None], object)), "objects"),
    "object names": (npz(patient_id=np.array([{}], object)), "objects"),
    "2^15 per axis": (huge_npz, "GiB"),
    "unpacks to 3 GB": (claiming_npz, "GiB"),
    "an .npy": (
        lambda f: (np.save(f / "bad.npy", CINE), (f / "bad.npy").rename(f / "bad.npz")),
        "cannot be read",
    ),
    "no cine": (npz(cine=None), "'cine'"),
    "unknown key": (npz(label=1), "label"),
    "colour": (npz(cine=np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)), "3)"),
    "text": (npz(cine=np.full((FRAMES, SIZE, SIZE), "a")), "dtype"),
    "complex": (npz(cine=CINE.astype(np.complex64)), "dtype"),
    "NaN": (npz(cine=np.where(CINE > 200, np.nan, CINE)), "NaN"),
    "a mask for two": (npz(lge_mask=np.stack([MASK, MASK])), "lge_mask"),
    "names for two": (npz(patient_id=["a", "b"]), "2 names"),
    "pixel of text": (npz(pixel_mm="1.5 mm"), "pixel_mm"),
    "pixel of NaN": (npz(pixel_mm=np.nan), "mm"),
    "no pixel size": (npz(pixel_mm=None, cine=CINE[:, :20]), "no pixel spacing"),
}  # fmt: skip


# Segment
def mat(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], object]:
    """A file of Segment with changed stacks (cine, LGE)."""
    how: dict[str, Any] = {"pixel_mm": PIXEL_MM, "change": change, "compress": False}
    return lambda folder: writers.write_mat7(folder, "bad", CINE, MVO_MASK, **how)


def cut_mat(writer: Callable) -> Callable[[Path], None]:
    return lambda folder: cut(writer(folder, "bad", CINE, MASK))


def other_mat(folder: Path) -> None:
    savemat(folder / "bad.mat", {"results": np.zeros(3)})


def claiming_mat(folder: Path) -> None:
    other_mat(folder)
    content = bytearray((folder / "bad.mat").read_bytes())
    struct.pack_into("<I", content, 132, 4_000_000_000)
    (folder / "bad.mat").write_bytes(bytes(content))


def huge_mat73(folder: Path) -> None:
    """A dataset of 2^15 along each axis of which nothing was ever written."""
    path = writers.write_mat73(folder, "bad", CINE, None)
    with h5py.File(path, "r+") as file:
        large = file.create_dataset("#refs#/large", (1 << 15,) * 3, np.uint8, chunks=(64,) * 3)
        images: Any = file["setstruct/IM"]
        images[0, 0] = large.ref


MAT = {
    "zero-length": (content("bad.mat", b""), "0 bytes"),
    "truncated": (cut_mat(writers.write_mat7), "cannot be read"),
    "truncated v7.3": (cut_mat(writers.write_mat73), "cannot be read"),
    "no .mat": (content("bad.mat", b"not an image" * 100),),
    "of other software": (other_mat, "setstruct"),
    "claims 4 GB": (claiming_mat, "GiB"),
    "2^15 per axis, v7.3": (huge_mat73, "GiB"),
    "two cines": (mat(lambda s: s.append(dict(s[0]))), "Found:"),
    "no cine": (mat(lambda s: s.pop(0)), "Found:"),
    "no resolution": (mat(lambda s: s[0].pop("ResolutionX")), "ResolutionX"),
    "orientation of nought": (
        mat(lambda s: s[0].update(ImageOrientation=np.zeros((1, 6)))), "orientation",
    ),
    "short orientation": (
        mat(lambda s: s[0].update(ImageOrientation=np.zeros((1, 4)))), "Orientation",
    ),
    "MVO of another size": (
        mat(lambda s: s[1]["Scar"].update(NoReflow=np.ones((5, 5)))), "NoReflow",
    ),
    "NaN scaling": (mat(lambda s: s[0].update(IntensityScaling=np.nan)), "IntensityScaling"),
}  # fmt: skip


GOOD: dict[str, Callable[[Path], Path]] = {
    "nifti": lambda f: writers.write_nifti(f, "good", CINE, MASK, pixel_mm=PIXEL_MM),
    "dicom": lambda f: writers.write_dicom(f, "good", CINE, MASK, pixel_mm=PIXEL_MM),
    "png": lambda f: writers.write_png(f, "good", CINE, MASK),
    "npz": lambda f: writers.write_npz(f, "good", CINE, MASK, pixel_mm=PIXEL_MM),
    "mat": lambda f: writers.write_mat7(f, "good", CINE, MASK, pixel_mm=PIXEL_MM),
}
FORMS = {"nifti": NIFTI, "dicom": DICOM, "png": PNG, "npz": NPZ, "mat": MAT}
FAULTS = {f"{form}: {name}": fault for form, of in FORMS.items() for name, fault in of.items()}
NAMES = {form: "bad" for form in FORMS} | {"nifti": r"bad_\w+\.nii", "npz": r"bad\.npz"}
TABLES = {
    "nifti: label 1, mask without MVO": "case_id,label\nbad,1\n",
    "nifti: label 1, no mask": "case_id,label\nbad,1\n",
    "nifti: label 0, mask with MVO": "case_id,label\nbad,0\n",
    "nifti: centre outside": "case_id,centre_row,centre_column\nbad,400,10\n",
    "nifti: end-diastole outside": "case_id,end_diastole\nbad,10\n",
    "nifti: listed and lost": "case_id,cine\ngood,good_cine.nii.gz\nbad,bad_moved.nii.gz\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_case_is_refused_by_name_and_the_others_go_on(name, tmp_path):
    form, (write, *words) = name.partition(":")[0], FAULTS[name]
    source = tmp_path / "source"
    source.mkdir()
    GOOD[form](source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the writers object to what they are made to write
        write(source)
    options, importer = Options(), choose_importer(source)
    if name in TABLES:
        (tmp_path / "table.csv").write_text(TABLES[name])
        options = Options(table=read_table(tmp_path / "table.csv"))
    recipe = Recipe(importer.load, options, TARGET, source)
    series = importer.find(source, options)
    results = [r for one in series for r in prepare_one(recipe, tmp_path, one)]
    (bad,) = [one for one in results if isinstance(one, Rejected)]
    (good,) = [one["case_id"] for one in results if not isinstance(one, Rejected)]
    assert good == "good"
    assert bad.case_id.startswith("bad")
    check_message(bad.cause, bad.remedy, *words)
    assert re.search(NAMES[form], bad.cause)


@pytest.mark.parametrize("form", GOOD)
def test_a_cohort_without_the_bad_case_or_with_strict_none(form, tmp_path):
    source, out, strict = tmp_path / "source", tmp_path / "out", tmp_path / "strict"
    source.mkdir()
    GOOD[form](source)
    write, *words = FORMS[form]["zero-length"]
    write(source)
    cohort = run(source, out)
    assert sum(cohort.cases.values()) == 1
    assert "good" in (out / "manifest.csv").read_text()
    assert not (out / ".work").exists()
    (row,) = read_rejected(out)
    assert row["case_id"].startswith("bad")
    check_message(row["cause"], row["remedy"], *words)
    with pytest.raises(UserError) as refusal:
        run(source, strict, strict=True)
    check_message(refusal.value.cause, refusal.value.remedy, *words)
    assert not any((strict / name).exists() for name in ("cohort.json", "tfds"))


# Sources
def archive(folder: Path, *names: str) -> Path:
    """A ``.zip`` that holds a sound case and files of these names."""
    sound = GOOD["npz"](folder)
    path = folder / "source.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.write(str(sound), "good.npz")
        for name in names:
            out.writestr(name, b"x")
    return path


@pytest.mark.parametrize(
    "name",
    ["../outside.npz", "a/../../outside.npz", "/outside.npz", "..\\outside.npz", "C:\\x.npz"],
)
def test_an_archive_does_not_lead_out_of_itself(tmp_path, name):
    path = archive(tmp_path, name)
    refused(path, tmp_path / "deep" / "out", "source.zip", "leads out of it")
    assert not list(tmp_path.rglob("outside.npz"))


def link(path: Path) -> None:
    item = zipfile.ZipInfo("link.npz")
    item.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as out:
        out.writestr(item, "/etc/passwd")


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as out:
        out.writestr("large.npz", bytes(1 << 25))


def double(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as out, pytest.warns(UserWarning, match="Duplicate"):
        out.writestr("good.npz", b"x")


def encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (link, "link.npz"),
        (bomb, "would unpack"),
        (double, "twice"),
        (encrypted, "encrypted"),
        (cut, "no sound .zip"),
        (lambda p: p.write_bytes(b""), "no sound .zip"),
        (lambda p: zipfile.ZipFile(p, "w").close(), "no file"),
    ],
    ids=["link", "bomb", "double", "encrypted", "cut", "zero-length", "empty"],
)
def test_archives_are_not_trusted(tmp_path, damage, words):
    path = archive(tmp_path)
    damage(path)
    refused(path, tmp_path / "out", "source", words)


def refused(source: Path, out: Path, *words: str, **options: Any) -> None:
    """The whole source is refused and nothing is written."""
    with pytest.raises(UserError) as refusal:
        run(source, out, **options)
    check_message(refusal.value.cause, refusal.value.remedy, *words)
    assert not out.exists()


def test_a_sound_archive(tmp_path):
    cohort = run(archive(tmp_path), tmp_path / "out")
    assert dict(cohort.cases) == {"train": 1}
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == ["tfds"]


@pytest.mark.parametrize(
    ("make", "format", "words"),
    [
        (lambda p: p.mkdir(), "auto", "no file"),
        (lambda p: (p.mkdir(), (p / "thesis.docx").write_text("x")), "auto", "1 .docx"),
        (lambda p: None, "auto", "does not exist"),
        (lambda p: p.symlink_to(p), "auto", "does not exist"),
        (lambda p: GOOD["npz"](p), "segment", "no case"),
    ],
    ids=["empty", "of something else", "missing", "a link to itself", "of another format"],
)
def test_sources_without_images(tmp_path, make, format, words):
    make(tmp_path / "source")
    refused(tmp_path / "source", tmp_path / "out", "source", words, format=format)


def test_two_masks_of_one_case(tmp_path):
    source = tmp_path / "source"
    GOOD["nifti"](source)
    GOOD["nifti"](source / "copy")
    refused(source, tmp_path / "out", "good_lge_mask.nii.gz", "both masks")


def test_folders_in_a_circle_end(tmp_path):
    source = tmp_path / "source"
    GOOD["nifti"](source)
    (source / "deep").mkdir()
    (source / "deep" / "up").symlink_to(source, target_is_directory=True)
    (source / "again").symlink_to(source / "deep", target_is_directory=True)
    assert sum(run(source, tmp_path / "out").cases.values()) == 1
    assert read_rejected(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["pipe_cine.nii.gz", "pipe.dcm", "pipe", "pipe.npz"])
def test_a_pipe_is_passed_over(tmp_path, name):
    """Opening it would wait for a writer for ever."""
    source = tmp_path / "source"
    GOOD["npz" if name == "pipe.npz" else "nifti"](source)
    os.mkfifo(source / name)
    assert sum(run(source, tmp_path / "out").cases.values()) == 1


def test_what_systems_leave_beside_the_images(tmp_path):
    source = tmp_path / "source"
    GOOD["dicom"](source)
    junk = ("Thumbs.db", ".DS_Store", "good/._000_0.dcm", "good/desktop.ini", "good/notes.txt")
    for name in junk:
        (source / name).write_bytes(b"\0\1")
    assert sum(run(source, tmp_path / "out").cases.values()) == 1
    assert read_rejected(tmp_path / "out") == []


@pytest.mark.parametrize("where", ["names", "files"])
def test_case_ids_twice(tmp_path, where):
    source = tmp_path / "source"
    for folder in ("a", "b"):
        if where == "names":
            writers.write_nifti(source / folder, "p01", CINE, None, pixel_mm=PIXEL_MM)
        else:
            (source / folder).mkdir(parents=True)
            np.savez(source / folder / "x.npz", cine=CINE, pixel_mm=2.0, case_id="p01")
    assert sum(run(source, tmp_path / "out").cases.values()) == 1
    (row,) = read_rejected(tmp_path / "out")
    file = "p01_cine.nii.gz" if where == "names" else "x.npz"
    check_message(row["cause"], row["remedy"], "'p01'", f"a/{file}", f"b/{file}")


@pytest.mark.parametrize("form", ["nifti", "dicom", "npz", "png", "mat"])
def test_names_that_are_not_utf8(tmp_path, form):
    source = tmp_path / "source"
    GOOD[form](source)
    for path in list(source.rglob("good*")):
        path.rename(Path(os.fsdecode(os.fsencode(path).replace(b"good", b"M\xfcller"))))
    GOOD[form](source)
    assert sum(run(source, tmp_path / "out").cases.values()) == 1
    (row,) = read_rejected(tmp_path / "out")
    check_message(row["cause"], row["remedy"], "not UTF-8", "M\\udcfcller")


def test_names_of_other_alphabets_are_kept(tmp_path):
    writers.write_nifti(tmp_path / "source", "Übung 患者 1", CINE, None, pixel_mm=PIXEL_MM)
    run(tmp_path / "source", tmp_path / "out")
    assert "Übung 患者 1" in (tmp_path / "out" / "manifest.csv").read_text("utf-8")


def test_one_case_is_enough_and_none_is_not(tmp_path):
    GOOD["npz"](tmp_path / "one")
    assert sum(run(tmp_path / "one", tmp_path / "out").cases.values()) == 1
    content("bad.npz", b"")(tmp_path / "one")
    (tmp_path / "one" / "good.npz").unlink()
    with pytest.raises(UserError) as refusal:
        run(tmp_path / "one", tmp_path / "none")
    check_message(refusal.value.cause, refusal.value.remedy, "no case", "1 rejected", "bad.npz")
    assert not (tmp_path / "none" / "cohort.json").exists()
    assert len(read_rejected(tmp_path / "none")) == 1  # which the remedy names
    assert str(tmp_path / "none" / "rejected.csv") in refusal.value.remedy


# Tables
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"case_id,label\n", "no rows"),
        (b"name,mvo\na,1\n", "unknown or repeated columns ['name', 'mvo']"),
        (b"case_id,label,label\na,1,0\n", "repeated columns"),
        (b"label,split\n1,train\n", "neither case_id"),
        (b"case_id,label\na,NaN\n", "line 2 has label 'NaN'"),
        (b"case_id,label\na,1\nb,2\n", "line 3 has label '2'"),
        (b"case_id,label\na,yes\n", "'yes'"),
        (b"case_id,label\na,1.0\n", "'1.0'"),
        (b"case_id,split\na,valid\n", "'valid'"),
        (b"case_id,label\na,1\na,0\n", "line 3 repeats case_id 'a' of line 2"),
        (b"case_id,label\na,1,\n", "3 cells for 2 columns"),
        (b"case_id,label\n,1\n", "line 2 has no case_id"),
        (b"case_id,label\nM\xfcller,1\n", "not UTF-8"),
        ("case_id,label\na,1\n".encode("utf-16"), "not UTF-8"),
        (b"case_id,label\na\0,1\n", "not text"),
        (b'case_id,label\n"a,1\n', "cells"),
        (b"case_id,centre_row\na,5\n", "half a centre"),
        (b"case_id,centre_row,centre_column\na,nan,5\n", "'nan'"),
        (b"case_id,end_diastole\na,1.5\n", "1.5"),
        (b"case_id,end_diastole\na,-1\n", "'-1'"),
    ],
)
def test_tables_with_mistakes(tmp_path, content, words):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_table(path)
    check_message(refusal.value.cause, refusal.value.remedy, str(path), words)


def test_tables_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError) as refusal:
            read_table(path)
        check_message(refusal.value.cause, refusal.value.remedy, str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfcase_id,label\r\ngood,0\r\n\r\n",
        b"Case_ID;Label\rgood;0\r",
        b" case_id\tlabel \ngood\t 0\n",
        b'"case_id","label"\n"good","0"',
    ],
    ids=["BOM and CRLF", "semicolons and CR", "tabs and blanks", "quotes"],
)
def test_tables_as_spreadsheets_save_them(tmp_path, content):
    source, path = tmp_path / "source", tmp_path / "table.csv"
    writers.write_nifti(source, "good", CINE, None, pixel_mm=PIXEL_MM)
    path.write_bytes(content)
    cohort = run(source, tmp_path / "out", table=read_table(path))
    assert dict(cohort.cases) == {"train": 1}
    assert cohort.positive["train"] == 0


@pytest.mark.parametrize("column", ["cine", "mask"])
@pytest.mark.parametrize("name", ["../other.nii.gz", "/etc/passwd", "a/../../b.nii.gz"])
def test_tables_do_not_lead_out_of_the_source(tmp_path, column, name):
    source, path = tmp_path / "source", tmp_path / "table.csv"
    GOOD["nifti"](source)
    other = {"cine": "mask", "mask": "cine"}[column]
    path.write_text(f"case_id,{column},{other}\ngood,{name},good_cine.nii.gz\n")
    refused(source, tmp_path / "out", str(path), "leads out", table=read_table(path))


def test_rows_of_a_table_that_name_nothing(tmp_path):
    """A slip in a name would otherwise leave a case without its label, silently."""
    source, path = tmp_path / "source", tmp_path / "table.csv"
    GOOD["nifti"](source)
    path.write_text("case_id,label\ngood,0\ngod,0\n")
    cohort = run(source, tmp_path / "out", table=read_table(path))
    assert sum(cohort.cases.values()) == 1
    (row,) = read_rejected(tmp_path / "out")
    check_message(row["cause"], row["remedy"], str(path), "line 3", "'god'")


# Damage
def test_kinds_and_sizes_in_mat_files_are_checked_before_they_are_believed(tmp_path):
    """Without compression there is no checksum, and the reader crashes on what it does not know."""
    mat(lambda stacks: None)(tmp_path)
    path = tmp_path / "bad.mat"
    sound = path.read_bytes()
    assert claimed_bytes(path) == len(sound) - 144  # its header, the tags of two variables
    words = np.frombuffer(sound[: len(sound) // 8 * 8], "<u4").reshape(-1, 2)
    doubles = [8 * int(i) for i in np.flatnonzero((words == [9, 8]).all(axis=1))]
    assert len(doubles) > 5
    for place in doubles:
        path.write_bytes(sound[:place] + struct.pack("<I", 99) + sound[place + 4 :])
        with pytest.raises(ValueError, match="unknown kind"):
            claimed_bytes(path)
    # Dimensions follow their tag (int32, 8 bytes), of the whole structure and of its fields.
    sizes = [8 * int(i) for i in np.flatnonzero((words == [5, 8]).all(axis=1))]
    for place in sizes:
        path.write_bytes(sound[: place + 8] + struct.pack("<ii", 1, 1 << 30) + sound[place + 16 :])
        with pytest.raises(ValueError, match="claims"):
            claimed_bytes(path)
        path.write_bytes(sound[: place + 8] + struct.pack("<ii", -1, 5) + sound[place + 16 :])
        with pytest.raises(ValueError, match="dimensions"):
            claimed_bytes(path)


SOUND: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{form: (form, GOOD[form]) for form in ("nifti", "dicom", "png", "npz")},
    "segment": ("segment", GOOD["mat"]), "segment v6": ("segment", mat(lambda stacks: None)),
    "segment v7.3": ("segment", lambda f: writers.write_mat73(f, "good", CINE, MASK)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_changed_bytes_are_refused_in_a_line_or_read(name, tmp_path):
    """Whatever is hit, most often in the headers: read as it is, or refused by name."""
    form, write = SOUND[name]
    write_folder = tmp_path / "sound"
    write_folder.mkdir()
    write(write_folder)
    draws = np.random.default_rng(0)
    files = sorted(p for p in write_folder.rglob("*") if p.is_file())
    recipe = Recipe(importer_of(form).load, Options(), Target(FRAMES, SIZE, PIXEL_MM), write_folder)
    refused_files = 0
    for _ in range(30):
        path = files[draws.integers(len(files))]
        sound = path.read_bytes()
        content = bytearray(sound)
        for _ in range(draws.integers(1, 6)):
            reach = len(content) if draws.random() < 0.3 else min(len(content), 700)
            content[draws.integers(reach)] = draws.integers(256)
        path.write_bytes(content)
        for series in importer_of(form).find(write_folder, Options()):
            for one in prepare_one(recipe, tmp_path / "result", series):
                if isinstance(one, Rejected):
                    refused_files += 1
                    check_message(one.cause, one.remedy)
                    assert one.remedy != "check the file, or leave it out"  # nobody knew it
        path.write_bytes(sound)
    assert refused_files > 3


# What is odd and right
def first_clip(source: Path, frames: int = FRAMES) -> np.ndarray:
    """The only case, uint8 [T, H, W], grey values 0 to 250 kept."""
    target = Target(frames, SIZE, PIXEL_MM, window=(0.0, 255.0))
    cohort = prepared(source, source.with_name("out"), target, strict=True)
    (split,) = cohort.cases
    builder: Any = cohort.builder()
    (case,) = builder.as_data_source(split=split)
    return case["video"][..., 0]


def monochrome1(image: Any) -> None:
    image.PhotometricInterpretation = "MONOCHROME1"
    image.PixelData = (255 - image.pixel_array).tobytes()


def rescaled(image: Any) -> None:
    image.RescaleSlope, image.RescaleIntercept = "0.5", "-20"
    writers.set_pixels(image, 2 * (image.pixel_array.astype(np.int16) + 20))


@pytest.mark.parametrize("change", [monochrome1, rescaled])
def test_stored_values_of_dicom(tmp_path, change):
    every_file(change)(tmp_path / "source")
    assert np.array_equal(first_clip(tmp_path / "source"), CINE)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2"])
@pytest.mark.parametrize("form", ["nifti", "npz"])
def test_types_of_pixels(tmp_path, dtype, form):
    writer = {"nifti": writers.write_nifti, "npz": writers.write_npz}[form]
    writer(tmp_path / "source", "a", CINE.astype(dtype), None, pixel_mm=PIXEL_MM)
    assert np.array_equal(first_clip(tmp_path / "source"), CINE)


def test_scale_of_nifti(tmp_path):
    path = writers.write_nifti(tmp_path / "source", "a", CINE, None, pixel_mm=PIXEL_MM)
    rewrite_header(path, 112, "<ff", 0.5, 10.0)
    clip = first_clip(tmp_path / "source")
    assert np.array_equal(clip, np.rint(CINE * 0.5 + 10).astype(np.uint8))


@pytest.mark.parametrize("frames", [25, 32])
def test_phases_of_other_numbers_become_thirty(tmp_path, frames):
    """A sine over the beat is met by the spline to a grey level or two."""
    inner = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5)) < 9

    def beat(count: int) -> np.ndarray:
        phase = 2 * np.pi * np.arange(count) / count
        return 120 + 80 * np.sin(phase)[:, None, None] * inner + np.zeros((1, SIZE, SIZE))

    writers.write_npz(tmp_path / "source", "a", beat(frames), None, pixel_mm=PIXEL_MM)
    clip = first_clip(tmp_path / "source", frames=30)
    assert clip.shape[0] == 30
    assert np.abs(clip - beat(30)).max() < 1.0
