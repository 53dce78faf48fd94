"""Compiled programs between commands: where they are, and what a kill leaves of them."""

import os
import zlib

from mvo_jax.cli.compilation_cache import FOLDER, configure_cache, remove_damaged


def test_a_folder_by_processor_and_version_is_chosen(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    configure_cache(environment)
    (folder,) = (tmp_path / "mvo_jax").iterdir()
    assert environment[FOLDER] == str(folder)
    assert folder.name.startswith("xla-")
    again = {"XDG_CACHE_HOME": str(tmp_path)}
    configure_cache(again)
    assert again == environment


def test_the_users_choice_stays(tmp_path):
    for chosen in (str(tmp_path / "mine"), ""):
        environment = {FOLDER: chosen, "XDG_CACHE_HOME": str(tmp_path)}
        configure_cache(environment)
        assert environment == {FOLDER: chosen, "XDG_CACHE_HOME": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_compiles_each_time(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    configure_cache(environment)
    assert FOLDER not in environment


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
    (tmp_path / "old-cache").write_bytes(zlib.compress(b"x"))
    remove_damaged(tmp_path)
    read = []
    monkeypatch.setattr("mvo_jax.cli.compilation_cache._is_whole", lambda content: read.append(1))

    os.utime(tmp_path / "old-cache", (1, 1))
    remove_damaged(tmp_path)
    assert read == []
