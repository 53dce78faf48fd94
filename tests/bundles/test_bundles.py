"""A bundle predicts as its run does, tells nothing of its site, and is refused when broken."""

import getpass
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy

from mvo_jax import from_pretrained, load_bundle, load_run
from mvo_jax import run as assembly
from mvo_jax.bundles import about as about_file
from mvo_jax.bundles import jax_program, write
from mvo_jax.bundles.about import ABOUT, CARD, CHECK, MODELS, WEIGHTS, read_about, write_about
from mvo_jax.cli.main import run
from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError
from mvo_jax.files import sha256
from mvo_jax.runs.folder import RunFolder
from tests.bundles.conftest import METRICS, SITE, make_run
from tests.small_run import make_tiny_config

FILES = {ABOUT, CARD, CHECK, WEIGHTS, *MODELS.values()}


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def video() -> np.ndarray:
    clips = np.random.default_rng(1).integers(0, 256, (5, 8, 32, 32), dtype=np.uint8)
    clips[3] = 77  # a constant clip, which must not become noise
    clips[4] = clips[4] // 64  # hardly any contrast
    return clips


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_it_holds_what_the_docs_say(bundle):
    assert files_of(bundle) == FILES
    about = read_about(bundle)
    shape = {"frames": 8, "image_size": 32, "spacing_mm": 2.5, "window": (20.0, 900.0)}
    # The run's file does not say the locator.
    assert about.geometry == Target(**shape, end_diastole_first=True, orientation=2, locator=0)
    assert (about.threshold.value, about.threshold.patient_value) == (0.375, 0.5)
    assert about.outputs == ["probability", "logits", "coarse_mask"]
    assert not about.simulated
    assert set(about.checked) == set(MODELS.values())
    for found in about.checked.values():
        assert all(found[name] <= about.bounds[name] for name in about.outputs)
    modes = {oct((bundle / name).stat().st_mode) for name in FILES}
    assert len(modes) == 1  # nobody is kept from reading one of them


@pytest.mark.parametrize("form", MODELS)
def test_it_predicts_as_the_run(trained, bundle, video, form):
    expected = trained.predict(video)
    assert np.ptp(expected["probability"]) > 1e-3  # the clips matter
    found = load_bundle(bundle, form=form).predict(video)
    # float32 sums in another order; the map of random weights is as large as 4.
    assert np.abs(found["probability"] - expected["probability"]).max() <= 5e-6
    largest = np.abs(expected["coarse_mask"]).max()
    assert np.abs(found["coarse_mask"] - expected["coarse_mask"]).max() <= 1e-6 * largest
    assert found["logits"].shape == (5, 1)


def test_the_jax_program_is_the_function_bit_for_bit(bundle, video):
    config = read_about(bundle).config
    weights = safetensors.numpy.load_file(bundle / WEIGHTS)
    jitted = jax.jit(jax_program.model_function(config["model"]))(weights, video[..., None])
    exported = load_bundle(bundle, form="jax").compute(video[..., None], True)
    for name, value in jitted.items():
        np.testing.assert_array_equal(exported[name], value)


def test_load_run_takes_a_bundle(trained, bundle, video):
    again = load_run(bundle)
    assert again.decision() == read_about(bundle).threshold
    assert again.geometry == trained.geometry
    np.testing.assert_array_equal(
        again.predict(video)["probability"], trained.predict(video)["probability"]
    )


def test_a_run_starts_from_a_bundle(trained, copy, tmp_path):
    config = make_tiny_config(**{"model.mask_size": 8}, init_from=str(copy))
    folder = RunFolder(tmp_path / "run")
    variables, about = assembly._initial(config.init_from, folder, trained.experiment)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, dict(trained.variables)))
    assert about["init_from"]["sha256"] == sha256(copy / WEIGHTS)
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(UserError, match=WEIGHTS):
        assembly._initial(config.init_from, folder, trained.experiment)


