"""Fingerprints: one and eight devices agree, what differs is seen, files that are none."""

import copy
import json
from typing import Any

import jax
import pytest

from mvo_jax.errors import UserError
from mvo_jax.interop import fingerprint


@pytest.fixture(scope="module")
def one_device() -> dict[str, Any]:
    with jax.enable_x64(True):
        return fingerprint.compute(dtype="float64", num_devices=1)


@pytest.mark.slow(reason="computes fingerprints on one and on eight devices")
def test_one_and_eight_devices_agree_in_float64(one_device):
    with jax.enable_x64(True):
        eight = fingerprint.compute(dtype="float64", num_devices=8)
    found = fingerprint.compare(one_device, eight)
    assert {d.name: d.value for d in found if not d.holds} == {}
    # The bounds are the stated 1e-12 or 0 and no more.
    assert {d.bound for d in found} == {0.0, 1e-12}
    groups = {d.name.split("/")[0] for d in found}
    assert groups == {"exact", "batch", "inference", "gradient", "steps"}
    # Batches are split, so sums over them are not the same bytes: the comparison saw two programs.
    assert not all(d.identical for d in found)


@pytest.mark.slow(reason="computes fingerprints on one and on eight devices")
def test_written_and_read_again_it_is_the_same(one_device, tmp_path):
    path = tmp_path / "a.json"
    fingerprint.write(path, one_device)
    found = fingerprint.compare(one_device, fingerprint.read(path))
    assert all(d.identical for d in found)


@pytest.mark.slow(reason="computes fingerprints on one and on eight devices")
@pytest.mark.parametrize("entry", ["gradient/classifier/kernel", "steps/loss"])
@pytest.mark.parametrize("part", ["samples", "projections"])
def test_a_change_beyond_the_tolerance_is_seen(one_device, entry, part):
    other = copy.deepcopy(one_device)
    rms = other["entries"][entry]["rms"]
    other["entries"][entry]["sha256"] = "other"
    unchanged = fingerprint.compare(one_device, other)
    assert [d.name for d in unchanged if not d.identical] == [entry]
    assert all(d.holds for d in unchanged)
    # A projection is measured against the square root of the number of entries, 16 and 10.
    other["entries"][entry][part][0] += 1e-11 * rms
    assert [d.name for d in fingerprint.compare(one_device, other) if not d.holds] == [entry]
    assert all(d.holds for d in fingerprint.compare(one_device, other, scale=100))


@pytest.mark.slow(reason="computes fingerprints on one and on eight devices")
def test_one_bit_of_an_exact_entry_is_seen(one_device):
    other = copy.deepcopy(one_device)
    other["entries"]["exact/sample stream"]["sha256"] = "other"
    found = fingerprint.compare(one_device, other, scale=1e9)
    assert [d.name for d in found if not d.holds] == ["exact/sample stream"]


@pytest.mark.slow(reason="computes fingerprints on one and on eight devices")
def test_missing_entries_are_seen(one_device):
    other = copy.deepcopy(one_device)
    other["entries"]["steps/new"] = other["entries"].pop("steps/loss")
    found = fingerprint.compare(one_device, other)
    assert [d.name for d in found if not d.holds] == ["steps/loss", "steps/new"]


@pytest.mark.slow(reason="computes fingerprints on one and on eight devices")
def test_fingerprints_of_different_computations_are_not_compared(one_device):
    other = {**one_device, "about": {**one_device["about"], "dtype": "float32"}}
    with pytest.raises(UserError, match="dtype is float64 in one and float32"):
        fingerprint.compare(one_device, other)


@pytest.mark.parametrize("content", ["", "not json", "[1]", json.dumps({"format": "other"})])
def test_files_that_are_no_fingerprint(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json is (not JSON|no fingerprint)"):
        fingerprint.read(path)
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        fingerprint.read(tmp_path / "none.json")


def test_devices_that_cannot_share_the_batch():
    with pytest.raises(UserError, match="cannot be shared by 3 devices"):
        fingerprint.compute(num_devices=3)
