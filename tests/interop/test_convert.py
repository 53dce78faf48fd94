"""Checkpoint files to ours and back: every bit, the stated rules, and every way to be wrong."""

import importlib.metadata
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from mvo_jax.config_files import load_config
from mvo_jax.errors import UserError
from mvo_jax.interop import convert, weight_files
from mvo_jax.interop.layouts.mvo_net import REFERENCE, RELEASED, TORCHVISION
from mvo_jax.interop.weight_rules import flatten, to_torch, unflatten

CLIP = (8, 32, 32, 1)
DEAD = {
    "decode_head.cls2Dconv1.weight": (2, 2, 3, 3),
    "decode_head.bert_branch.clsfc.bias": (1,),
    "decode_head.bert_branch.conv_seg3D.weight": (2, 2, 1, 1, 1),
}


@pytest.fixture(scope="module")
def random_bits(random_bits) -> Callable[[Any], Any]:
    """Bytes that are numbers: a checkpoint with NaN or infinity is refused."""

    def finite(array: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(array), array, np.copysign(np.float32(0), array))

    return lambda like: jax.tree.map(finite, random_bits(like))


@pytest.fixture
def state(small_model, random_bits) -> dict[str, np.ndarray]:
    """A released checkpoint's state dict."""
    shapes = convert.model_shapes(small_model, CLIP)
    return to_torch(random_bits(shapes), RELEASED, batches_tracked=7)


@pytest.fixture
def content(state, small_model, tmp_path) -> weight_files.VariablesFile:
    """What is read of that checkpoint, which is ``a.pth`` of the test's folder."""
    return read(save(tmp_path / "a.pth", state), small_model)


def save(path: Path, content: Any) -> Path:
    """``torch.save`` with numpy arrays as tensors."""

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
        if isinstance(value, dict):
            return {key: tensors(item) for key, item in value.items()}
        return value

    torch.save(tensors(content), path)
    return path


def read(path: Path, model: dict[str, Any], layout=RELEASED, **options: Any):
    return convert.from_torch(path, layout, model, CLIP, **options)


def full_size(**changes: Any) -> dict[str, Any]:
    config: Any = load_config("mvo")
    return {**config.model.to_dict(), **changes}


def test_full_torchvision_weights_come_back_bit_for_bit(random_bits, same_bits, tmp_path):
    shapes = convert.model_shapes(full_size(), (30, 64, 64, 1))
    trunk = {name: {"trunk": shapes[name]["trunk"]} for name in shapes}
    state = to_torch(random_bits(trunk), TORCHVISION, batches_tracked=3)
    assert len(state) == 222
    head = {"fc.weight": np.ones((400, 512), np.float32), "fc.bias": np.ones(400, np.float32)}
    source = save(tmp_path / "r2plus1d_18.pth", {**state, **head})
    content = convert.from_torch(source, TORCHVISION, full_size(), (30, 64, 64, 1))
    assert content.provenance["ignored"] == ["fc.bias", "fc.weight"]
    assert content.provenance["parts"] == ["trunk"]
    assert content.provenance["parts_not_in_source"] == ["classifier", "decoder", "encoder"]
    convert.write_converted(tmp_path / "trunk.safetensors", content)
    again = weight_files.read_variables(tmp_path / "trunk.safetensors")
    assert again.provenance == content.provenance
    assert convert.write_exported(tmp_path / "back.pth", again, TORCHVISION) == []
    back = weight_files.read_torch(tmp_path / "back.pth").arrays
    # Flax has no batch counters; they come back as 0.
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert same_bits(
        {k: v for k, v in back.items() if k not in counters},
        {k: v for k, v in state.items() if k not in counters},
    )
    assert back.keys() == state.keys()


def test_full_released_checkpoint_comes_back_bit_for_bit(random_bits, same_bits, tmp_path):
    model = full_size(decoder_layout="released")
    state = to_torch(random_bits(convert.model_shapes(model, (30, 64, 64, 1))), RELEASED)
    dead = {key: np.ones(shape, np.float32) for key, shape in DEAD.items()}
    wrapped = {"meta": {"epoch": 1}, "state_dict": {**state, **dead}, "optimizer": {"state": {}}}
    source = save(tmp_path / "iter_10000.pth", wrapped)
    content = convert.from_torch(source, RELEASED, model, (30, 64, 64, 1))
    assert content.provenance["unwrapped"] == ["state_dict"]
    assert content.provenance["ignored"] == sorted(DEAD)
    assert content.provenance["parameters"] == 34_765_727
    convert.write_converted(tmp_path / "ours.safetensors", content)
    ours = weight_files.read_variables(tmp_path / "ours.safetensors")
    convert.write_exported(tmp_path / "back.safetensors", ours, RELEASED)
    assert same_bits(weight_files.read_torch(tmp_path / "back.safetensors").arrays, state)


