"""A prepared cohort on disk: TFDS files, a manifest and what they must hash to.

    COHORT/cohort.json     settings, splits, size and sha256 of every file; written last
    COHORT/manifest.csv    one row a case
    COHORT/rejected.csv    one row a case that could not be prepared, with its cause
    COHORT/tfds/           array_record files, dataset_info.json, features.json

A folder without ``cohort.json`` is not a cohort.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from mvo_jax.data.cohort.partition import parts_of_fold
from mvo_jax.data.phantom.builder import case_features
from mvo_jax.data.stored import check_content, check_files, quiet_tfds
from mvo_jax.errors import UserError

FORMAT = 1  # raised whenever an older reader would misunderstand the files
UNLABELLED_SPLIT = "unlabelled"
INDEX, MANIFEST, REJECTED, RECORDS = "cohort.json", "manifest.csv", "rejected.csv", "tfds"
_EXAMPLES_PER_FILE = 1024


@dataclasses.dataclass(frozen=True)
class CohortFolder:
    """A complete prepared cohort; it is divided into ``folds``, or into splits where that is 0."""

    path: Path
    frames: int  # of a clip
    image_size: int  # pixels of a side
    spacing_mm: float  # side of a pixel
    folds: int
    # By stored split: train, validation and test, or fold_0, fold_1 and so on; and ``unlabelled``.
    cases: Mapping[str, int]
    positive: Mapping[str, int]  # cases with MVO
    settings: Mapping[str, Any]  # how it was prepared
    files: Mapping[str, Mapping[str, Any]]  # name -> ``bytes`` and ``sha256``

    def stored_splits(self, name: str, fold: int = 0) -> list[str]:
        """The stored splits that make up train, validation, test or unlabelled.

        Args:
            fold: which fold is the test split; only of a cohort with folds.

        Raises:
            UserError: the cohort has no such split or fold.
        """
        if self.folds and name != UNLABELLED_SPLIT:
            parts = parts_of_fold(fold, self.folds)
            if name in parts:
                return [f"fold_{i}" for i in parts[name]]
        elif name in self.cases:
            return [name]
        if set(self.cases) == {UNLABELLED_SPLIT}:
            raise UserError(
                f"the cohort {self.path} has no split {name!r}: its {self.cases[UNLABELLED_SPLIT]} "
                "cases are unlabelled",
                "training and evaluation need LGE masks; prepare with them, or use this cohort for "
                "prediction only",
            )
        known = "train, validation, test" if self.folds else ", ".join(self.cases)
        raise UserError(
            f"the cohort {self.path} has no split {name!r}",
            f"it has: {known}; prepare again with --fractions or a split column to change that",
        )

    def builder(self) -> tfds.core.DatasetBuilder:
        """The TFDS builder; ``as_data_source(split=STORED_SPLIT)`` reads cases at random."""
        with quiet_tfds():
            return tfds.builder_from_directory(self.path / RECORDS)

    def manifest(self) -> dict[str, dict[str, str]]:
        """Rows of ``manifest.csv`` by case id; UserError where the file has changed."""
        check_content(self.path, MANIFEST, self.files, _damaged)
        return {row["case_id"]: row for row in read_rows(self.path / MANIFEST)}

    def verify(self, stored_split: str) -> None:
        """Check the content of a split's files; UserError where one has changed."""
        for name in self.files:
            if name.startswith(f"{RECORDS}/cohort-{stored_split}."):
                check_content(self.path, name, self.files, _damaged)


def open_cohort(path: str | os.PathLike) -> CohortFolder:
    """Open a prepared cohort and check that every file is there in its full size.

    Raises:
        UserError: no cohort, one still being prepared, of a newer version, or damaged.
    """
    folder = Path(path).expanduser().absolute()
    index = folder / INDEX
    if not index.is_file():
        if (folder / ".work").is_dir():
            raise UserError(
                f"the cohort {folder} is not finished",
                "repeat the command that prepares it; it goes on where it stopped",
            )
        raise UserError(
            f"{folder} is no prepared cohort ({INDEX} is missing)",
            "make one with: python -m mvo_jax prepare SOURCE --out COHORT",
        )
    try:
        content = json.loads(index.read_text())
        if content["format"] != FORMAT:
            raise UserError(
                f"{index} has format {content['format']}, this version reads {FORMAT}",
                "prepare the cohort again with this version",
            )
        cohort = CohortFolder(
            path=folder,
            frames=int(content["frames"]),
            image_size=int(content["image_size"]),
            spacing_mm=float(content["spacing_mm"]),
            folds=int(content["folds"]),
            cases={str(k): int(v) for k, v in content["cases"].items()},
            positive={str(k): int(v) for k, v in content["positive"].items()},
            settings=content["settings"],
            files=content["files"],
        )
        check_files(folder, cohort.files, _damaged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, INDEX, "cannot be read") from error
    return cohort


def write_records(
    folder: Path,
    examples: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    splits: Iterable[str],
    frames: int,
    image_size: int,
) -> None:
    """Write TFDS files to an empty folder, one example in memory at a time.

    Args:
        examples: (stored split, example of ``case_features``), one split after the other.
    """
    features: Any = case_features(frames, image_size, ())
    version = tfds.core.Version("1.0.0")
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name="cohort", version=version, data_dir=str(folder), module_name=__name__
        ),
        description="Short-axis cine prepared by mvo_jax.",
        features=features,
        disable_shuffling=True,
    )
    serialiser = ExampleSerializer(features.get_serialized_info())
    names: dict[str, Any] = {
        split: tfds.core.ShardedFileTemplate(
            data_dir=tfds.core.Path(folder),
            dataset_name="cohort",
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        )
        for split in splits
    }
    lengths: dict[str, list[int]] = {split: [] for split in names}
    sizes = dict.fromkeys(names, 0)
    writer = None
    # TFDS's own writers keep up to 1 GB of examples in memory, or a file open for every split. They
    # put the fields of an example in random order, so that no two cohorts have the same bytes.
    for split, example in examples:
        if not lengths[split] or lengths[split][-1] == _EXAMPLES_PER_FILE:
            if writer is not None:
                writer.close()
            path = names[split].sharded_filepath(shard_index=len(lengths[split]), num_shards=None)
            writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
            lengths[split].append(0)
        assert writer is not None
        fields = serialiser.get_tf_example(features.encode_example(dict(example)))
        record = fields.SerializeToString(deterministic=True)
        writer.write(record)
        lengths[split][-1] += 1
        sizes[split] += len(record)
    if writer is not None:
        writer.close()
    with quiet_tfds():
        info.set_file_format("array_record")
        about = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths[split],
                num_bytes=sizes[split],
                filename_template=names[split],
            )
            for split in names
        ]
        info.set_splits(tfds.core.SplitDict(about))
        info.write_to_directory(folder)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV table."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _damaged(folder: Path, name: str, what: str) -> UserError:
    return UserError(
        f"the cohort is damaged: {folder / name} {what}",
        f"delete the folder {folder} and prepare it again",
    )
