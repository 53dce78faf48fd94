"""`predict` and `inspect`: from a streamed run on several slices a patient to pages and tables."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mvo_jax.cli.main import run
from mvo_jax.data.cohort import heart
from mvo_jax.data.cohort.locate import Found
from mvo_jax.evaluation.pages import case_results
from tests.cli.conftest import rows
from tests.data.importers import writers

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(os.environ.get("MVO_JAX_SAMPLES", ROOT.parent / "shared" / "samples"))


def predict(workdir: Path, source: Path, out: Path, *flags: str) -> list[dict[str, str]]:
    """What is predicted of each slice."""
    assert run("predict", [f"--workdir={workdir}", str(source), f"--out={out}", *flags]) == 0
    return rows(out / "predictions.csv")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> Path:
    """A simulated cohort with two slices a patient."""
    folder = tmp_path_factory.mktemp("several")
    shape = ["--frames=8", "--image_size=32", "--slices_per_patient=2"]
    assert run("phantom", [f"--data_dir={folder}", "--size=tiny", "--preset=easy", *shape]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tiny, cohorts, tmp_path_factory) -> Path:
    """A run of a few steps, read from disk; never evaluated."""
    workdir = tmp_path_factory.mktemp("runs") / "streamed"
    changes = {
        "data.dir": cohorts,
        "data.slices_per_patient": 2,
        "data.device_budget_mb": 0,
        "model.variant": "cgmr",
        "model.mask_size": 8,
        "train.total_steps": 4,
        "train.eval_every": 4,
        "optimizer.warmup_steps": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    home = Path.cwd()
    os.chdir(ROOT)
    try:
        assert run("train", [*tiny, *flags, f"--workdir={workdir}"]) == 0
    finally:
        os.chdir(home)
    return workdir


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "evaluated"
    shutil.copytree(trained, workdir)
    assert run("eval", [f"--workdir={workdir}"]) == 0
    return workdir


def beating(cases: int, *, frames: int = 10, size: int = 96, seed: int = 0) -> np.ndarray:
    """A bright disc that beats in the middle of a noisy image."""
    draws = np.random.default_rng(seed)
    at = np.hypot(*(np.mgrid[:size, :size] - size / 2))
    radius = 14 + 4 * np.cos(2 * np.pi * np.arange(frames) / frames)
    disc = 900.0 * (at < radius[:, None, None])
    return (disc + draws.integers(50, 150, (cases, frames, size, size))).astype(np.uint16)


@pytest.fixture
def images(tmp_path) -> Path:
    """Two patients, the first with two slices, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    np.savez(folder / "a.npz", cine=beating(2), pixel_mm=1.5, patient_id=["A", "A"])
    np.savez(folder / "b.npz", cine=beating(1, frames=25, seed=1)[0], pixel_mm=1.5)
    (folder / "c.npz").write_bytes(b"not an archive")
    return folder


@pytest.fixture
def unsure(monkeypatch) -> None:
    """A locator that finds nothing."""
    monkeypatch.setattr(heart, "locate", lambda slices: Found(np.zeros(2), 0.25))


def test_eval_scores_patients_too(evaluated):
    cases, patients = (
        rows(evaluated / f"predictions_{name}test.csv") for name in ("", "patients_")
    )
    assert (len(cases), len(patients)) == (16, 8)
    for patient in patients:
        own = [c for c in cases if c["patient_id"] == patient["patient_id"]]
        assert int(patient["slices"]) == len(own) == 2
        assert float(patient["probability"]) == max(float(c["probability"]) for c in own)
        assert int(patient["label"]) == max(int(c["label"]) for c in own)
    summary = json.loads((evaluated / "metrics.json").read_text())
    assert summary["patient_level"]["cases"] == 8
    assert summary["patient_rule"]["threshold"] == float(patients[0]["threshold"])
    assert "maximum over the slices" in (evaluated / "report.html").read_text()


