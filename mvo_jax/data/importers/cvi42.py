"""Contours of cvi42: an exported workspace, ``.cvi42wsx`` or ``.xml``.

A tree by the attribute ``Hash:key``: below ``ImageStates`` the SOPInstanceUID of an image; below
its ``Contours`` the name of each; below that ``Points`` with ``Point:x`` and ``Point:y``, and
``SubpixelResolution``, by which they are divided. So public readers know it (ukbb_cardiac's
parse_cvi42_xml.py for one).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np

from mvo_jax.data.importers.cine import reading
from mvo_jax.data.importers.walk import fault

ENDOCARDIUM, EPICARDIUM = "saendocardialContour", "saepicardialContour"
NO_REFLOW = "noReflowAreaContour"
# Drawn on LGE, and no part of a mask: a sample of healthy muscle, and what a threshold leaves out.
ON_LGE = ("saEnhancementReferenceMyoContour", "excludeEnhancementAreaContour")
KNOWN = (ENDOCARDIUM, EPICARDIUM, NO_REFLOW, *ON_LGE, "saReferenceMyoContour")
# Names that are not known and may be those of MVO.
_MAY_BE_MVO = re.compile(r"re.?flow|mvo|microvasc|obstruct", re.IGNORECASE)
_NUMBER = re.compile(r"\d{4}$")  # of the second and later contours of one name
_MOST_POINTS = 5_000_000  # of a workspace


class Contour(NamedTuple):
    """A closed contour: points as of ``contours.fill``, of the image as stored."""

    name: str  # without the number of a repeated one
    points: np.ndarray

    @property
    def may_be_mvo(self) -> bool:
        """Whether a name that is not known says so."""
        return self.name not in KNOWN and _MAY_BE_MVO.search(self.name) is not None


def is_workspace(path: Path) -> bool:
    """Whether a file is named, and if its name says little begins, as a workspace of cvi42."""
    suffix = path.suffix.lower()
    if suffix in (".cvi42wsx", ".cvi42ws"):  # the second is binary, which reading it says
        return True
    if suffix != ".xml":
        return False
    try:
        with path.open("rb") as file:
            return b"Hash:key" in file.read(1 << 16)
    except OSError:
        return False


def read_workspace(path: Path) -> dict[str, list[Contour]]:
    """SOPInstanceUID -> the contours on that image, of whatever name.

    Raises:
        UserError: damaged, with a document type or entities, or without an image.
    """
    found = _Reader(path)
    with reading(path, " as workspace of cvi42", "export the workspace again, as .cvi42wsx (XML)"):
        parser = expat.ParserCreate()
        # A document type is where entities are declared that grow without bound or name files.
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = found.refuse
        parser.StartElementHandler = found.start
        parser.EndElementHandler = found.end
        parser.CharacterDataHandler = found.text
        with path.open("rb") as file:
            parser.ParseFile(file)
    if not found.has_images:
        says = " is no workspace of cvi42: it has no ImageStates"
        raise fault(path, says, "export the workspace as .cvi42wsx (XML)")
    return found.images


class _Reader:
    """What the parser calls; keeps the contours and nothing else of a file of any size."""

    def __init__(self, path: Path):
        self.images: dict[str, list[Contour]] = {}
        self.has_images = False
        self._path = path
        self._keys: list[str] = []  # key, or name, of every open element
        self._text: list[str] = []
        self._points: list[list[float]] = []
        self._point: dict[str, float] = {}
        self._scale = 1.0
        self._count = 0

    def refuse(self, *_: Any) -> None:
        says = " declares a document type, which no workspace of cvi42 does"
        remedy = "export the workspace again; the file may have been tampered with"
        raise fault(self._path, says, remedy)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._keys.append(attributes.get("Hash:key", name))
        self._text = []
        self.has_images |= self._keys[-1] == "ImageStates"
        if len(self._place() or ()) == 2:
            self._points, self._scale = [], 1.0

    def text(self, data: str) -> None:
        self._text.append(data)

    def end(self, _: str) -> None:
        place, key = self._place(), self._keys[-1]
        text, self._text = "".join(self._text).strip(), []
        if place is not None:
            if key in ("Point:x", "Point:y"):
                self._point[key[-1]] = float(text)
            elif len(self._point) == 2:
                self._points.append([self._point["y"], self._point["x"]])
                self._point = {}
                self._count += 1
                if self._count > _MOST_POINTS:
                    raise ValueError(f"more than {_MOST_POINTS:,} points")
            elif key == "SubpixelResolution":
                self._scale = float(text)
                if not self._scale > 0:
                    raise ValueError(f"SubpixelResolution is {text}")
            if len(place) == 2:
                uid, name = place
                points = np.array(self._points, float).reshape(-1, 2) / self._scale
                self._points = []
                if not np.isfinite(points).all() and len(points) > 2:
                    raise ValueError(f"a point of {name} is no number")
                if len(points) > 2:  # else a click that was given up
                    drawn = Contour(_NUMBER.sub("", name), points)
                    self.images.setdefault(uid, []).append(drawn)
        self._keys.pop()

    def _place(self) -> tuple[str, ...] | None:
        """(Image, contour, ...) of the open element below ``Contours``, else None."""
        if "ImageStates" not in self._keys:
            return None
        uid, *below = self._keys[self._keys.index("ImageStates") + 1 :] or [""]
        return (uid, *below[1:]) if len(below) > 1 and below[0] == "Contours" else None
