"""A cohort or a folder of images read whole: counts, checks, and a page with some of the clips."""

import dataclasses
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mvo_jax.data.checks import Finding, Inspection
from mvo_jax.data.clips import Source, open_source, read_clips
from mvo_jax.data.importers.cine import Options, printable
from mvo_jax.data.slices import Clip, Rejected, Target
from mvo_jax.evaluation.pages.montage import write_montage

Tile = tuple[Clip, list[str]]


class Inspected(NamedTuple):
    """What was found: the ``Inspection.table``, what the images are like by name, the findings."""

    table: list[dict[str, Any]]
    facts: dict[str, str]
    findings: list[Finding]


def inspect_images(
    source: Path,
    page: Path,
    target: Target,
    *,
    form: str = "auto",
    options: Options | None = None,
    tiles: int = 48,
) -> Inspected:
    """Read every clip of a source once, check it, and write the page.

    Args:
        source: folder, image file, .zip or cohort.
        target: geometry that images are brought to; a cohort has its own.
        tiles: most clips to show.

    Raises:
        UserError: a source that cannot be read, or a page that cannot be written.
    """
    inspection, montage = Inspection(), Montage(tiles)
    # Beside the page: the temporary folder of a container may be small.
    near = page.parent if page.parent.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=near) as scratch:
        folder = Path(scratch) / "unpacked"
        opened = open_source(source, form=form, options=options or Options(), scratch=folder)
        clips = read_clips(opened, None if opened.is_cohort else target)
        for one in tqdm(clips, unit="slice", desc="Inspecting", disable=not sys.stderr.isatty()):
            if isinstance(one, Rejected):
                inspection.add_rejected(one)
            else:
                montage.offer(one, inspection.add(one))
    found = Inspected(inspection.table(), _facts(opened, inspection), inspection.findings())
    rejected = [dataclasses.asdict(one) for one in inspection.rejected]
    if opened.kind == "cohort":  # what was not used when it was prepared
        from mvo_jax.data.cohort.prepare import read_rejected  # imports TFDS

        rejected = read_rejected(opened.path)
    write_montage(
        page,
        title=printable(opened.path),
        tiles=montage.tiles(),
        decisions=inspection.decisions,
        rejected=rejected,
        **found._asdict(),
    )
    return found


class Montage:
    """At most ``limit`` clips to show: the first wrong ones, up to half, and a fair sample."""

    def __init__(self, limit: int):
        self._limit = limit
        self._flawed: list[Tile] = []
        self._sample: list[tuple[int, Tile]] = []
        self._seen = 0
        self._draws = random.Random(0)

    def offer(self, clip: Clip, wrong: list[str]) -> None:
        """Keep a clip or not."""
        place, tile = self._seen, (clip, wrong)
        self._seen += 1
        if wrong and len(self._flawed) < self._limit // 2:
            self._flawed.append(tile)
        elif len(self._sample) < self._limit:
            self._sample.append((place, tile))
        # Reservoir sampling: every clip has the same chance, and none is read twice.
        elif self._limit and (other := self._draws.randrange(place + 1)) < self._limit:
            self._sample[other] = place, tile

    def tiles(self) -> list[Tile]:
        """Wrong ones first, then by the order of the source."""
        rest = sorted(self._sample[: self._limit - len(self._flawed)], key=lambda item: item[0])
        return [*self._flawed, *(tile for _, tile in rest)]


def _facts(source: Source, inspection: Inspection) -> dict[str, str]:
    def listed(counts: dict[Any, int]) -> str:
        return ", ".join(f"{key} ({n})" for key, n in sorted(counts.items(), key=lambda i: -i[1]))

    shapes = {f"{s[0]} frames of {s[1]}x{s[2]}": n for s, n in inspection.shapes.items()}
    total = str(inspection.reading)
    images = {"images": total.replace(" images", "", 1)} if total else {}
    placed = {"crops placed by": listed(dict(inspection.placed))} if inspection.placed else {}
    rejected = source.rejected if source.is_cohort else len(inspection.rejected)
    see = f" when it was prepared, see {source.path / 'rejected.csv'}" if source.rejected else ""
    return {
        "kind": source.kind,
        **images,
        "clips": listed(shapes),
        "frames in the source": listed(dict(inspection.source_frames)),
        "pixel, mm": listed(dict(inspection.spacings)),
        **placed,
        "rejected": f"{rejected}{see}",
    }
