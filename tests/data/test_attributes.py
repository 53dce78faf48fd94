"""What a cohort knows of its cases: features of the simulator, columns of a manifest."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mvo_jax.data import attributes as module
from mvo_jax.data.attributes import attributes
from mvo_jax.data.cohort_card import split_card

SIMULATED = SimpleNamespace(name="phantom")


@pytest.fixture
def cases(random_split):
    features = {
        "male": np.array([1, 0, 1, 1], np.float32), "territory": np.array([0, 2, 1, 0], np.float32),
        "infarct_size": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "blood_snr": np.array([10, 20, 30, 40], np.float32),
    }  # fmt: skip
    return dataclasses.replace(random_split(cases=4), features=features)


def test_of_a_simulated_cohort(cases):
    found = attributes(SIMULATED, cases)
    assert found["sex"] == ["male", "female", "male", "male"]
    assert found["territory"] == ["LAD", "LCx", "RCA", "LAD"]
    assert found["infarct size, % of the slice's muscle"] == pytest.approx([10, 20, 30, 40])
    assert list(found) == [
        "sex", "territory", "infarct size, % of the slice's muscle",
        "image quality, signal to noise of the blood",
    ]  # fmt: skip
    card = split_card(SIMULATED, cases)
    assert (card["cases"], card["patients"], card["positive"]) == (4, 4, 2)
    assert card["attributes"]["sex"] == {"female": 1, "male": 3}
    assert card["attributes"]["image quality, signal to noise of the blood"]["mean"] == 25
    assert split_card(SIMULATED, cases, known=False)["attributes"] == {}


def test_of_a_prepared_cohort_every_column_that_describes_a_case():
    manifest = {
        f"c{i}": {
            "case_id": f"c{i}", "sha256": "0", "grey_low": "1", "slice": str(i),
            "spacing_mm": "1.5", "centre_from": ("mask", "", "motion")[i % 3],
            "scanner": "A",  # of a later version
        }
        for i in range(6)
    }  # fmt: skip
    found = module._of_manifest(manifest, [f"c{i}" for i in range(6)] + ["unknown"])
    assert found == {
        "slice": ["0", "1", "2", "3", "4", "5", ""],  # not a number in every case
        "spacing mm": ["1.5"] * 6 + [""],
        "centre from": ["mask", "", "motion"] * 2 + [""],
        "scanner": ["A"] * 6 + [""],
    }
    assert module._of_manifest(manifest, [f"c{i}" for i in range(6)])["slice"] == [*range(6)]
