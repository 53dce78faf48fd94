"""What a user gets wrong: exit code 2, one line of cause, one of remedy, no traceback."""

import json
import shutil
from pathlib import Path

import pytest

from mvo_jax.cli.main import run
from mvo_jax.errors import UserError


@pytest.mark.parametrize(
    ("flag", "key", "suggestion"),
    [
        ("--config.train.batchsize=4", "batchsize", "batch_size"),
        ("--config.optimiser.name=sgd", "optimiser", "optimizer"),
    ],
)
def test_unknown_key_with_a_suggestion(refused, tiny, tmp_path, flag, key, suggestion):
    cause, remedy = refused("train", *tiny, flag, f"--workdir={tmp_path}")
    assert cause == f"error: the config has no key {key!r}"
    assert f'"{suggestion}"' in remedy


@pytest.mark.parametrize(
    "flag",
    [
        "--config.train.batch_size=many",
        "--config.train.batch_size=2.5",
        "--config.optimizer.learning_rate=fast",
        "--config.augment.flip=perhaps",
        "--config.model.stage_sizes=(1,deep)",
    ],
)
def test_value_of_another_type(refused, tiny, tmp_path, flag):
    cause, remedy = refused("train", *tiny, flag, f"--workdir={tmp_path}")
    assert flag.split("=")[0].split(".")[1] in cause + remedy  # the part of the config


def test_missing_config_file(refused, tmp_path):
    cause, remedy = refused("train", "--config=configs/demoo.py", f"--workdir={tmp_path}")
    assert "configs/demoo.py" in cause
    assert "demo" in remedy


@pytest.mark.parametrize(
    "flags", [["--config", "configs/mvo.py:fast"], ["--config=configs/mvo.py:fast"]]
)
def test_unknown_config_argument(refused, tmp_path, flags):
    cause, _ = refused("train", *flags, f"--workdir={tmp_path}")
    assert "'fast'" in cause
    assert "released" in cause


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
        ("def get_config():\n    return {'seed': 0}", "returned dict"),
    ],
)
def test_broken_config_file(refused, tmp_path, source, words):
    path = tmp_path / "broken.py"
    path.write_text(source)
    cause, _ = refused("train", f"--config={path}", f"--workdir={tmp_path}")
    assert "broken.py" in cause
    assert words in cause


def test_nothing_given(refused):
    assert "workdir" in refused("train", "--config=configs/mvo.py")[0]
    assert "no experiment given" in refused("train", "--workdir=/tmp/none")[0]
    assert "workdir" in refused("eval")[0]
    assert "no experiment given" in refused("summary")[0]