def test_nothing_of_the_site_is_in_it(trained, bundle):
    words = ["elsewhere", "house", "gregory", "wilson", "cuddy"]
    words += [str(trained.folder.path), str(Path.cwd()), sys.prefix, "site-packages", "/home/"]
    words += [str(Path(jax.__file__).parent), str(Path(about_file.__file__).parents[2])]
    # Shorter ones are in random bytes by chance.
    words += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5]
    content = {name: (bundle / name).read_bytes() for name in FILES}
    with zipfile.ZipFile(bundle / CHECK) as archive:
        content |= {f"{CHECK}/{name}": archive.read(name) for name in archive.namelist()}
    assert SITE["data.dir"].encode() not in content[ABOUT]
    for name, data in content.items():
        assert [word for word in words if word.lower().encode() in data.lower()] == [], name
    # The clips of its check are simulated.
    expected = write.check_clips(3, Target(frames=8, image_size=32))
    np.testing.assert_array_equal(np.load(bundle / CHECK)["video"], expected)


def test_the_card_is_one_for_the_hub(bundle):
    card = huggingface_hub.ModelCard.load(bundle / CARD)
    again = huggingface_hub.ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert str(again) == str(card)
    auc, f1 = getattr(card.data, "eval_results")  # noqa: B009 (made at run time)
    assert (auc.metric_type, auc.metric_value) == ("auc", 0.75)
    assert f1.metric_value == 0.5
    for sentence in (
        "not for clinical use",
        "| AUC | 0.750 | 0.500 to 0.875 |",
        "| F1 score | 0.500 | not defined to not defined |",
        "the file to keep",
        "expires with JAX's compatibility window",
        "holds no image",
        "20.0 to 900.0 become 0 to 255",
    ):
        assert sentence in card.text


def test_onnxruntime_reports_to_nobody(bundle, tmp_path):
    # Its report to its maker begins with files in these two folders, at the import.
    code = f"from mvo_jax.bundles.bundle import load_bundle; load_bundle({str(bundle)!r})"
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(tmp_path))
    environment = {**os.environ, **places}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_it_is_copied_whole_or_not(bundle, copy, tmp_path):
    load_bundle(bundle).save_pretrained(tmp_path / "second")
    assert files_of(tmp_path / "second") == FILES
    assert from_pretrained(tmp_path / "second").about == read_about(bundle)
    loaded = load_bundle(copy)
    weights = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match="has changed"):
        loaded.save_pretrained(tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_name_on_the_hub(copy, monkeypatch, tmp_path):
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert set(allow_patterns) == FILES
        return copy

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert from_pretrained("clinic/mvo", revision="v1").folder == copy
    assert asked == [("clinic/mvo", "v1")]
    with pytest.raises(UserError, match="is no bundle"):  # a path is never looked up outside
        from_pretrained(f"{tmp_path}/missing")
    assert len(asked) == 1
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no"))
    )
    with pytest.raises(UserError, match="could not be had from the Hub: no"):
        from_pretrained("clinic/mvo")


def test_predict_looks_up_no_name_outside(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    for name in ("clinic/mvo", "n" * 300):
        assert run("predict", [f"--bundle={name}", f"--out={tmp_path / 'out'}", str(tmp_path)]) == 2
        assert "is no bundle" in capsys.readouterr().err


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: flip(b / MODELS["onnx"]), "model.onnx has changed"),
        (lambda b: (b / MODELS["onnx"]).unlink(), "model.onnx is missing"),
        (lambda b: (b / WEIGHTS).write_bytes(b""), "model.safetensors has 0 bytes instead of"),
        (lambda b: (b / CHECK).unlink(), "check.npz is missing"),
        (lambda b: edit(b / ABOUT, batch_size=9), "mvo_jax.json has changed"),
        (lambda b: edit(b / ABOUT, version=2), "has the format 2, this mvo_jax knows 1"),
        (lambda b: (b / ABOUT).write_text("{"), "mvo_jax.json is damaged"),
        (lambda b: (b / ABOUT).unlink(), "is no bundle"),
        (lambda b: shutil.rmtree(b), "is no bundle"),
    ],
)
def test_a_broken_bundle_is_refused(copy, damage, words):
    damage(copy)
    with pytest.raises(UserError, match=words) as caught:
        load_bundle(copy)
    assert "\n" not in caught.value.cause + caught.value.remedy


