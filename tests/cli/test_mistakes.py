"""What a user gets wrong: exit code 2, one line of cause, one of remedy, no traceback."""

import json
import shutil
from pathlib import Path

import pytest

from mvo_jax.cli import phantom
from mvo_jax.cli.flags import parse
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


def test_missing_config_file_and_unknown_argument(refused, tmp_path):
    cause, remedy = refused("train", "--config=configs/demoo.py", f"--workdir={tmp_path}")
    assert "configs/demoo.py" in cause
    assert "demo" in remedy
    for flags in (["--config", "configs/mvo.py:fast"], ["--config=configs/mvo.py:fast"]):
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


@pytest.mark.parametrize(
    ("verb", "flags", "words"),
    [
        ("train", ["--config=configs/mvo.py"], "workdir"),
        ("train", ["--workdir=none"], "no experiment given"),
        ("eval", [], "workdir"),
        ("summary", [], "no experiment given"),
        ("eval", ["--wrkdir={}", "--workdir={}"], "wrkdir"),
        ("eval", ["--workdir={}", "stray"], "stray"),
        ("eval", ["--workdir={}", "--checkpoint=first"], "checkpoint"),
        ("eval", ["--workdir={}"], "config.json does not exist"),
        ("eval", ["--workdir={}/none"], "does not exist"),
        ("eval", ["--workdir=/dev/null/run"], "cannot read /dev/null/run"),
        ("phantom", ["--data_dir={}", "--preset=hard"], "hard"),
        ("phantom", ["--data_dir={}", "--frames=7"], "7"),
        ("phantom", ["--data_dir={}", "--image_size=16"], "16"),
        ("phantom", ["--data_dir={}", "--slices_per_patient=0"], "0"),
        ("phantom", ["--data_dir={}", "--seed=-2"], "-2"),
        ("phantom", ["--data_dir={}", "--seed=two"], "two"),
    ],
)
def test_words_that_are_missing_or_mean_nothing(refused, tmp_path, verb, flags, words):
    assert words in refused(verb, *(flag.format(tmp_path) for flag in flags))[0]
    assert list(tmp_path.iterdir()) == []


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
    def fail(_: list[str]) -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': no GPU\nmore")

    monkeypatch.setattr(phantom, "main", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    cause, remedy = refused("phantom")
    assert cause.endswith("'cuda': Unable to initialize backend 'cuda': no GPU")
    assert "unset JAX_PLATFORMS" in remedy


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


def test_run_folder_of_another_config(refused, tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 3}))
    cause, _ = refused("train", *tiny, f"--workdir={tmp_path}")
    assert "config.seed 3 -> 0" in cause


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("*train*array_record*", lambda content: content[:-100]),
        ("*train*array_record*", flip),
        ("*train*array_record*", None),
        ("dataset_info.json", lambda content: b"{"),
    ],
    ids=["cut", "changed", "lost", "info"],
)
def test_damaged_data_folder(refused, tiny, data_dir, tmp_path, name, damage):
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    path = min(copy.rglob(name))
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    cause, _ = refused("train", *tiny, f"--config.data.dir={copy}", f"--workdir={tmp_path / 'run'}")
    assert str(path.parent) in cause


def test_folders_that_cannot_be_written(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    cause, _ = refused("train", *tiny, f"--workdir={tmp_path / 'file' / 'run'}")
    assert "file" in cause
    flag = f"--config.data.dir={tmp_path / 'file' / 'data'}"
    cause, _ = refused("train", *tiny, flag, f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "file") in cause


def test_eval_of_a_damaged_run_and_of_one_that_was_never_saved(refused, tiny, tmp_path):
    (tmp_path / "config.json").write_text("[1, 2")
    assert "config.json is damaged" in refused("eval", f"--workdir={tmp_path}")[0]
    config = parse(tiny, lambda values: None, with_config=True).config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert "has no checkpoints" in refused("eval", f"--workdir={tmp_path}")[0]


def test_debug_shows_the_traceback():
    with pytest.raises(UserError, match="does not exist"):
        run("eval", ["--debug", "--workdir=/nowhere/at/all"])