@pytest.mark.parametrize(
    ("flags", "cause", "remedy"),
    [
        (["--config.augment.flip", "False"], "unexpected argument 'False'", "flip=False"),
        (["--config.model.stage_sizes[0]=3"], "--config.model.stage_sizes[0]=3", "whole value"),
        (["--config.model.stage_sizes[7]=3"], "--config.model.stage_sizes[7]=3", "whole value"),
        (["--config.model.stage_sizes=None"], "config.model.stage_sizes is (1, None)", "numbers"),
        (["--config.seed=None"], "--config.seed is 'None'", "a whole number"),
        (["--config.augment.flip=yes"], "--config.augment.flip is 'yes'", "true or false"),
        (["--config.optimizer.power=fast"], "--config.optimizer.power is 'fast'", "a number"),
        (["--workdir=/nowhere/[1] *"], "has [ * in it", "choose a --workdir without"),
        (["--workdir=/"], "the run folder is /", "a folder for the run alone"),
        (["--config.optimizer.name=None"], "config.optimizer.name is 'None'", "adamw"),
        (["--config.eval.threshold_rule=best"], "config.eval.threshold_rule is 'best'", "youden"),
        (["--config.model.head_dropout=1.5"], "config.model.head_dropout is 1.5", "less than 1"),
        (["--config.model.head_dropout=nan"], "config.model.head_dropout is nan", "less than 1"),
        (["--config.model.num_layers=-1"], "config.model.num_layers is -1", "0 or more"),
        (["--config.model.num_heads=0"], "config.model cannot be built", "config.model"),
        (["--config.optimizer.learning_rate=1e39"], "learning_rate is 1e+39", "or less"),
        (["--config.train.total_steps=4294967296"], "total_steps is 4294967296", "or less"),
        (["--config.optimizer.ema_decay=1.0"], "ema_decay is 1.0", "0 to 0.999999"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_or_a_word_that_means_nothing_is_named(
    refused, tiny, tmp_path, flags, cause, remedy
):
    found = refused("train", *tiny, f"--workdir={tmp_path / 'run'}", *flags)
    assert cause in found[0]
    assert remedy in found[1]
    assert not (tmp_path / "run").exists()


ADDRESSES = ["gs://bucket/run", "s3://b/x", "https://a/b", "gs:/bucket/run"]


@pytest.mark.parametrize("path", [*ADDRESSES, "", "  ", "~no-such-user-here/run"])
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config=demo", "--workdir={}"],
        ["train", "--config=demo", "--workdir=unused", "--config.data.dir={}"],
        ["eval", "--workdir={}"],
        ["eval", "--workdir=unused", "--out={}"],
        ["predict", "--workdir=unused", "images", "--out={}"],
        ["prepare", "{}", "--out=unused"],
        ["convert", "--source={}", "--out=unused.pth", "--layout=released"],
        ["compare", "--config=baselines", "--out={}"],
        ["study", "--config=configs/studies/ceiling.py", "--out={}"],
        ["phantom", "--data_dir={}"],
    ],
    ids=" ".join,
)
def test_what_is_no_path_of_this_machine_is_refused_at_once(refused, words, path):
    verb, *arguments = [word.format(path) for word in words]
    cause, _ = refused(verb, *arguments)
    reason = "is empty" if not path.strip() else "no such home" if "~" in path else "an address"
    assert reason in cause
    assert not any((Path.cwd() / name).exists() for name in ("unused", "gs:", "s3:", "~"))


def test_a_backend_that_is_not_there(refused, monkeypatch):
    from mvo_jax.cli import phantom

    def fail(_: list[str]) -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': no GPU\nmore")

    monkeypatch.setattr(phantom, "main", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    cause, remedy = refused("phantom")
    assert cause.endswith("'cuda': Unable to initialize backend 'cuda': no GPU")
    assert "unset JAX_PLATFORMS" in remedy


def test_unknown_flag_and_stray_words(refused, tmp_path):
    assert "wrkdir" in refused("eval", f"--wrkdir={tmp_path}", f"--workdir={tmp_path}")[0]
    assert "stray" in refused("eval", f"--workdir={tmp_path}", "stray")[0]
    assert "checkpoint" in refused("eval", f"--workdir={tmp_path}", "--checkpoint=first")[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.train.batch_size=12", "--config.train.num_devices=8"], "batch of 12"),
        (["--config.data.frames=6"], "6 frames"),
        (["--config.data.image_size=31", "--config.model.mask_size=8"], "31x31"),
        (["--config.data.preset=hard"], "hard"),
        (["--config.data.size=huge"], "huge"),
        (["--config.data.name=ukbb"], "ukbb"),
        (["--config.data.seed=-1"], "-1"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_leaves_no_run_behind(refused, tiny, tmp_path, flags, words):
    cause, _ = refused("train", *tiny, *flags, f"--workdir={tmp_path / 'run'}")
    assert words in cause
    assert not (tmp_path / "run").exists()


def test_workdir_that_cannot_be_made(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    cause, _ = refused("train", *tiny, f"--workdir={tmp_path / 'file' / 'run'}")
    assert "file" in cause


def test_run_folder_of_another_config(refused, tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 3}))
    cause, _ = refused("train", *tiny, f"--workdir={tmp_path}")
    assert "config.seed 3 -> 0" in cause


@pytest.mark.parametrize("damage", ["cut", "changed", "lost", "info"])
def test_damaged_data_folder(refused, tiny, data_dir, tmp_path, damage):
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    records = sorted(copy.rglob("*train*array_record*"))
    assert records
    path: Path = records[0]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    elif damage == "lost":
        path.unlink()
    else:
        path = next(copy.rglob("dataset_info.json"))
        path.write_text("{")
    cause, _ = refused("train", *tiny, f"--config.data.dir={copy}", f"--workdir={tmp_path / 'run'}")
    assert str(path.parent) in cause


def test_data_folder_that_cannot_be_written(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    flag = f"--config.data.dir={tmp_path / 'file' / 'data'}"
    cause, _ = refused("train", *tiny, flag, f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "file") in cause


def test_eval_of_an_empty_or_missing_folder(refused, tmp_path):
    assert "config.json does not exist" in refused("eval", f"--workdir={tmp_path}")[0]
    assert "does not exist" in refused("eval", f"--workdir={tmp_path / 'none'}")[0]
    assert "cannot read /dev/null/run" in refused("eval", "--workdir=/dev/null/run")[0]
    (tmp_path / "config.json").write_text("[1, 2")
    assert "config.json is damaged" in refused("eval", f"--workdir={tmp_path}")[0]


def test_eval_of_a_run_that_was_never_saved(refused, tiny, tmp_path):
    from mvo_jax.cli.flags import parse

    config = parse(tiny, lambda values: None, with_config=True).config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert "has no checkpoints" in refused("eval", f"--workdir={tmp_path}")[0]


def test_phantom_refuses_what_the_cohort_cannot_be(refused, tmp_path):
    for flag, words in (
        ("--preset=hard", "hard"),
        ("--frames=7", "7"),
        ("--image_size=16", "16"),
        ("--slices_per_patient=0", "0"),
        ("--seed=-2", "-2"),
        ("--seed=two", "two"),
    ):
        assert words in refused("phantom", f"--data_dir={tmp_path}", flag)[0]
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    with pytest.raises(UserError, match="does not exist"):
        run("eval", ["--debug", "--workdir=/nowhere/at/all"])
