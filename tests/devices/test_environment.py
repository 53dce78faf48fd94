"""The environment before JAX: where compiled programs are, and what a kill leaves of them."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mvo_jax.devices import environment
from mvo_jax.devices.environment import (
    FAST_CPU_CONVOLUTION_FLAG,
    FOLDER,
    OPT_OUT,
    configure,
    remove_damaged,
)

ROOT = Path(__file__).resolve().parents[2]


def configured(home: Path, **variables: str) -> dict[str, str]:
    """What becomes of these variables."""
    variables = {"XDG_CACHE_HOME": str(home), **variables}
    configure(variables)
    return variables


def test_a_folder_by_processor_and_version_is_chosen(tmp_path):
    first = configured(tmp_path)
    (folder,) = (tmp_path / "mvo_jax").iterdir()
    assert first[FOLDER] == str(folder)
    assert folder.name.startswith("xla-")
    assert first["XLA_FLAGS"] == FAST_CPU_CONVOLUTION_FLAG
    assert configured(tmp_path) == first


@pytest.mark.parametrize("chosen", ["/nowhere/mine", ""])
def test_the_users_choice_stays(chosen, tmp_path):
    before = {"XDG_CACHE_HOME": str(tmp_path), FOLDER: chosen, OPT_OUT: "1"}
    assert configured(tmp_path, **before) == before
    assert list(tmp_path.iterdir()) == []


def test_who_has_no_home_that_can_be_written_compiles_each_time(tmp_path, monkeypatch):
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_text("")
    assert FOLDER not in configured(tmp_path / "file")
    monkeypatch.setattr(Path, "expanduser", no_home)
    variables: dict[str, str] = {}
    configure(variables)
    assert FOLDER not in variables


def test_entries_cut_short_or_changed_are_removed(tmp_path):
    whole = zlib.compress(b"a program" * 1000)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    entries = {
        "whole": whole,
        "cut": whole[:-3],
        "changed": bytes(changed),
        "empty": b"",
        "other": b"\x28\xb5\x2f\xfd what zlib cannot tell",
    }
    for name, content in entries.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    (tmp_path / "notes").write_bytes(b"")
    assert remove_damaged(tmp_path) == 3
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"whole-cache", "other-cache", "notes"}
    assert remove_damaged(tmp_path) == 0
    assert remove_damaged(tmp_path / "missing") == 0


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    (tmp_path / "old-cache").write_bytes(b"x")
    (tmp_path / ".checked").touch()
    os.utime(tmp_path / "old-cache", (1, 1))
    monkeypatch.setattr(environment, "_is_whole", lambda content: pytest.fail("was read"))
    assert remove_damaged(tmp_path) == 0


@pytest.mark.parametrize(
    ("first", "flag", "folder"),
    [("", True, True), ("import jax", True, False), ("import jax; jax.devices()", False, False)],
)
def test_a_program_that_imports_the_package_gets_what_jax_still_reads(
    first, flag, folder, tmp_path
):
    code = f"""
import os
{first}
from mvo_jax import list_models
print("{FAST_CPU_CONVOLUTION_FLAG}" in os.environ.get("XLA_FLAGS", ""), "{FOLDER}" in os.environ)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == [str(flag), str(folder)], result.stderr