def test_keys_that_this_version_does_not_know_and_a_changed_card(copy):
    (copy / CARD).write_text("Ask us.")
    load_bundle(copy)
    content = json.loads((copy / ABOUT).read_text())
    del content["sha256"]
    content["geometry"]["gating"] = "prospective"
    (copy / ABOUT).write_text(json.dumps(content | {"sha256": about_file._seal(content)}))
    with pytest.raises(UserError, match=r"does not fit this version of mvo_jax: .*gating"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 9, 32, 32), np.uint8),
        ((1, 8, 32, 32), np.float32),
        ((0, 8, 32, 32), np.uint8),
        ((1, 8, 32, 32, 3), np.uint8),
    ],
)
def test_other_clips_are_refused(bundle, shape, dtype):
    with pytest.raises(UserError) as caught:
        load_bundle(bundle).predict(np.zeros(shape, dtype))
    assert caught.value.remedy == "the bundle takes uint8 [B, 8, 32, 32] with B of 1 or more"


def test_a_program_of_a_newer_jax_is_refused(copy):
    about = read_about(copy)
    about.versions["jax"] = "99.1.0"
    write_about(copy, about)
    with pytest.raises(UserError) as caught:
        load_bundle(copy, form="jax")
    assert "written by JAX 99.1.0" in caught.value.cause
    assert "pip install 'jax>=99.1.0', or use model.onnx" in caught.value.remedy
    load_bundle(copy)  # the graph does not care


def test_nothing_is_written_beyond_a_bound_or_into_another_folder(trained, tmp_path, monkeypatch):
    def refused(folder: str, words: str) -> None:
        with pytest.raises(UserError, match=words):
            trained.save_pretrained(tmp_path / folder, forms=["jax"], check=1)
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
        assert found == {"file", "full", "full/mine"}

    (tmp_path / "full").mkdir()
    for path in ("file", "full/mine"):
        (tmp_path / path).touch()
    refused("full", "not an empty folder")
    refused("file/bundle", "cannot write")
    monkeypatch.setitem(write.BOUNDS, "probability", -1.0)
    refused("bundle", "gives another probability than the run")


def test_one_form_alone_of_a_run_in_bfloat16_without_mask_branch(tmp_path):
    run = make_run(tmp_path / "run", **{"model.dtype": "bfloat16", "model.variant": "backbone"})
    folder = tmp_path / "bundle"
    about = run.save_pretrained(folder, forms=["jax"], check=1)
    assert files_of(folder) == FILES - {MODELS["onnx"]}
    assert about.config["model"]["dtype"] == "float32"
    assert about.outputs == ["probability", "logits"]
    clips = np.zeros((1, 8, 32, 32), np.uint8)
    assert load_bundle(folder, form="jax").predict(clips)["coarse_mask"] is None
    with pytest.raises(UserError, match="only the form jax"):
        load_bundle(folder)
    assert "onnxruntime" not in (folder / CARD).read_text()


def test_metrics_of_another_checkpoint_are_not_its_own(tmp_path):
    run = make_run(tmp_path / "run")
    other = METRICS | {"checkpoint": {"which": "best", "step": 8}}
    (run.folder.path / "metrics.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="no threshold is known"):
        run.save_pretrained(tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["run"]


def test_a_package_that_is_missing_is_named_first(trained, tmp_path, monkeypatch):
    def version(package: str) -> str:
        if package in ("onnxscript", "torch"):
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(write.importlib.metadata, "version", version)
    with pytest.raises(UserError, match="export needs torch, onnxscript, which are not") as caught:
        trained.save_pretrained(tmp_path / "bundle")
    assert caught.value.remedy == 'pip install "mvo_jax[export]"'
    assert list(tmp_path.iterdir()) == []
