"""The simulated cohort on disk: generated once, complete or not there at all, checked when used."""

import errno
import json
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mvo_jax.data import stored
from mvo_jax.data.phantom.builder import Phantom, PhantomConfig
from mvo_jax.data.phantom.cohort import CohortSpec
from mvo_jax.errors import UserError

_CHECKSUMS = "checksums.json"
_INFO = "dataset_info.json"


def ensure_cohort(data_dir: str | os.PathLike, *, jobs: int | None = None, **spec: Any) -> Phantom:
    """Builder of a simulated cohort, generated first where the data folder lacks it.

    Generation writes to a temporary folder inside ``data_dir`` and renames it at the end: a killed
    run leaves no half-written cohort (its temporary folder goes at the next call) and of two
    processes that generate at once one result stays.

    Args:
        data_dir: folder that holds cohorts; may start with ``~``.
        **spec: fields of ``CohortSpec``.

    Raises:
        UserError: a value is out of range, the folder cannot be written, or the stored cohort is
            damaged.
    """
    cohort = CohortSpec(**spec)
    root = Path(data_dir).expanduser().absolute()
    below = Path("phantom", cohort.name, str(Phantom.VERSION))
    folder = root / below
    if not folder.exists():
        _generate(cohort, root, below, jobs=jobs)
    _check_complete(folder)
    with stored.quiet_tfds():
        return _builder(cohort, root)


def open_cohort(folder: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Builder of a simulated cohort whose own folder is there; UserError where it is damaged."""
    _check_complete(Path(folder))
    with stored.quiet_tfds():
        return tfds.builder_from_directory(folder)


def verify_split(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Check a split's files by the checksums written with them; UserError where one changed."""
    folder = Path(builder.data_path)
    sums = json.loads((folder / _CHECKSUMS).read_text())
    for name in builder.info.splits[split].filenames:
        stored.check_content(folder, name, sums, _damaged)


def _builder(spec: CohortSpec, root: Path) -> Phantom:
    about = f"Simulated cohort {spec.name}."
    config = PhantomConfig(name=spec.name, description=about, spec=spec)
    return Phantom(config=config, data_dir=root)


def _generate(spec: CohortSpec, root: Path, below: Path, *, jobs: int | None) -> None:
    """Write a cohort to ``root / below``, all or nothing."""
    owner = f".incomplete-{socket.gethostname()}-"
    temporary = root / f"{owner}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root, owner)
        temporary.mkdir()
    except OSError as error:
        raise UserError(
            f"The data folder {root} cannot be written ({error.strerror}).",
            "Set data.dir to a folder you may write to.",
        ) from error
    try:
        with (
            stored.progress("Simulating cohort", "cases", total=spec.cases) as advance,
            stored.quiet_tfds(),
        ):
            builder = _builder(spec, temporary)
            builder.jobs, builder.on_case = jobs, advance
            builder.download_and_prepare(
                download_dir=temporary / "downloads", file_format="array_record"
            )
        finished, folder = temporary / below, root / below
        sums = stored.hashes(finished, sorted(finished.iterdir()))
        (finished / _CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            finished.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster: its cohort is the same
                raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"No space is left in {root} for the simulated cohort {spec.name}.",
            "Free some space or set data.dir to a folder on another disk.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(root: Path, owner: str) -> None:
    """Remove temporary folders of killed runs on this machine."""
    for folder in root.glob(f"{owner}*"):
        process = folder.name.removeprefix(owner).split("-")[0]
        if process.isdigit():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except PermissionError:  # it runs, as another user
                pass


def _damaged(folder: Path, name: str, what: str) -> UserError:
    return UserError(
        f"The simulated cohort is damaged: {folder / name} {what}.",
        f"Delete the folder {folder} and run again: the same cohort is generated anew.",
    )


def _check_complete(folder: Path) -> None:
    """Check that every file of a cohort is there in its full size."""
    for name in (_INFO, _CHECKSUMS):
        if not (folder / name).is_file():
            raise _damaged(folder, name, "is missing")
    try:
        stored.check_files(folder, json.loads((folder / _CHECKSUMS).read_text()), _damaged)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(folder, _CHECKSUMS, "cannot be read") from None