def test_same_source_gives_the_same_bytes(state, small_model, tmp_path):
    source = save(tmp_path / "a.pth", state)
    first, second = (tmp_path / f"{name}.safetensors" for name in ("first", "second"))
    for path in (first, second):
        convert.write_converted(path, read(source, small_model))
    assert first.read_bytes() == second.read_bytes()
    provenance = json.loads((tmp_path / "first.safetensors.json").read_text())
    expected = {"source": "a.pth", "source_sha256": weight_files.sha256(source)}
    expected |= {"layout": "released", "rules_version": convert.RULES_VERSION}
    assert {key: provenance[key] for key in expected} == expected


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "prefixes",
    [["module."], ["_orig_mod."], ["model."], ["module.", "_orig_mod."], ["model.", "model."]],
    ids="".join,
)
def test_what_stands_before_every_name_is_taken_off(
    state, content, small_model, tmp_path, same_bits, suffix, prefixes
):
    prefixed = {"".join(prefixes) + key: value for key, value in state.items()}
    weight_files.write_torch(tmp_path / f"prefixed{suffix}", prefixed)
    found = read(tmp_path / f"prefixed{suffix}", small_model)
    assert found.provenance["unwrapped"] == prefixes
    assert same_bits(flatten(found.variables), flatten(content.variables))


def test_the_counter_of_averaged_weights_and_their_wrapper(state, small_model, tmp_path):
    averaged = {f"module.{key}": value for key, value in state.items()}
    averaged["n_averaged"] = np.array(3)
    content = read(save(tmp_path / "a.pth", {"state_dict": averaged}), small_model)
    assert content.provenance["unwrapped"] == ["state_dict", "n_averaged", "module."]


def test_a_prefix_that_a_layout_has_itself_stays():
    arrays = {"module.model.head.weight": np.zeros(1), "module.model.norm.bias": np.zeros(1)}
    layout = convert.find_layout("timesformer", "released")
    kept, taken = weight_files.without_prefixes(arrays, layout.flax_paths)
    assert taken == ("module.",)
    assert set(kept) == {"model.head.weight", "model.norm.bias"}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_half_precision_is_cast_up_and_told(state, small_model, tmp_path, dtype, suffix):
    from safetensors.torch import save_file

    tensors = {key: torch.from_numpy(np.ones_like(value)) for key, value in state.items()}
    halves = {
        key: t.to(getattr(torch, dtype)) if t.is_floating_point() else t
        for key, t in tensors.items()
    }
    path = tmp_path / f"half{suffix}"
    save_file(halves, path) if suffix == ".safetensors" else torch.save(halves, path)
    if dtype.startswith("float8") and suffix == ".safetensors":
        with pytest.raises(UserError, match="of a type that numpy does not have") as caught:
            read(path, small_model)
        assert caught.value.remedy == "save them in float32 where it was made"
        return
    content = read(path, small_model)
    count = sum(t.is_floating_point() for t in tensors.values())
    assert content.provenance["cast_to_float32"] == {dtype: count}
    flat = flatten(content.variables)
    assert {value.dtype for value in flat.values()} == {np.dtype(np.float32)}
    assert all((value == 1).all() for value in flat.values())


def test_another_precision_has_its_own_remedy(state, small_model, tmp_path):
    doubles = {
        key: value.astype(np.float64) if value.dtype == np.float32 else value
        for key, value in state.items()
    }
    with pytest.raises(UserError, match="float64, not float32") as caught:
        read(save(tmp_path / "double.pth", doubles), small_model)
    assert "float32" in caught.value.remedy
    assert "architecture" not in caught.value.remedy


