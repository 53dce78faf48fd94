"""Every system of Table 1 against its torch twin: float64 in training, published size in float32.

``mvo_net`` has more cases in tests/interop/parity/test_suite.py.
"""

import jax
import pytest

from mvo_jax.interop.parity.cases import Case, cases_of
from tests.small_run import shipped_models, slow_but
from tests.torch_pairs import check_float64, check_full_size_in_float32

MODELS = [name for name in shipped_models() if name != "mvo_net"]
# One lowering: the command runs all of them.
CASES = [case for name in MODELS for case in cases_of(name) if case.lowering in ("", "conv2d")]


@pytest.mark.parametrize(
    "case",
    slow_but(
        next(case for case in CASES if case.model == "c3d"),
        CASES,
        "compiles a baseline in both frameworks; C3D stands for all",
    ),
    ids=str,
)
def test_inference_and_training_equal_torch_in_float64(case: Case) -> None:
    with jax.enable_x64(True):
        flax, _, batch = check_float64(case)
    assert batch["video"].shape[1:] == case.clip
    assert flax.case is case


@pytest.mark.slow(reason="full-size networks")
@pytest.mark.parametrize("model", [*MODELS, "mvo_net"])
def test_published_size_equals_torch_in_float32(model: str) -> None:
    check_full_size_in_float32(model)
