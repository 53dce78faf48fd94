"""Where the time goes: shares that add up, and work that was lost."""

import time

import pytest

from mvo_jax.runs.goodput import PHASES, Clock, describe, total


def start(first: int, last: int, **seconds: float) -> dict:
    by_phase = {f"{phase}_seconds": seconds.get(phase, 0.0) for phase in PHASES}
    whole = sum(by_phase.values())
    return {"first_step": first, "last_step": last, "seconds": whole, **by_phase}


def test_every_second_belongs_to_one_phase(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(before=2.0)
    for phase, seconds in (("compile", 3.0), ("step", 4.0)):
        now += 1.0
        clock.enter(phase)
        now += seconds
    with clock.during("input"):
        now += 5.0
    now += 1.0
    row = clock.row()
    found = {phase: row[f"{phase}_seconds"] for phase in PHASES}
    # The second before a phase counts for the one before it.
    assert found == {
        **dict.fromkeys(PHASES, 0.0),
        "start": 3.0,
        "compile": 4.0,
        "step": 5.0,
        "input": 5.0,
    }
    assert row["seconds"] == 17.0 == sum(found.values())


def test_steps_done_again_are_lost():
    killed, resumed = start(0, 40, step=80.0, start=20.0), start(30, 60, step=60.0, start=40.0)
    shares = total([killed, resumed])
    # 10 of 40 steps again: 20 of 80 seconds; 120 of 200 were good.
    assert (shares["starts"], shares["lost"]) == (2, pytest.approx(20 / 200))
    assert shares["goodput"] == pytest.approx(120 / 200)
    assert shares["start"] == pytest.approx(60 / 200)
    rest = sum(shares[phase] for phase in PHASES if phase != "step")
    assert shares["goodput"] + shares["lost"] + rest == pytest.approx(1)


def test_a_start_that_came_to_nothing_costs_its_time():
    nothing = start(30, 30, start=50.0)
    assert total([start(0, 30, step=50.0), nothing])["goodput"] == pytest.approx(0.5)
    assert total([nothing])["goodput"] == 0


def test_the_report_is_one_line_or_two():
    rows = [start(0, 30, step=75.0, start=25.0), start(30, 60, step=50.0, validation=50.0)]
    assert describe(rows[:1]) == "goodput: 75.0 % of 100 s in steps; start 25.0 %"
    last, whole = describe(rows).splitlines()
    assert last == "goodput: 50.0 % of 100 s in steps; validation 50.0 %"
    assert whole.startswith("goodput of all 2 starts: 62.5 % of 200 s in steps; ")