def test_one_of_several_sets_of_weights_is_named(state, small_model, tmp_path, same_bits):
    ema = {key: np.ones_like(value) for key, value in state.items()}
    both = {"model": state, "model_ema": ema, "optimizer": {"state": {}, "param_groups": []}}
    path = save(tmp_path / "both.pth", both)
    with pytest.raises(UserError, match="holds 2 sets of weights: model, model_ema") as caught:
        read(path, small_model)
    assert "--weights_key=model" in caught.value.remedy
    with pytest.raises(UserError, match="no weights under 'ema'"):
        read(path, small_model, weights_key="ema")
    chosen = read(path, small_model, weights_key="model_ema")
    assert chosen.provenance["unwrapped"] == ["model_ema"]
    nested = save(tmp_path / "nested.pth", {"state": both, "epoch": 3})
    with pytest.raises(UserError, match=r"weights: state\.model, state\.model_ema"):
        read(nested, small_model)
    below = read(nested, small_model, weights_key="state.model_ema")
    assert below.provenance["unwrapped"] == ["state.model_ema"]
    assert same_bits(flatten(below.variables), flatten(chosen.variables))
    alone = read(save(tmp_path / "ema.pth", ema), small_model)
    assert same_bits(flatten(chosen.variables), flatten(alone.variables))
    flat = {f"{name}.{key}": v for name in ("model", "ema") for key, v in both["model"].items()}
    weight_files.write_torch(tmp_path / "flat.safetensors", flat)
    assert read(tmp_path / "flat.safetensors", small_model, weights_key="ema").provenance[
        "unwrapped"
    ] == ["ema."]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused(state, small_model, tmp_path, value):
    key = next(key for key in state if key.endswith("bias"))
    broken = {**state, key: np.full_like(state[key], value)}
    with pytest.raises(UserError, match="holds NaN or infinity in params/"):
        read(save(tmp_path / "a.pth", broken), small_model)


@pytest.mark.parametrize(("found", "wanted"), [(3, 1), (1, 3)])
def test_adapted_stem_answers_to_grey_frames_as_before(found, wanted, small_model, tmp_path):
    shapes = convert.model_shapes({**small_model, "in_channels": found}, CLIP)
    rng = np.random.default_rng(0)
    variables = unflatten(
        {k: rng.standard_normal(v.shape, np.float32) for k, v in flatten(shapes).items()}
    )
    source = save(tmp_path / "a.pth", to_torch(variables, RELEASED))
    model = {**small_model, "in_channels": wanted}
    with pytest.raises(UserError, match=f"stem of {found} input channels") as caught:
        read(source, model)
    assert "--adapt_stem" in caught.value.remedy
    content = read(source, model, adapt_stem=True)
    before = flatten(variables)[convert.STEM]
    after = flatten(content.variables)[convert.STEM]
    assert after.shape[3] == wanted
    # One rounding of a sum of three numbers of order 1, and of its third.
    np.testing.assert_allclose(after.sum(3), before.sum(3), rtol=0, atol=1e-6)
    assert content.provenance["adapted"] == f"stem adapted from {found} to {wanted} input channels"
    others = {k: v for k, v in flatten(content.variables).items() if k != convert.STEM}
    assert all(np.array_equal(v, flatten(variables)[k]) for k, v in others.items())


def test_adapting_a_stem_that_fits_changes_nothing(content, small_model, tmp_path, same_bits):
    adapted = read(tmp_path / "a.pth", small_model, adapt_stem=True)
    assert adapted.provenance["adapted"] == ""
    assert same_bits(flatten(adapted.variables), flatten(content.variables))


class RunsCode:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_run(wrap, legacy, state, small_model, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    content: Any = {k: torch.from_numpy(v.copy()) for k, v in state.items()}
    content["extra"] = RunsCode(trace)
    content = {"state_dict": content} if wrap else content
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds more than tensors") as caught:
        read(path, small_model)
    assert "mkdir" in caught.value.cause
    assert "weights_only" not in caught.value.cause + caught.value.remedy
    assert not trace.exists()
    # The trap works: an unrestricted load runs it.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_code_in_a_bare_pickle_is_not_run(small_model, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"a": RunsCode(trace)}))
    with pytest.raises(UserError, match=r"evil\.pth"):
        read(path, small_model)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 9, 0.5, -1])