def test_a_cohort_is_predicted_as_eval_does(evaluated, cohorts, tmp_path, capsys):
    out = tmp_path / "out"
    found = {row["case_id"]: row for row in predict(evaluated, cohorts, out, "--pictures=3")}
    printed = capsys.readouterr().out
    assert "Research software" in printed
    assert str(out / "summary.html") in printed
    assert len(found) == 64  # all splits
    summary = json.loads((evaluated / "metrics.json").read_text())
    for row in rows(evaluated / "predictions_test.csv"):
        ours = found[row["case_id"]]
        # The same program on the same batch size; only the cases beside it differ.
        assert float(ours["probability"]) == pytest.approx(float(row["probability"]), abs=1e-6)
        assert float(ours["threshold"]) == summary["threshold"]["value"]
        assert ours["label"] == row["label"]
    content = json.loads((out / "predictions.json").read_text())
    assert "not for clinical use" in content["note"]
    assert content["threshold"]["origin"].endswith("as in metrics.json")
    assert len(content["patients"]) == len(rows(out / "predictions_patients.csv")) == 32
    # Pictures of the three highest probabilities.
    drawn = [row for row in content["cases"] if row["picture"]]
    assert len(drawn) == 3
    least = min(row["probability"] for row in drawn)
    assert sum(row["probability"] > least for row in content["cases"]) <= 2
    for row in drawn:
        with Image.open(out / row["animation"]) as animation:
            assert getattr(animation, "n_frames", 1) == 8
            assert animation.size == (2 * 256 + 6, 256)  # the coarse map beside the cine
        with Image.open(out / row["picture"]) as picture:
            assert picture.width > picture.height
    page = (out / "summary.html").read_text()
    assert "Research software" in page
    assert "trained on simulated images only" in page
    assert page.count('<article class="case">') == 3
    assert page.count('src="data:image/') == 6  # of few cases the page can be sent alone
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # works offline
    assert "<script" not in page


def test_images_are_brought_to_the_geometry_and_a_bad_file_stops_nothing(
    evaluated, images, tmp_path, refused, monkeypatch, unsure
):
    monkeypatch.setattr(case_results, "_EMBEDDED", 2)  # the page of three names its pictures
    out = tmp_path / "out"
    cause, _ = refused("predict", f"--workdir={evaluated}", images, f"--out={out}", code=4)
    assert "c.npz" in cause
    kept = ("case_id", "centre_from", "confidence", "crop_to_review")
    assert [[row[name] for name in kept] for row in rows(out / "predictions.csv")] == [
        [case, "motion", "0.25", "1"] for case in ("a_s00", "a_s01", "b")
    ]
    assert [row["case_id"] for row in rows(out / "failed.csv")] == ["c"]
    assert [r["slices"] for r in rows(out / "predictions_patients.csv")] == ["2", "1"]
    content = json.loads((out / "predictions.json").read_text())
    assert {row["label"] for row in content["cases"]} == {None}
    with Image.open(out / "pictures" / "b.webp") as animation:
        assert getattr(animation, "n_frames", 1) == 8  # 25 phases in the file
    page = (out / "summary.html").read_text()
    assert re.findall('src="([^"]*)"', page) == [
        f"pictures/{case}.{kind}" for case in ("a_s00", "a_s01", "b") for kind in ("webp", "png")
    ]
    assert "Not predicted" in page
    assert page.count("crop to review</strong>") == 3
    assert "truth unknown" in page
    assert not (out / "unpacked").exists()


def test_an_archive_goes_by_its_own_name(evaluated, images, tmp_path, refused, capsys):
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", images)
    out = tmp_path / "out"
    cause, _ = refused("predict", f"--workdir={evaluated}", archive, f"--out={out}", code=4)
    assert cause.count(f"{archive}/c.npz") == 1
    assert [row["source"] for row in rows(out / "predictions.csv")][-1] == f"{archive}/b.npz"
    for path in ("predictions.json", "failed.csv", "summary.html"):
        text = (out / path).read_text()
        assert archive in text
        assert "unpacked" not in text
    cause, _ = refused("inspect", archive, f"--out={tmp_path / 'page.html'}", code=4)
    assert "cannot be read or prepared" in cause
    assert "unpacked" not in capsys.readouterr().out


