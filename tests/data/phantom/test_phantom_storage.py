import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mvo_jax.data.phantom.storage import ensure_cohort, verify_split
from mvo_jax.errors import UserError

SMALL = {"preset": "paper", "seed": 0, "size": "tiny", "frames": 8, "image_size": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Path(ensure_cohort(tmp_path_factory.mktemp("data"), **SMALL).data_path)


@pytest.fixture
def cohort(made, tmp_path):
    """(Data folder, folder of a cohort in it), a copy to spoil."""
    folder = tmp_path / made.relative_to(made.parents[2])
    return tmp_path, shutil.copytree(made, folder)


def test_second_call_reuses_what_is_there(cohort, capsys):
    root, folder = cohort
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ensure_cohort(root, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert capsys.readouterr() == ("", "")


def test_every_parameter_has_its_own_folder(cohort):
    root, folder = cohort
    other = Path(ensure_cohort(root, **(SMALL | {"seed": 1})).data_path)
    assert other != folder
    assert sorted(path.name for path in root.iterdir()) == ["phantom"]  # nothing temporary is left


def test_progress_is_plain_lines_without_a_terminal(tmp_path, caplog, capsys):
    with caplog.at_level("INFO", "mvo_jax"):
        ensure_cohort(tmp_path, **SMALL)
    assert capsys.readouterr() == ("", "")
    lines = caplog.messages
    assert 9 <= len(lines) <= 11
    assert lines[-1].startswith("Simulating cohort: 32/32 cases")


def halved(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garbled(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("pattern", "damage", "words"),
    [
        ("dataset_info.json", Path.unlink, "is missing"),
        ("features.json", Path.unlink, "is missing"),
        ("*test*array_record*", Path.unlink, "is missing"),
        ("*test*array_record*", halved, "bytes instead of"),
        ("dataset_info.json", garbled, "bytes instead of"),
        ("checksums.json", garbled, "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(cohort, pattern, damage, words):
    root, folder = cohort
    (path,) = folder.glob(pattern)
    damage(path)
    with pytest.raises(UserError, match=words) as caught:
        ensure_cohort(root, **SMALL)
    assert str(path) in caught.value.cause
    assert str(folder) in caught.value.remedy


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ensure_cohort(tmp_path / "file" / "data", **SMALL)


def test_killed_generation_leaves_nothing_half_written(tmp_path):
    program = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from mvo_jax.data.phantom.storage import ensure_cohort\n"
        f"ensure_cohort({str(tmp_path)!r}, preset='paper', seed=0, size='demo', jobs=2)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert child.stderr is not None
    assert b"136/1360" in child.stderr.readline()  # it is in the middle of it
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    assert not (tmp_path / "phantom").exists()
    assert list(tmp_path.glob(".incomplete-*"))
    ensure_cohort(tmp_path, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phantom"]


def test_an_interrupted_generation_cleans_up_at_once(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mvo_jax.data.phantom.workers.simulate_case", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure_cohort(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once_do_no_harm(tmp_path):
    program = (
        "from mvo_jax.data.phantom.storage import ensure_cohort\n"
        f"ensure_cohort({str(tmp_path)!r}, **{SMALL!r})\n"
    )
    root = Path(__file__).parents[3]
    children = [subprocess.Popen([sys.executable, "-c", program], cwd=root) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phantom"]
    builder = ensure_cohort(tmp_path, **SMALL)
    for split in ("train", "validation", "test"):
        verify_split(builder, split)


def test_heavy_packages_are_imported_when_they_are_used(tmp_path):
    program = (
        "import sys\n"
        "import mvo_jax.data.importers.formats, mvo_jax.data.coarse_mask, mvo_jax.data.slices\n"
        "assert not any(name.startswith('scipy') for name in sys.modules)\n"
        "import mvo_jax.data.phantom.workers, mvo_jax.data.splits, mvo_jax.data.clips\n"
        "import mvo_jax.data.cohort.work, mvo_jax.data.checks\n"
        "heavy = {'jax', 'tensorflow_datasets', 'nibabel', 'pydicom', 'h5py', 'PIL', 'grain'}\n"
        "assert not heavy & set(sys.modules)\n"
        "import numpy as np\n"
        "from mvo_jax.data.cohort.locate import locate\n"
        "cine = np.random.default_rng(0).normal(9, 1, (8, 32, 32))\n"
        "locate([mvo_jax.data.slices.CineSlice(case_id='a', patient_id='a', slice_index=0,"
        " source='a', cine=cine, pixel_mm=(2.0, 2.0))])\n"
        "from mvo_jax.data.phantom.storage import ensure_cohort\n"
        f"ensure_cohort({str(tmp_path)!r}, **{SMALL!r})\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