def test_truncated_files(suffix, kept, state, small_model, tmp_path):
    path = tmp_path / f"a{suffix}"
    weight_files.write_torch(path, state)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=rf"a\{suffix} is (empty|truncated)"):
        read(path, small_model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"a": "text", "b": 1.5}, "2 entries that are no plain arrays: a (str), b (float)"),
        ({"a": torch.zeros(2).to_sparse()}, "a (torch.float32, torch.sparse_coo)"),
        ({"blocks.0.weight": torch.zeros(2)}, "without a rule: blocks.0.weight"),
        ({}, "keys missing"),
    ],
)
def test_what_is_no_state_dict_of_the_model(content, words, small_model, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "a.pth", small_model)
    assert words in caught.value.cause


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.pth", b"hello, I am a text\n" * 9),
        ("a.safetensors", b"\xff" * 64),
        ("a.h5", b"abc"),
        ("missing.pth", None),
    ],
)
def test_files_that_are_no_checkpoint(name, content, small_model, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read(tmp_path / name, small_model)


@pytest.mark.parametrize(("version", "words"), [("2.5.1", "run code"), (None, "not installed")])
def test_torch_too_old_or_missing(version, words, state, small_model, tmp_path, monkeypatch):
    source = save(tmp_path / "a.pth", state)

    def fake(name: str) -> str:
        assert name == "torch"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)
    with pytest.raises(UserError, match=words):
        read(source, small_model)


def test_unwritable_target_leaves_nothing(content, tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in (("file/b.safetensors", "cannot write"), ("b.pth", r"end in \.safetensors")):
        with pytest.raises(UserError, match=words):
            convert.write_converted(tmp_path / path, content)
    with pytest.raises(UserError, match="names no format"):
        convert.write_exported(tmp_path / "b.onnx", content, RELEASED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "file"]


def test_a_foreign_safetensors_file_is_not_taken_for_ours(state, tmp_path):
    path = tmp_path / "a.safetensors"
    weight_files.write_torch(path, state)
    assert not weight_files.is_variables_file(path)
    with pytest.raises(UserError, match="does not hold Flax variables"):
        weight_files.read_variables(path)


def test_part_of_a_model_is_exported_and_the_rest_named(content, tmp_path):
    left_out = convert.write_exported(tmp_path / "trunk.pth", content, TORCHVISION)
    assert left_out == ["classifier", "decoder", "encoder"]
    arrays = weight_files.read_torch(tmp_path / "trunk.pth").arrays
    assert all(key.startswith(("stem.", "layer")) for key in arrays)
    full = convert.to_layout(content, REFERENCE)[0]
    assert arrays.keys() == {k.removeprefix("trunk.") for k in full if k.startswith("trunk.")}


def test_variables_that_do_not_fit_their_model_are_not_exported(content):
    flat = flatten(content.variables)
    flat[convert.STEM] = flat[convert.STEM][:, :3]
    broken = weight_files.VariablesFile(unflatten(flat), content.model, CLIP, {})
    with pytest.raises(UserError, match="params/trunk/stem_spatial/kernel"):
        convert.to_layout(broken, RELEASED)


@pytest.fixture
def shapes(small_model) -> dict[str, Any]:
    return convert.model_shapes(small_model, CLIP)


def test_a_run_starts_from_whole_parts(content, shapes):
    trunk = {name: {"trunk": tree["trunk"]} for name, tree in content.variables.items()}
    part = weight_files.VariablesFile(trunk, content.model, CLIP, {})
    _, parts, rest = convert.initial_variables(part, shapes, source="a")
    assert (parts, rest) == (["trunk"], ["classifier", "decoder", "encoder"])
    empty = weight_files.VariablesFile({}, {}, CLIP, {})
    with pytest.raises(UserError, match="it is empty"):
        convert.initial_variables(empty, shapes, source="a")


def test_a_run_refuses_parts_that_do_not_fit(content, shapes):
    flat = flatten(content.variables)
    del flat["params/encoder/cls"]
    flat["params/trunk/extra"] = np.zeros(1, np.float32)
    flat["params/classifier/bias"] = np.zeros(2, np.float32)
    flat["batch_stats/trunk/stem_spatial_norm/mean"] = np.zeros(5, np.float64)
    part = weight_files.VariablesFile(unflatten(flat), content.model, CLIP, {})
    with pytest.raises(UserError) as caught:
        convert.initial_variables(part, shapes, source="a.safetensors")
    for text in (
        "a.safetensors does not fit",
        "params/encoder/cls is missing",
        "params/trunk/extra: the model has no such array",
        "params/classifier/bias is (2,), not (1,)",
        "mean is float64, not float32",
    ):
        assert text in caught.value.cause


def test_unknown_layouts_and_clips_that_do_not_fit_are_refused(small_model):
    with pytest.raises(UserError, match="no layout 'keras'") as caught:
        convert.find_layout("mvo_net", "keras")
    assert "reference, torchvision, released" in caught.value.remedy
    with pytest.raises(UserError, match="no layout"):
        convert.find_layout("resnet", "released")
    with pytest.raises(UserError, match="cannot take clips"):
        convert.model_shapes(small_model, (2, 8, 8, 1))