def test_what_a_model_may_have_learned_from_is_told(evaluated, cohorts, images, tmp_path):
    found = predict(evaluated, cohorts, tmp_path / "cohort", "--pictures=0")
    assert {row["split"] for row in found} == {"train", "validation", "test"}
    page = (tmp_path / "cohort" / "summary.html").read_text()
    assert "Slices of the splits test, train, validation are here" in page
    found = predict(evaluated, images / "b.npz", tmp_path / "new", "--pictures=0")
    assert {row["split"] for row in found} == {""}
    assert "Slices of the splits" not in (tmp_path / "new" / "summary.html").read_text()


def test_without_overlay(evaluated, images, tmp_path):
    out = tmp_path / "out"
    predict(evaluated, images / "b.npz", out, "--nooverlay")
    with Image.open(out / "pictures" / "b.webp") as animation:
        assert animation.size == (256, 256)
    assert "Predicted maps" not in (out / "summary.html").read_text()
    assert not (out / "predictions_patients.csv").exists()
    assert not (out / "failed.csv").exists()


def test_the_threshold_of_a_run_that_was_never_evaluated(
    trained, evaluated, images, tmp_path, refused, capsys
):
    one = images / "b.npz"
    predict(trained, one, tmp_path / "chosen")
    assert "never evaluated" in capsys.readouterr().err
    chosen = json.loads((tmp_path / "chosen" / "predictions.json").read_text())["threshold"]
    summary = json.loads((evaluated / "metrics.json").read_text())
    assert chosen["value"] == summary["threshold"]["value"]
    assert chosen["patient_value"] == summary["patient_rule"]["threshold"]
    predict(trained, one, tmp_path / "told", "--threshold=0.25")
    found = json.loads((tmp_path / "told" / "predictions.json").read_text())["threshold"]
    assert (found["value"], found["origin"]) == (0.25, "given on the command line")
    (tmp_path / "file").write_text("")
    words = (f"--out={tmp_path / 'none'}", f"--data_dir={tmp_path / 'file' / 'data'}")
    cause, remedy = refused("predict", f"--workdir={trained}", one, *words)
    assert "no threshold is known" in cause
    assert "--threshold" in remedy
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("workdir", "source", "words"),
    [
        ("nowhere", "none", "config.json does not exist"),
        ("unsaved", "none", "has no checkpoints"),
        ("evaluated", "none", "does not exist"),
        ("evaluated", "empty", "no file"),
        ("evaluated", "unreadable.npz", "unreadable.npz"),
    ],
)
def test_what_cannot_be_predicted_leaves_nothing(
    evaluated, tmp_path, refused, workdir, source, words
):
    for name in ("unsaved", "empty"):
        (tmp_path / name).mkdir()
    shutil.copy(evaluated / "config.json", tmp_path / "unsaved")
    (tmp_path / "unreadable.npz").write_bytes(b"")
    run_folder = evaluated if workdir == "evaluated" else tmp_path / workdir
    out = tmp_path / "results" / "out"
    cause, _ = refused("predict", f"--workdir={run_folder}", tmp_path / source, f"--out={out}")
    assert words in cause
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_out_must_be_free_and_writable(evaluated, images, tmp_path, refused):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    inside = f"--out={full / 'notes.txt' / 'o'}"
    for words, *more in (("not an empty folder", f"--out={full}"), ("notes.txt", inside), ("out",)):
        assert words in refused("predict", f"--workdir={evaluated}", images / "b.npz", *more)[0]
    assert [path.name for path in full.iterdir()] == ["notes.txt"]


def test_a_cohort_of_another_geometry(evaluated, tmp_path, refused):
    source = tmp_path / "source.npz"
    np.savez(source, cine=beating(2), pixel_mm=1.5)
    small, same, out = (tmp_path / name for name in ("small", "same", "out"))
    for path, *flags in ((small, "--spacing_mm=1.5"), (same, "--spacing_mm=4", "--frames=12")):
        shape = ["--image_size=32", "--jobs=1", *flags]
        assert run("prepare", [str(source), f"--out={path}", *shape]) == 0
    # 48 mm of a heart that was trained on in 122 mm.
    cause, remedy = refused("predict", f"--workdir={evaluated}", small, f"--out={out}")
    assert "48 mm" in cause
    assert "--spacing_mm=3.797" in remedy
    assert not out.exists()
    # Another number of frames and another spacing are resampled.
    assert len(predict(evaluated, same, out)) == 2


