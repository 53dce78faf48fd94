"""`python -m mvo_jax prepare`: what it writes and says, and what it refuses.

Exit code 0: a cohort is there, rejected cases are counted on stderr and listed in rejected.csv;
2: no cohort, with one line of cause and one of remedy.
"""

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mvo_jax.cli.main import run
from tests.cli.conftest import rows

FRAMES, SIZE = 10, 32
SHAPE = [f"--frames={FRAMES}", f"--image_size={SIZE}", "--spacing_mm=2", "--jobs=1"]
ALL = "--fractions=1,0,0"


def write_case(folder: Path, name: str, *, mvo: bool = False, **changes) -> None:
    """A bright disc that beats, in a ring of myocardium."""
    folder.mkdir(parents=True, exist_ok=True)
    at = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2))
    radius = 7 + 2 * np.cos(2 * np.pi * np.arange(FRAMES) / FRAMES)
    noise = np.random.default_rng(sum(name.encode())).integers(0, 50, (FRAMES, SIZE, SIZE))
    mask = np.where((at > 6) & (at < 10), 3, 0).astype(np.uint8)
    if mvo:
        mask[16, 24] = 2
    content = {
        "cine": ((at < radius[:, None, None]) * 200 + noise).astype(np.int16),
        "pixel_mm": 2.0,
        "lge_mask": mask,
    }
    np.savez(folder / f"{name}.npz", **(content | changes))


@pytest.fixture
def source(tmp_path) -> Path:
    """Six sound patients, half of them with MVO."""
    for i in range(6):
        write_case(tmp_path / "source", f"p{i}", mvo=i % 2 == 0)
    return tmp_path / "source"


def prepare(source: Path, out: Path, *flags: object) -> list[dict[str, str]]:
    """The manifest of a cohort that is made."""
    assert run("prepare", [str(source), f"--out={out}", *SHAPE, *map(str, flags)]) == 0
    return rows(out / "manifest.csv")


def test_a_bad_case_among_good_ones(source, tmp_path, capsys):
    (source / "broken.npz").write_bytes(b"")
    out = tmp_path / "out"
    assert len(prepare(source, out)) == 6
    captured = capsys.readouterr()
    for words in ("1 cases were rejected", str(out / "rejected.csv"), "broken.npz"):
        assert words in captured.err
    assert "Traceback" not in captured.err
    assert re.search(r"train +4 .*2 with MVO", captured.out)
    assert {path.name for path in out.iterdir()} == {
        "cohort.json", "manifest.csv", "rejected.csv", "tfds"
    }  # fmt: skip
    (row,) = rows(out / "rejected.csv")
    assert row["case_id"] == "broken"
    assert row["cause"]
    assert row["remedy"]


def test_the_images_of_one_patient_under_two_names(source, tmp_path):
    """Also where the second has no mask, so that its crop is placed otherwise, or another type."""
    with np.load(source / "p0.npz") as content:
        first = dict(content)
    del first["lge_mask"]
    first["cine"] = first["cine"].astype(np.float64)
    np.savez(source / "p9.npz", **first)
    assert len(prepare(source, tmp_path / "out")) == 6
    (row,) = rows(tmp_path / "out" / "rejected.csv")
    assert row["case_id"] == "p9"
    assert "every pixel of 'p9' is that of 'p0'" in row["cause"]


def test_a_mask_on_which_nothing_is_drawn_is_told(source, tmp_path):
    write_case(source, "blank", lge_mask=np.zeros((SIZE, SIZE), np.uint8))
    noted = {row["case_id"]: row for row in prepare(source, tmp_path / "out")}
    assert noted["blank"]["label"] == ""
    assert "nothing is drawn in its LGE mask" in noted["blank"]["note"]
    assert "LGE" not in noted["p1"]["note"]


