"""``convert`` as a command, and runs that start from its files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvo_jax.cli.main import run
from mvo_jax.config_files import load_config
from mvo_jax.interop import convert, weight_files
from mvo_jax.interop.layouts.mvo_net import REFERENCE, TORCHVISION
from mvo_jax.interop.weight_rules import flatten, to_torch, unflatten


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    """The ``model`` part of the config that ``tiny`` describes."""
    config: Any = load_config("mvo").unlock()
    config.model.update(width=8, stage_sizes=(1,), in_channels=1, num_heads=2, mask_size=32)
    config.model.encoder_dropout = 0.0
    return config.model.to_dict()


@pytest.fixture(scope="module")
def source(model, tmp_path_factory) -> Path:
    """A torch checkpoint of that model."""
    shapes = flatten(convert.model_shapes(model, (8, 32, 32, 1)))
    rng = np.random.default_rng(0)
    draws = {k: rng.uniform(0.5, 1, v.shape).astype(np.float32) for k, v in shapes.items()}
    state = to_torch(unflatten(draws), REFERENCE)
    path = tmp_path_factory.mktemp("torch") / "source.pth"
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def converted(source, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("ours") / "weights.safetensors"
    flags = [f"--source={source}", "--layout=reference", f"--out={out}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).resolve().parents[2])
        assert run("convert", [*tiny, *flags]) == 0
        yield out


def test_there_and_back(source, converted, tmp_path, capsys):
    out = tmp_path / "back.pth"
    flags = [f"--source={converted}", "--layout=reference", f"--out={out}"]
    assert run("convert", flags) == 0
    before, after = (weight_files.read_torch(path).arrays for path in (source, out))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    provenance = json.loads((tmp_path / "back.pth.json").read_text())
    assert provenance["source"]["source_sha256"] == weight_files.sha256(source)


@pytest.mark.slow(reason="trains a run and another from its weights")
def test_a_run_starts_from_the_file(tiny, converted, tmp_path, capsys):
    """From a trunk alone, at a learning rate of 0; its folder converts; resuming needs no file."""
    content = weight_files.read_variables(converted)
    trunk, out = tmp_path / "trunk.pth", tmp_path / "trunk.safetensors"
    arrays = convert.to_layout(content, TORCHVISION)[0]
    weight_files.write_torch(trunk, arrays)
    flags = [f"--source={trunk}", "--layout=torchvision", f"--out={out}"]
    assert run("convert", [*tiny, *flags]) == 0
    printed = capsys.readouterr().out
    assert "left to initialisation: classifier, decoder, encoder" in printed
    workdir = tmp_path / "run"
    flags = ["--config.train.total_steps=1", "--config.optimizer.learning_rate=0.0"]
    flags += [f"--config.init_from={out}", f"--workdir={workdir}"]
    assert run("train", [*tiny, *flags]) == 0
    assert "trunk; from the seed: classifier, decoder, encoder" in capsys.readouterr().err
    (start,) = json.loads((workdir / "provenance.json").read_text())
    assert start["init_from"]["sha256"] == weight_files.sha256(out)
    assert start["init_from"]["source_sha256"] == weight_files.sha256(trunk)
    exported = tmp_path / "run.pth"
    arguments = [f"--source={workdir}", "--checkpoint=latest", "--layout=torchvision"]
    assert run("convert", [*arguments, f"--out={exported}"]) == 0
    assert "left out: classifier, decoder, encoder" in capsys.readouterr().out
    found = weight_files.read_torch(exported).arrays
    # Nothing was learned: the parameters are the file's. The statistics have moved on.
    learned = [key for key in arrays if "running" not in key and "tracked" not in key]
    assert all(np.array_equal(found[key], arrays[key]) for key in learned)
    out.unlink()
    assert run("train", [*tiny, *flags]) == 0


def test_init_from_another_model_leaves_no_folder(refused, tiny, converted, tmp_path):
    workdir = tmp_path / "run"
    flags = ["--config.model.width=16", f"--config.init_from={converted}", f"--workdir={workdir}"]
    cause, remedy = refused("train", *tiny, *flags)
    assert "weights.safetensors does not fit config.model" in cause
    assert "convert" in remedy
    assert not workdir.exists()


@pytest.mark.parametrize("name", ["none.safetensors", "source.pth"])
def test_init_from_a_file_that_is_not_ours(refused, tiny, source, tmp_path, name):
    path = source if name == source.name else tmp_path / name
    cause, _ = refused("train", *tiny, f"--config.init_from={path}", f"--workdir={tmp_path / 'r'}")
    assert name in cause
    assert not (tmp_path / "r").exists()


def test_arguments_that_do_not_go_together(refused, tiny, source, converted, tmp_path):
    out, reference = f"--out={tmp_path / 'out.safetensors'}", "--layout=reference"
    for cause, remedy, of, *flags in (
        ("which model", "--config", source, reference, out),
        ("carries its own model", "", converted, *tiny, reference, out),
        ("does not exist", "", tmp_path / "none.pth", *tiny, reference, out),
        ("no layout 'keras'", "torchvision", source, *tiny, "--layout=keras", out),
        ("cannot be written over", "", source, *tiny, reference, f"--out={source}"),
        ("layout", "", source, *tiny, out),
        ("config.json does not exist", "", tmp_path, reference, f"--out={tmp_path / 'a.pth'}"),
    ):
        found = refused("convert", f"--source={of}", *flags)
        assert cause in found[0]
        assert remedy in found[1]
    assert list(tmp_path.iterdir()) == []
