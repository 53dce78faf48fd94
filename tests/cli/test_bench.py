"""The door to the benchmarks."""

import pytest

from mvo_jax.cli import bench
from mvo_jax.cli.main import run
from mvo_jax.errors import EXIT_USER_ERROR


def test_every_benchmark_it_names_is_there(capsys):
    assert run("bench", ["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (script, _) in bench.WHAT.items():
        assert (bench.FOLDER / script).is_file()
        assert f"  {name} " in printed


@pytest.mark.parametrize("arguments", [[], ["speed"], ["--impl=jax"]])
def test_what_is_not_a_benchmark(arguments, capsys):
    assert run("bench", arguments) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "choose from train, inference, layers, data, run, tpu" in error


def test_installed_without_the_repository(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "benchmarks")
    assert run("bench", ["train"]) == EXIT_USER_ERROR
    assert "clone the repository" in capsys.readouterr().err


def test_the_exit_code_and_message_of_the_benchmark_are_the_command_s(capfd):
    with pytest.raises(SystemExit) as ended:
        run("bench", ["train", "--lowering=conv4d"])
    assert ended.value.code == EXIT_USER_ERROR
    assert "error: --lowering names conv4d" in capfd.readouterr().err
