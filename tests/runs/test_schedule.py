"""What is due when, by hand."""

import pytest
from ml_collections import ConfigDict

from mvo_jax.runs.schedule import Due, due, next_stop


def options(**changes):
    return ConfigDict(
        {
            "total_steps": 25,
            "log_every": 4,
            "eval_every": 10,
            "save_every": 6,
            "save_every_seconds": 300.0,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("step", "seconds", "expected"),
    [
        (1, 0, Due(log=False, save=False, evaluate=False)),
        (4, 0, Due(log=True, save=False, evaluate=False)),
        (6, 0, Due(log=False, save=True, evaluate=False)),
        (7, 301, Due(log=False, save=True, evaluate=False)),
        # Saved before it is evaluated, and logged up to there.
        (10, 0, Due(log=True, save=True, evaluate=True)),
        (25, 0, Due(log=True, save=True, evaluate=True)),
    ],
)
def test_what_is_due(step, seconds, expected):
    assert due(step, options(), seconds_since_save=seconds) == expected


def test_before_the_first_step_there_is_nothing_to_evaluate():
    assert not due(0, options()).evaluate


def test_intervals_of_zero_are_off():
    off = options(save_every=0, save_every_seconds=0.0)
    assert not due(6, off, seconds_since_save=1e9).save
    assert next_stop(4, off, longest=99) == 8


@pytest.mark.parametrize("longest", [1, 3, 99])
def test_a_dispatch_ends_where_something_is_due(longest):
    step, stops = 0, []
    while step < 25:
        stop = next_stop(step, options(), longest=longest)
        assert step < stop <= step + longest
        between = [due(k, options()) for k in range(step + 1, stop)]
        assert not any(now.log or now.save or now.evaluate for now in between)
        stops.append(step := stop)
    assert step == 25
    if longest == 99:
        assert stops == [4, 6, 8, 10, 12, 16, 18, 20, 24, 25]
