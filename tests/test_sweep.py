"""Grids of settings in config files, and the rows and configs that a study makes of them."""

import pytest

from mvo_jax import sweep as hyper
from mvo_jax.cli import study
from mvo_jax.cli.flags import Flags
from mvo_jax.errors import UserError

RATE, WIDTH = "config.optimizer.learning_rate", "config.model.width"


def test_combinations():
    rates, widths = hyper.sweep(RATE, [0.1, 0.2]), hyper.sweep(WIDTH, [8, 16])
    rate, width = "optimizer.learning_rate", "model.width"
    assert hyper.product([rates, widths]) == [
        {rate: a, width: b} for a in (0.1, 0.2) for b in (8, 16)
    ]
    assert hyper.zipit([rates, widths]) == [{rate: 0.1, width: 8}, {rate: 0.2, width: 16}]
    assert hyper.chainit([rates, widths]) == [*rates, *widths]
    assert hyper.product([rates, hyper.fixed(WIDTH, 4)])[1] == {rate: 0.2, width: 4}
    with pytest.raises(ValueError, match="shorter"):
        hyper.zipit([rates, hyper.fixed(WIDTH, 4)])
    with pytest.raises(UserError, match=r"sets optimizer\.learning_rate twice"):
        hyper.product([rates, rates])


def test_names_tell_settings_apart():
    settings = (("config.data.seed", 0), ("config.seed", 1), (WIDTH, 8))
    keys = hyper.product([hyper.sweep(key, [value]) for key, value in settings])
    assert list(hyper.rows(keys)) == ["data.seed=0, seed=1, width=8"]
    assert list(hyper.rows(hyper.sweep("config.init_from", ["a/b"]))) == ["init_from=a_b"]
    twice = hyper.sweep(WIDTH, [8, 8])
    for grid, words in (([], "empty grid"), (None, "no grid"), (twice, "twice")):
        with pytest.raises(UserError, match=words):
            hyper.rows(grid)  # pyright: ignore[reportArgumentType]


def values(path: object) -> Flags:
    found = Flags()
    study._define(found)
    found(["study", f"--config={path}", "--out=unused"])
    return found


def test_a_grid_becomes_a_study_on_validation():
    comparison = study._comparison(values("configs/sweep.py"), ["--config.train.total_steps=7"])
    assert len(comparison.configs) == 6
    config = comparison.configs["learning_rate=0.003, mask_loss_weight=20.0"][1]
    assert (config.seed, config.train.total_steps) == (1, 7)
    assert (config.optimizer.learning_rate, config.loss.mask_loss_weight) == (0.003, 20.0)
    assert comparison.split == "validation"
    with pytest.raises(UserError, match="sets what the grid sweeps"):
        study._comparison(values("configs/sweep.py"), ["--config.loss.mask_loss_weight=1"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("hyper.sweep('config.optimizer.rate', [1])", "no key"),
        ("hyper.sweep('config.optimizer.learning_rate', 3)", "get_hyper of .* failed"),
        ("hyper.grid([])", "get_hyper of .* failed"),
        ("hyper.sweep('config.model.stage_sizes', [(1,), (1, 1)])", None),
    ],
)
def test_what_a_file_may_have_wrong(tmp_path, body, words):
    path = tmp_path / "mine.py"
    path.write_text(
        "from mvo_jax.config_files import load_config\n"
        "def get_config(argument=''):\n    return load_config('demo')\n"
        f"def get_hyper(hyper):\n    return {body}\n"
    )
    if words is None:
        configs = study._comparison(values(path), []).configs
        assert [c[0].model.stage_sizes for c in configs.values()] == [(1,), (1, 1)]
        return
    with pytest.raises(UserError, match=words):
        study._comparison(values(path), [])