def test_maps_go_back_to_the_source_as_nifti(evaluated, cohorts, images, tmp_path, refused):
    source, out = tmp_path / "nifti", tmp_path / "out"
    writers.write_nifti(source, "n", beating(2).swapaxes(0, 1), None, pixel_mm=1.5)
    cause, _ = refused("predict", f"--workdir={evaluated}", cohorts, "--nifti", f"--out={out}")
    assert "crops alone" in cause
    assert not out.exists()
    found = predict(evaluated, source, out, "--nifti")
    assert {row["map"] for row in found} == {"maps/n_mvo_map.nii.gz"}
    cine, coarse = (
        nibabel.Nifti1Image.from_filename(path)
        for path in (source / "n_cine.nii.gz", out / "maps/n_mvo_map.nii.gz")
    )
    assert coarse.shape == cine.shape[:3]
    assert np.array_equal(coarse.affine, cine.affine)  # type: ignore[arg-type]
    assert coarse.get_fdata().any()
    # No place in space: told, and the predictions are there.
    (images / "c.npz").unlink()
    assert {row["map"] for row in predict(evaluated, images, tmp_path / "none", "--nifti")} == {""}
    assert not (tmp_path / "none" / "maps").exists()


def test_predict_on_real_cine(evaluated, tmp_path):
    source = SAMPLES / "sunnybrook" / "dicom" / "SCD0000101"
    if not source.is_dir():
        pytest.skip(f"the Sunnybrook samples are not at {SAMPLES} (set MVO_JAX_SAMPLES)")
    out = tmp_path / "out"
    found = predict(evaluated, source, out)
    assert [int(row["slice_index"]) for row in found] == [0, 1, 2]
    assert len({row["patient_id"] for row in found}) == 1
    assert len(list((out / "pictures").glob("*.webp"))) == 3


def test_inspect_of_a_simulated_cohort(cohorts, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run("inspect", [str(cohorts), f"--out={page}", "--tiles=10"]) == 0
    printed = capsys.readouterr().out
    assert "no check failed" in printed
    assert re.search(r"train +16 +32 +16 +16 +0", printed)
    text = page.read_text()
    assert text.count('<div class="pair">') == 10
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)


def test_inspect_shows_every_decision(tmp_path, capsys):
    source, page = tmp_path / "source", tmp_path / "page.html"
    drawn = np.zeros((2, 96, 96), np.uint8)
    drawn[1, 36:60, 36:60], drawn[1, 40:44, 40:44] = 3, 2
    writers.write_dicom(source, "A", beating(2).swapaxes(0, 1), drawn, pixel_mm=1.5)
    shutil.copy(next((source / "A").glob("*_0.dcm")), source / "A" / "copy.dcm")
    nibabel.save(nibabel.Nifti1Image(drawn.T, np.eye(4)), source / "B_lge_mask.nii.gz")
    assert run("inspect", [str(source), f"--out={page}", "--image_size=32"]) == 4
    assert "images: 21: 20 used, 1 copies" in capsys.readouterr().out
    text = re.sub(r"<[^>]+>", "|", page.read_text())
    for words in (
        "What is not used", "B_lge_mask.nii.gz is named like a drawing", "rename it like",
        "10 used, 1 copies", "1 copies (same SOPInstanceUID) left out", "as stored",
        "|1 of 2|", "|none|", "|mask|", "|MVO|", "|unlabelled|",
    ):  # fmt: skip
        assert words in text
    # A cohort says what was noted when it was prepared.
    cohort = tmp_path / "cohort"
    shape = ["--image_size=32", "--fractions=1,0,0", "--jobs=1"]
    assert run("prepare", [str(source), f"--out={cohort}", *shape]) == 0
    assert run("inspect", [str(cohort), f"--out={page}"]) == 4  # one class in a split
    text = page.read_text()
    assert "1 copies (same SOPInstanceUID) left out" in text
    assert "B_lge_mask.nii.gz is named like a drawing" in text


def test_inspect_of_images_with_faults(images, tmp_path, refused, capsys):
    shutil.copy(images / "b.npz", images / "again.npz")
    page = tmp_path / "page.html"
    cause, remedy = refused("inspect", images, f"--out={page}", code=4)
    assert "same pixels as another case" in cause
    assert "cannot be read or prepared" in cause
    assert str(page) in remedy
    text = page.read_text()
    assert "2 checks failed" in text
    assert text.count('<figure class="flawed">') == 1
    assert "c.npz" in text