def test_strict_ends_at_it_and_goes_on_when_it_is_mended(source, tmp_path, refused):
    (source / "broken.npz").write_bytes(b"")
    out = tmp_path / "out"
    cause, _ = refused("prepare", source, f"--out={out}", "--strict", *SHAPE)
    assert "broken.npz" in cause
    assert not any((out / name).exists() for name in ("cohort.json", "manifest.csv", "tfds"))
    write_case(source, "broken")
    assert len(prepare(source, out, "--strict")) == 7
    assert not (out / ".work").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--frames=4"], "frames is 4"),
        (["--frames=257"], "frames is 257"),
        (["--frames=many"], "many"),
        (["--image_size=8"], "image_size is 8"),
        (["--spacing_mm=0"], "spacing_mm is 0"),
        (["--spacing_mm=nan"], "spacing_mm is nan"),
        (["--window=0"], "1 numbers"),
        (["--window=10,5"], "is empty"),
        (["--window=a,b"], "a,b"),
        (["--window=nan,5"], "is empty"),
        (["--fractions=0.5,0.5"], "0.5,0.5"),
        (["--fractions=0.9,0.2,-0.1"], "0.9,0.2,-0.1"),
        (["--fractions=0.5,0.2,0.2"], "0.5,0.2,0.2"),
        (["--fractions=nan,0.5,0.5"], "nan,0.5,0.5"),
        (["--fractions=half,0.2,0.3"], "half"),
        (["--folds=2"], "2 folds"),
        (["--folds=-3"], "-3 folds"),
        (["--folds=7"], "6 labelled patients"),
        (["--jobs=0"], "jobs"),
        (["--format=bids"], "bids"),
        (["--format=segment"], "no case"),
        (["--mask_values=4=scar"], "4=scar"),
        (["--mask_values=mvo=4"], "mvo=4"),
        (["--pixel_mm=wide"], "wide"),
        (["--patient_from=name"], "patient_from"),
        (["--table=none.csv"], "none.csv"),
        (["--end_diastole_first"], "end-diastole is not known"),
        (["stray"], "stray"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_flags_that_mean_nothing(source, tmp_path, refused, flags, words):
    cause, _ = refused("prepare", source, f"--out={tmp_path / 'out'}", *SHAPE, *flags)
    assert words in cause
    assert not (tmp_path / "out" / "cohort.json").exists()
    assert not (tmp_path / "out" / "tfds").exists()


def test_nothing_given(refused, source, tmp_path):
    assert "SOURCE is missing" in refused("prepare", f"--out={tmp_path / 'out'}")[0]
    assert "out" in refused("prepare", source)[0]
    assert "does not exist" in refused("prepare", tmp_path / "no", f"--out={tmp_path / 'out'}")[0]
    (tmp_path / "void").mkdir()
    cause, remedy = refused("prepare", tmp_path / "void", f"--out={tmp_path / 'out'}")
    assert "holds no file" in cause
    assert "--format" in remedy
    assert not (tmp_path / "out").exists()
    assert "does not exist" in refused("inspect", tmp_path / "no")[0]
    assert "SOURCE is missing" in refused("inspect")[0]


def test_an_output_that_is_in_use(source, tmp_path, refused):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert "not empty" in refused("prepare", source, f"--out={full}", *SHAPE)[0]
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    assert "is a file" in refused("prepare", source, f"--out={full / 'notes.txt'}", *SHAPE)[0]
    inside = full / "notes.txt" / "out"
    assert "notes.txt" in refused("prepare", source, f"--out={inside}", *SHAPE)[0]
    assert (full / "notes.txt").read_text() == "mine"


def test_an_output_whose_name_is_not_utf8(source, tmp_path, refused):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller")
    cause, _ = refused("prepare", source, f"--out={out}", *SHAPE)
    assert "M\\udcfcller: the name is not UTF-8" in cause
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert len(prepare(source, tmp_path / "Müller 患者")) == 6


def test_archives(source, tmp_path, refused):
    path, out = tmp_path / "images.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as archive:
        for image in sorted(source.iterdir()):
            archive.write(image, f"study/{image.name}")
    assert len(prepare(path, out)) == 6
    assert not (out / ".work").exists()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil.npz", b"x")
    cause, remedy = refused("prepare", path, f"--out={tmp_path / 'no'}", *SHAPE)
    assert "'../../evil.npz', which leads out of it" in cause
    assert "unpack it yourself" in remedy
    assert not (tmp_path / "no").exists()
    assert not list(tmp_path.parent.rglob("evil.npz"))


def test_another_cohort_is_not_overwritten(source, tmp_path, refused):
    out = tmp_path / "out"
    prepare(source, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    cause, _ = refused("prepare", source, f"--out={out}", *SHAPE, "--frames=12")
    assert "frames 10 -> 12" in cause
    prepare(source, out)  # the same again is done
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_output_inside_the_source(source):
    """A cohort below the images would be read as one of them the next time."""
    assert len(prepare(source, source / "cohort")) == 6
    assert rows(source / "cohort" / "rejected.csv") == []
    assert len(prepare(source, source.parent / "again")) == 6


def test_one_case(source, tmp_path, refused):
    one = source / "p0.npz"
    cause, remedy = refused("prepare", one, f"--out={tmp_path / 'out'}", *SHAPE)
    assert "1 labelled patients" in cause
    assert "--fractions 1,0,0" in remedy
    assert [row["split"] for row in prepare(one, tmp_path / "all", ALL)] == ["train"]


def test_all_cases_bad(tmp_path, refused):
    for name in ("a", "b"):
        write_case(tmp_path / "source", name, cine=np.zeros((FRAMES, SIZE, SIZE)))
    out = tmp_path / "out"
    cause, remedy = refused("prepare", tmp_path / "source", f"--out={out}", *SHAPE)
    assert "2 rejected" in cause
    assert "constant" in cause
    assert str(out / "rejected.csv") in remedy
    assert not (out / "cohort.json").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_labels_against_masks(tmp_path, jobs, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    for name, mvo in (("right", True), ("one", False), ("nought", True), ("silent", True)):
        write_case(source, name, mvo=mvo)
    table = tmp_path / "labels.csv"
    table.write_bytes("\ufeffcase_id,label\r\nright,1\r\none,1\r\nnought,0\r\n".encode())
    kept = prepare(source, out, f"--table={table}", ALL, f"--jobs={jobs}")
    assert "2 cases were rejected" in capsys.readouterr().err
    assert {row["case_id"]: row["label"] for row in kept} == {"right": "1", "silent": "1"}
    causes = {row["case_id"]: row["cause"] for row in rows(out / "rejected.csv")}
    assert "label 1 and the LGE mask has no MVO" in causes["one"]
    assert "label 0 and the LGE mask has MVO" in causes["nought"]


def test_splits_of_a_table(source, tmp_path, refused):
    table = tmp_path / "splits.csv"
    wanted = {f"p{i}": ("train", "validation", "test")[i % 3] for i in range(6)}
    lines = [f"{case},{split}\n" for case, split in wanted.items()]
    table.write_text("case_id,split\n" + "".join(lines))
    kept = prepare(source, tmp_path / "out", f"--table={table}")
    assert {row["case_id"]: row["split"] for row in kept} == wanted
    # A case without a split is told, not put somewhere.
    table.write_text("case_id,split\n" + "".join(lines[:5]) + "p5,\n")
    some = tmp_path / "some"
    assert len(prepare(source, some, f"--table={table}")) == 5
    (row,) = rows(some / "rejected.csv")
    assert (row["case_id"], "no split" in row["cause"]) == ("p5", True)
    table.write_text("case_id,split,patient_id\np0,train,A\np1,test,A\n")
    cause, remedy = refused("prepare", source, f"--out={tmp_path / 'no'}", f"--table={table}")
    assert "A into test and train" in cause
    assert "one split" in remedy
    assert not (tmp_path / "no" / "cohort.json").exists()


def test_a_process_that_dies_costs_one_case(tmp_path, capsys, monkeypatch):
    """Two processes, one of which is killed as the kernel does when memory runs out."""
    source, out = tmp_path / "source", tmp_path / "out"
    for name in ("a", "b", "killer"):
        write_case(source, name)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def die(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('killer.npz'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(die)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    assert [row["case_id"] for row in prepare(source, out, ALL, "--jobs=2")] == ["a", "b"]
    assert "killer.npz" in capsys.readouterr().err
    (row,) = rows(out / "rejected.csv")
    assert "status -9" in row["cause"]


def test_the_fresh_command_says_nothing_but_what_matters(source, tmp_path, command):
    """A new interpreter: libraries keep quiet, errors have no traceback unless asked for."""
    (source / "broken.npz").write_bytes(b"")
    no = f"--out={tmp_path / 'no'}"
    done = command("-m", "mvo_jax", "prepare", source, f"--out={tmp_path / 'out'}", *SHAPE)
    assert done.returncode == 0
    assert "broken.npz" in done.stderr
    assert "Warning" not in done.stderr
    failed = command("-m", "mvo_jax", "prepare", source / "broken.npz", no, *SHAPE)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr + failed.stdout
    assert len(failed.stderr.strip().splitlines()) <= 3
    debug = command("-m", "mvo_jax", "prepare", tmp_path / "none", no, "--debug")
    assert "Traceback" in debug.stderr
    assert debug.returncode != 0
