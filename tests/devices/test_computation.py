"""What changes results: read as it is in force, and compared between processes."""

import json
from typing import Any

import jax
import pytest

from mvo_jax.devices import computation, distributed, parallel
from mvo_jax.errors import UserError

CHANGED: dict[str, tuple[Any, Any]] = {
    "jax_enable_x64": (lambda: jax.enable_x64(True), True),
    "jax_default_prng_impl": (lambda: jax.default_prng_impl("rbg"), "rbg"),
    "jax_threefry_partitionable": (lambda: jax.threefry_partitionable(False), False),
    "jax_default_matmul_precision": (lambda: jax.default_matmul_precision("highest"), "highest"),
    "jax_numpy_dtype_promotion": (lambda: jax.numpy_dtype_promotion("strict"), "strict"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_is_read_as_it_is_in_force(name):
    context, value = CHANGED[name]
    before = computation.settings()
    with context():
        now = computation.settings()
    assert now[name] == value
    assert computation.changes(before, now) == [f"{name} {before[name]!r} -> {value!r}"]
    assert computation.settings() == before
    assert json.loads(json.dumps(before)) == before


def test_what_rounds_is_told_by_name(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_dump_to=here")
    one = computation.rounding(parallel.devices(1))
    assert one["xla_flags"] == "--xla_a=1"
    assert (one["backend"], one["devices"], one["processes"]) == ("cpu", 1, 1)
    assert one["processor"]
    other = {**one, "devices": 8, "versions": {**one["versions"], "jaxlib": "0.1"}}
    assert computation.changes(one, other) == [
        "devices 1 -> 8",
        f"jaxlib {one['versions']['jaxlib']!r} -> '0.1'",
    ]
    assert computation.changes({}, other) == []  # an earlier revision recorded nothing


EVERYTHING = {**computation.settings(), **computation.rounding(parallel.devices())}


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "versions"])
def test_a_host_that_differs_in_one_of_them_is_named(name, monkeypatch):
    def two_hosts(text: str) -> list[str]:
        host, ours = json.loads(text)
        return [text, json.dumps([f"{host}-b", {**ours, name: "another"}])]

    monkeypatch.setattr(distributed, "exchange", two_hosts)
    with pytest.raises(UserError, match=rf"process 1 on .*-b has another {name} than process 0 on"):
        distributed.check_same(EVERYTHING, distributed.SAME_START)
