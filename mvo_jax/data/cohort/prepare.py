"""A folder of images to a prepared cohort: every series once, then the splits, then the files."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mvo_jax.data import stored
from mvo_jax.data.accounting import Reading
from mvo_jax.data.checks import ALIKE, ALIKE_REMEDY
from mvo_jax.data.cohort import storage, work
from mvo_jax.data.cohort.partition import Partition, divide
from mvo_jax.data.cohort.series import lost_series
from mvo_jax.data.cohort.storage import INDEX, MANIFEST, RECORDS, REJECTED, CohortFolder
from mvo_jax.data.cohort.work import Recipe, Row
from mvo_jax.data.importers.archive import named_after, renamed, unpack
from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.importers.table import Table
from mvo_jax.data.labels import UNLABELLED
from mvo_jax.data.names import composed, spelt_alike
from mvo_jax.data.processes import map_in_children
from mvo_jax.data.slices import Rejected, Target
from mvo_jax.errors import UserError
from mvo_jax.files import replace_file, write_csv

log = logging.getLogger(__name__)

WORK = ".work"
_RENAME = "rename one, or give case ids in a table"
_SAME_IMAGES = "leave out the one that is named or labelled wrongly"
MANIFEST_COLUMNS = (
    "case_id", "patient_id", "slice", "label", "split", "source", "spacing_mm", "frames", "sha256",
    "source_frames", "first_frame", "start_row", "start_column", "step_row", "step_column",
    "centre_from", "confidence", "grey_low", "grey_high", "note",
)  # fmt: skip
REJECTED_COLUMNS = ("case_id", "patient_id", "source", "cause", "remedy")


def prepare(
    source: Path,
    out: Path,
    *,
    format: str = "auto",
    options: Options,
    target: Target,
    partition: Partition,
    jobs: int,
    strict: bool = False,
) -> CohortFolder:
    """Prepare a cohort, or go on with one that was interrupted.

    Every series becomes one finished file below ``OUT/.work``; a killed run does only what is
    missing, and tries again what was rejected. ``cohort.json`` is written last: without it the
    folder is no cohort. Memory holds one series a process and about 2 kB a case.

    Args:
        source: folder, file or ``.zip``.
        out: new, or one that this call began earlier.
        format: key of ``IMPORTERS`` or ``auto``.
        partition: how cases are divided where the table does not say.
        strict: the first case that cannot be prepared ends the run.

    Raises:
        UserError: source, table or output folder cannot be used, nothing could be prepared, or
            with ``strict`` anything could not.
    """
    source, out = source.expanduser().absolute(), out.expanduser().absolute()
    if not os.path.exists(source):
        raise UserError(f"{printable(source)} does not exist", "give the folder of your images")
    try:
        str(out).encode()  # the record writer takes text only
    except UnicodeEncodeError as error:
        raise UserError(f"{printable(out)}: the name is not UTF-8", "give another --out") from error
    settings = _settings(source, format, options, target, partition)
    if (out / INDEX).is_file():
        cohort = storage.open_cohort(out)
        _compare(out, dict(cohort.settings), settings)
        shutil.rmtree(out / WORK, ignore_errors=True)  # killed between the last file and this
        return cohort
    with _work_folder(out, settings) as work_folder:
        folder = unpack(source, work_folder / "source")
        with named_after(source, folder):
            importer = choose_importer(folder, format)
            cases, rejected = _read_all(
                importer.find(folder, options),
                Recipe(importer.load, options, target, folder),
                work_folder / "series",
                jobs=jobs,
                strict=strict,
            )
        rejected = [
            dataclasses.replace(one, cause=renamed(one.cause, folder, source)) for one in rejected
        ]
        rejected += _refuse_if(strict, _rows_without_case(options.table, cases, rejected))
        if cases or rejected:
            _write_rejected(out, rejected)
        reading = Reading()
        for case in cases:
            reading.add(case["case_id"], case["note"], case["images"])
        reading.add_rejected(rejected)
        reading.log()
        if not cases:
            first, remedy = "", "check the folder and --format"
            if rejected:
                first = f"; the first: {rejected[0].cause}"
                remedy = f"see {out / REJECTED} for all causes"
            cause = f"no case of {source} could be prepared ({len(rejected)} rejected{first})"
            raise UserError(cause, remedy)
        # In two splits a patient who is spelt in two ways would be a leak.
        if alike := spelt_alike(case["patient_id"] for case in cases):
            groups = (" and ".join(map(repr, map(printable, group))) for group in alike[:5])
            named = "; ".join(groups) + ("; ..." if len(alike) > 5 else "")
            log.warning(f"{ALIKE}: {named} ({ALIKE_REMEDY})")
        late = _refuse_if(strict, _assign(cases, options.table, partition))
        if late:
            cases = [case for case in cases if "split" in case]
            _write_rejected(out, rejected + late)
        _finish(out, work_folder, cases, settings, partition, target)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return storage.open_cohort(out)


def _settings(
    source: Path, format: str, options: Options, target: Target, partition: Partition
) -> Row:
    """What decides the result, as JSON."""
    table = options.table.path
    content = {
        "source": str(source),
        "format": format,
        **vars(options),
        "table": table and [str(table), hashlib.sha256(table.read_bytes()).hexdigest()],
        **vars(target),
        **vars(partition),
    }
    return json.loads(json.dumps(content))


def _refuse_if(strict: bool, late: list[Rejected]) -> list[Rejected]:
    """The same, or with ``--strict`` the first of them raised."""
    if strict and late:
        raise UserError(late[0].cause, late[0].remedy)
    return late


def _compare(out: Path, old: Row, new: Row) -> None:
    changed = [f"{k} {old.get(k)} -> {v}" for k, v in new.items() if old.get(k) != v]
    if changed:
        raise UserError(
            f"{out} was prepared with other settings: {'; '.join(changed)[:300]}",
            "give another --out, or delete that folder",
        )


@contextlib.contextmanager
def _work_folder(out: Path, settings: Row) -> Iterator[Path]:
    """The folder of unfinished work, held by this process alone."""
    folder = out / WORK
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file", "give a folder that does not exist yet as --out")
        if out.is_dir() and any(out.iterdir()) and not folder.is_dir():
            raise UserError(
                f"{out} is not empty and no cohort", "give a folder that does not exist yet"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is preparing {out}", "wait for it, or give another --out"
                ) from None
            record = folder / "settings.json"
            if record.is_file() and any((folder / "series").glob("*/*.json")):
                _compare(out, json.loads(record.read_text()), settings)
            else:
                replace_file(record, json.dumps(settings, indent=2) + "\n")
            try:
                yield folder
            except UserError:
                if not (out / REJECTED).is_file() and not any((folder / "series").glob("*/*.json")):
                    shutil.rmtree(folder, ignore_errors=True)  # nothing to go on with
                    with contextlib.suppress(OSError):  # not ours alone
                        out.rmdir()
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space is left for {out}", "free some; the same command then goes on"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(
                f"{error.filename or out} cannot be used ({error.strerror})",
                "give an --out that can be written, and check the permissions of the source",
            ) from error
        raise


def _read_all(
    found: Iterator[Series], recipe: Recipe, folder: Path, *, jobs: int, strict: bool
) -> tuple[list[Row], list[Rejected]]:
    """Prepare every series that is not done yet; (accepted, rejected), both sorted by case."""
    accepted: list[Row] = []
    done: list[Row] = []
    rejected: list[Rejected] = []
    doubles: list[Rejected] = []
    names: dict[str, Path] = {}

    def todo() -> Iterator[Series]:
        for series in found:
            if series.name in names:
                first = names[series.name]
                cause = f"{series.path}: the case id {series.name!r} is also that of {first}"
                doubles.append(recipe.rejected(series.rejected(cause, _RENAME)))
                continue
            names[series.name] = series.path
            rows = work.stored_rows(work.result_path(folder, series), series)
            if rows is None:
                yield series
            else:
                done.extend(map(work.compact, rows))

    with stored.progress("Preparing", "series") as advance:
        for results in map_in_children(
            # One job works in this process, where numpy may have several threads and round
            # otherwise (a grey level in a million); the commands give it one.
            functools.partial(work.prepare_one, recipe, folder),
            todo(),
            jobs=jobs,
            lost=lambda series, status: [
                recipe.rejected(lost_series(series, status, "check it, or use fewer --jobs"))
            ],
        ):
            accepted += [work.compact(one) for one in results if isinstance(one, dict)]
            rejected += _refuse_if(strict, [one for one in results if isinstance(one, Rejected)])
            advance(cases=len(accepted), rejected=len(rejected))
    accepted = sorted(accepted + done, key=lambda row: (row["case_id"], row["source"]))
    unique: list[Row] = []
    of_pixels: dict[str, Row] = {}
    for row in accepted:
        same = of_pixels.get(row["pixels"])
        if unique and unique[-1]["case_id"] == row["case_id"]:
            cause = f"the case id {row['case_id']!r} is also that of {unique[-1]['source']}"
            doubles.append(_reject(row, cause, _RENAME))
        elif same is not None:
            # In two splits they would make results look better than they are.
            cause = f"every pixel of {row['case_id']!r} is that of {same['case_id']!r}"
            doubles.append(_reject(row, f"{cause} ({same['source']})", _SAME_IMAGES))
        else:
            unique.append(row)
            of_pixels[row["pixels"]] = row
    rejected += _refuse_if(strict, doubles)
    rejected.sort(key=lambda one: (one.case_id, one.source))
    return unique, rejected


def _reject(row: Row, cause: str, remedy: str) -> Rejected:
    """A slice that was prepared and cannot be used."""
    source, images = row["source"], sum(row["images"].values())
    return Rejected(row["case_id"], row["patient_id"], source, f"{source}: {cause}", remedy, images)


def _rows_without_case(table: Table, cases: list[Row], rejected: list[Rejected]) -> list[Rejected]:
    """Rejections of rows that name nothing: a slip in a name would lose a label silently."""
    names = {case[key] for case in cases for key in ("series", "case_id", "patient_id")}
    for one in rejected:
        names |= {one.case_id, one.patient_id, re.sub(r"_s\d+$", "", one.case_id)}
    names = {composed(name) for name in names}
    example = min((case["case_id"] for case in cases), default="")
    return [
        Rejected(
            key,
            row.patient_id or "",
            str(table.path),
            f"{table.path}: line {row.line} names {key!r}, which the source does not hold",
            "correct the name" + (f"; case ids are like {example!r}" if example else ""),
        )
        for key, row in table.rows.items()
        if row.cine is None and printable(composed(key)) not in names
    ]


def _assign(cases: list[Row], table: Table, partition: Partition) -> list[Rejected]:
    """Set ``split`` of every case; returns rejections of those that have none."""
    labelled = [case for case in cases if case["label"] != UNLABELLED]
    for case in cases:
        if case["label"] == UNLABELLED:
            case["split"] = storage.UNLABELLED_SPLIT
    if all(row.split is None for row in table.rows.values()):
        labels: dict[str, list[int]] = defaultdict(list)
        for case in labelled:
            labels[case["patient_id"]].append(case["label"])
        splits = divide(labels, partition) if labels else {}
        for case in labelled:
            case["split"] = splits[case["patient_id"]]
        return []
    late: list[Rejected] = []
    seen: dict[str, set[str]] = defaultdict(set)
    for case in labelled:
        row = table.row(case["case_id"], case["series"], case["patient_id"])
        if row is None or row.split is None:
            cause = f"{table.path} gives {case['case_id']} no split"
            remedy = "give every labelled case a split, or none to have them divided"
            late.append(_reject(case, cause, remedy))
        else:
            case["split"] = row.split
            seen[case["patient_id"]].add(row.split)
    for patient, names in seen.items():
        if len(names) > 1:
            raise UserError(
                f"the table puts patient {patient} into {' and '.join(sorted(names))}",
                "a patient's cases belong to one split",
            )
    if len(late) == len(cases):
        raise UserError(late[0].cause, late[0].remedy)
    return late


def _finish(
    out: Path, folder: Path, cases: list[Row], settings: Row, partition: Partition, target: Target
) -> None:
    """Write the files of the cohort, the index last."""
    counts = dict(sorted(Counter(case["split"] for case in cases).items()))
    positive = Counter(case["split"] for case in cases if case["label"] == 1)
    records = folder / RECORDS
    for old in (records, out / RECORDS):
        shutil.rmtree(old, ignore_errors=True)
    records.mkdir()
    cases.sort(key=lambda case: (case["split"], case["case_id"]))
    storage.write_records(
        records,
        ((case["split"], work.read_example(folder / "series", case)) for case in cases),
        splits=counts,
        frames=target.frames,
        image_size=target.image_size,
    )
    records.rename(out / RECORDS)
    cases.sort(key=lambda case: case["case_id"])
    _write_table(out / MANIFEST, MANIFEST_COLUMNS, map(_manifest_row, cases))
    index = {
        "format": storage.FORMAT,
        **{key: getattr(target, key) for key in ("frames", "image_size", "spacing_mm")},
        "folds": partition.folds if any(n.startswith("fold_") for n in counts) else 0,
        "cases": counts,
        "positive": {name: positive[name] for name in counts},
        "settings": settings,
        "files": stored.hashes(
            out, [out / MANIFEST, out / REJECTED, *sorted((out / RECORDS).iterdir())]
        ),
    }
    replace_file(out / INDEX, json.dumps(index, indent=2) + "\n")


def _manifest_row(row: Row) -> Row:
    return row | {
        "slice": row["slice_index"],
        "label": "" if row["label"] == UNLABELLED else row["label"],
        "spacing_mm": "" if row["spacing_mm"] is None else f"{row['spacing_mm']:.6g}",
        "confidence": "" if row["confidence"] is None else f"{row['confidence']:.2f}",
        **{k: f"{row[k]:.6g}" for k in ("step_row", "step_column", "grey_low", "grey_high")},
    }


def read_rejected(cohort: Path) -> list[dict[str, str]]:
    """Rows of ``rejected.csv`` in a cohort's folder, finished or not."""
    return storage.read_rows(cohort / REJECTED)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    write_csv(path, columns, ({k: printable(v) for k, v in row.items()} for row in rows))


def _write_rejected(out: Path, rejected: list[Rejected]) -> None:
    _write_table(out / REJECTED, REJECTED_COLUMNS, map(vars, rejected))
