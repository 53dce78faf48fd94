"""Mistakes whose message named another cause."""

import os
import subprocess
import sys

import pytest

from mvo_jax.errors import UserError
from mvo_jax.files import local_path


def test_typeset_dash_is_named(refused, tiny, tmp_path):
    cause, remedy = refused("train", *tiny, f"\u2014workdir={tmp_path}")
    assert "unexpected argument" in cause
    assert f"--workdir={tmp_path}" in remedy


def test_misspelt_data_folder_is_not_filled(refused, tmp_path):
    folder = tmp_path / "dta"
    cause, _ = refused("eval", f"--workdir={tmp_path}", f"--data_dir={folder}")
    assert f"--data_dir names {folder}" in cause
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("JAX_ENABLE_X64", "perhaps", "JAX does not take a variable of the environment"),
        ("XLA_FLAGS", "--xla_nonsense=1", "XLA does not take XLA_FLAGS: Unknown flag in XLA_FLAGS"),
        ("XLA_FLAGS", "--xla_dump_hlo_as_text=perhaps", "Couldn't interpret value perhaps"),
        ("XLA_FLAGS", "xla_nonsense", 'Could not open file "xla_nonsense"'),
    ],
)
def test_variable_of_jax_is_named(name, value, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mvo_jax", "train", "--config=demo", f"--workdir={tmp_path}"],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    cause, remedy = done.stderr.splitlines()  # and not on the config
    assert cause.startswith("error: ")
    assert words in cause
    assert "unset" in remedy


def test_data_in_a_file_leave_no_run_behind(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "run"
    for place in ("file", "file/below"):
        flags = [f"--config.data.dir={tmp_path / place}", f"--workdir={out}"]
        cause, _ = refused("train", *tiny, *flags)
        assert f"{tmp_path / 'file'} is no folder" in cause
        assert not out.exists()


def test_a_current_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="the current folder is gone"):
        local_path("run", "--workdir")
    assert local_path("/run", "--workdir") == "/run"
