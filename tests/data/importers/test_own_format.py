"""A format of one's own: a module that adds a line to the table, for worker processes too."""

import importlib
import sys

import numpy as np
import pytest

from mvo_jax.data.cohort.partition import Partition
from mvo_jax.data.cohort.prepare import prepare, read_rejected
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import IMPORTERS, choose_importer
from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError

MODULE = '''
import numpy as np

from mvo_jax.data.importers.cine import reading
from mvo_jax.data.importers.formats import IMPORTERS
from mvo_jax.data.importers.walk import of_single_files


def load(series, options):
    """A movie of bytes, 32 pixels wide and high."""
    with reading(series.path, " as raw movie"):
        cine = np.fromfile(series.path, np.uint8).reshape(-1, 32, 32)
    return [series.slice(0, 1, cine=cine, pixel_mm=(2.0, 2.0))]


IMPORTERS["raw"] = of_single_files("raw", "raw movies", ".raw", load)
'''


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_module_adds_its_format_at_run_time(tmp_path, monkeypatch, jobs):
    (tmp_path / "raw_movies.py").write_text(MODULE)
    source = tmp_path / "source"
    source.mkdir()
    cine = np.random.default_rng(0).integers(0, 255, (10, 32, 32)).astype(np.uint8)
    for k, name in enumerate("ab"):
        np.roll(cine, k).tofile(source / f"{name}.raw")
    (source / "cut.raw").write_bytes(cine.tobytes()[:-1])
    with pytest.raises(UserError, match="in no format that is recognised"):
        choose_importer(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "raw_movies", raising=False)
    importlib.import_module("raw_movies")
    monkeypatch.setitem(IMPORTERS, "raw", IMPORTERS.pop("raw"))  # taken out again at the end
    cohort = prepare(
        source, tmp_path / "out", options=Options(), target=Target(frames=10, image_size=32),
        partition=Partition(), jobs=jobs,
    )  # fmt: skip
    assert dict(cohort.cases) == {"unlabelled": 2}
    (row,) = read_rejected(cohort.path)
    assert "cut.raw cannot be read as raw movie (ValueError" in row["cause"]