def test_inspect_knows_what_prepare_did(images, tmp_path, capsys, unsure):
    out, page = tmp_path / "cohort", tmp_path / "page.html"
    assert run("prepare", [str(images), f"--out={out}", "--jobs=1"]) == 0
    printed = capsys.readouterr().out
    assert "3 crops are to be reviewed" in printed
    assert "3 slices of 2 patients, without label" in printed
    assert run("inspect", [str(out), f"--out={page}"]) == 0
    printed = capsys.readouterr().out
    assert "frames in the source: 10 (2), 25 (1)" in printed
    assert "crops placed by: motion (3)" in printed
    assert f"rejected: 1 when it was prepared, see {out / 'rejected.csv'}" in printed
    assert "look    crop to review" in printed
    assert page.read_text().count(", crop to review") == 3


@pytest.fixture(scope="module")
def bundle(evaluated, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    assert run("export", [f"--workdir={evaluated}", f"--out={out}", "--format=onnx"]) == 0
    return out


def test_a_bundle_predicts_a_cohort_as_eval_does(evaluated, bundle, cohorts, tmp_path):
    out = tmp_path / "out"
    assert run("predict", [f"--bundle={bundle}", str(cohorts), f"--out={out}", "--pictures=0"]) == 0
    found = {row["case_id"]: row for row in rows(out / "predictions.csv")}
    for row in rows(evaluated / "predictions_test.csv"):
        ours = found[row["case_id"]]
        # float32 sums in another order, see bundles.write.BOUNDS
        assert float(ours["probability"]) == pytest.approx(float(row["probability"]), abs=5e-6)
        assert ours["threshold"] == row["threshold"]
    content = json.loads((out / "predictions.json").read_text())
    assert content["versions"]["onnxruntime"]
    assert content["threshold"]["origin"].endswith("as in metrics.json")
    assert "by the bundle bundle" in (out / "summary.html").read_text()


def test_predicting_with_a_bundle_imports_no_jax(bundle, images, tmp_path):
    (images / "c.npz").unlink()
    out = tmp_path / "out"
    code = f"""
import sys
from mvo_jax.cli.main import main
sys.argv = ["mvo-jax", "predict", "--bundle={bundle}", "{images}", "--out={out}"]
code = main()
heavy = {{"jax", "jaxlib", "flax", "torch", "sklearn", "matplotlib", "tensorflow_datasets"}}
print("loaded:", sorted(heavy & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == "loaded: []"
    assert len(rows(out / "predictions.csv")) == 3
    drawn = json.loads((out / "predictions.json").read_text())["cases"][0]
    assert (out / drawn["picture"]).is_file()


def test_what_export_and_a_bundle_refuse(evaluated, bundle, images, tmp_path, refused):
    out, bare = tmp_path / "out", tmp_path / "bare"
    shutil.copytree(evaluated, bare)
    shutil.rmtree(bare / "checkpoints" / "best")
    run_flag, bundle_flag, to = f"--workdir={evaluated}", f"--bundle={bundle}", f"--out={out}"
    for words, verb, *arguments in (
        ("neither --workdir nor --bundle", "predict", images, to),
        ("both", "predict", bundle_flag, run_flag, images, to),
        ("--checkpoint is of a run", "predict", bundle_flag, "--checkpoint=best", images, to),
        ("is no bundle", "predict", f"--bundle={evaluated}", images, to),
        ("is a bundle", "eval", f"--workdir={bundle}"),
        ("tflite", "export", run_flag, to, "--format=tflite"),
        ("config.json does not exist", "export", f"--workdir={images}", to),
        ("not an empty folder", "export", run_flag, f"--out={evaluated}", "--format=onnx"),
        # Before anything is computed.
        ("not an empty folder", "export", f"--workdir={images}", f"--out={evaluated}"),
        ("best", "export", f"--workdir={bare}", to),
    ):
        assert words in refused(verb, *arguments)[0]
    assert "mvo_jax export" in refused("predict", f"--bundle={evaluated}", images, to)[1]
    assert not out.exists()
