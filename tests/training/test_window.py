"""The window between two rows of the log."""

import math

import pytest

from mvo_jax.training.window import MetricsWindow


def test_means_and_speed_of_what_was_added_since_the_last_row():
    window = MetricsWindow()
    assert math.isnan(window.clips_per_second)
    for loss in (1.0, 2.0, 6.0):
        window.add({"loss": loss, "accuracy": 0.5})
    window.measure(16, 2.0)
    window.measure(8, 1.0)
    assert window.means() == {"loss": 3.0, "accuracy": 0.5}
    assert window.clips_per_second == pytest.approx(8.0)
    window.clear()
    assert window.rows == []
    assert math.isnan(window.clips_per_second)


def test_steps_of_an_earlier_start_count_for_the_means_alone():
    saved = [{"loss": 1.0}]
    window = MetricsWindow(saved)
    window.add({"loss": 3.0})
    window.measure(4, 0.5)
    assert window.mean("loss") == 2.0
    assert window.clips_per_second == 8.0
    assert saved == [{"loss": 1.0}]  # what was restored is not changed
