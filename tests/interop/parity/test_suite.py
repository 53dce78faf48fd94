"""The parity suite: it holds where the networks are equal, and breaks where they are not."""

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from mvo_jax.interop.layouts import LAYOUTS
from mvo_jax.interop.parity import pair, report, suite
from mvo_jax.interop.parity.cases import (
    BOUNDS,
    COMPARED,
    SMALL,
    Case,
    cases_of,
    deep_case,
    full_size_case,
)
from mvo_jax.interop.parity.results import Result, Row, Trace
from mvo_jax.interop.torch_models import TWINS
from mvo_jax.models.mask_decoder import LAYOUTS as DECODER_LAYOUTS
from mvo_jax.models.mvo_net import VARIANTS
from mvo_jax.models.temporal_encoder import FORMS
from tests.small_run import shipped_models, slow_but
from tests.torch_pairs import broken, check_float64

NETWORKS = [
    {"variant": "full", "mask_size": 16, "stage_sizes": (2, 1, 1)},
    {"variant": "cgmr", "decoder_layout": "released", "num_outputs": 2},
    {"variant": "bert", "in_channels": 1, "num_layers": 2},
    {"variant": "backbone"},
]
# They meet every variant, lowering, decoder layout and encoder form; the command runs all pairs of
# variant and lowering.
CASES = [
    *(Case("mvo_net", name, NETWORKS[(i + 1) % 4], batch=2) for i, name in enumerate(COMPARED)),
    deep_case(),
]
STEPPED = next(case for case in CASES if case.lowering == "conv2d_cpu")


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """Small tensors gain nothing from threads that wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "case",
    slow_but(STEPPED, CASES, "compiles the network in lowerings that a CPU does not choose"),
    ids=str,
)
def test_inference_and_training_equal_torch_in_float64(case):
    with jax.enable_x64(True):
        flax, weights, batch = check_float64(case)
        if case is STEPPED:
            _check_steps(flax, weights)
            _check_that_differences_are_seen(flax, weights, batch)


def _check_steps(flax, weights):
    """Twelve steps of each optimiser, dropout at work, with the bounds of the first thirty."""
    batches = [pair.cast(pair.draw_batch(flax.case, seed=seed), "float64") for seed in range(3)]
    for name in pair.OPTIMISERS:
        settings = pair.optimiser_settings(name, 12)
        losses, path, masks = flax.steps(flax.variables(weights), batches, settings, 12)
        assert any(not mask.all() for mask in masks[0].values())
        side = pair.TorchSide(flax.case, weights, "float64")
        torch_losses, torch_path = side.steps(batches, settings, masks)
        assert np.abs(np.subtract(losses, torch_losses)).max() <= BOUNDS.loss_after_30
        assert np.ptp(losses) > 1e-3  # they do learn
        drift = [pair.relative_l2(a, b) for a, b in zip(path, torch_path, strict=True)]
        assert max(drift) <= BOUNDS.loss_after_30
        # Both sides left the start.
        assert pair.relative_l2(path[-1], path[0]) > 1e-4


def _check_that_differences_are_seen(flax, weights, batch):
    """One parameter moved by a millionth breaks what depends on it, and only that."""
    other = pair.draw_weights(flax.case, seed=0)
    with torch.no_grad():
        other.state_dict()["fc_action.bias"].add_(1e-6)
    ours = flax.infer(flax.variables(weights), batch)
    theirs = pair.TorchSide(flax.case, other, "float64").infer(batch)
    rows = suite.compare(flax.case, "inference", ours, theirs)
    assert broken(rows).keys() == {"inference, logits"}


def test_a_bound_follows_the_size_of_what_it_bounds():
    """Float64 cannot hold 1e-12 of a number of 2e9; a small number keeps the bound whole."""

    def row(size: float, difference: float):
        truth = np.array([[size, -0.1 * size]])
        sides = ({"values": {"logits": truth + shift}} for shift in (difference, 0.0))
        (found,) = suite.compare(STEPPED, "inference", *sides)
        return found

    assert row(0.5, 2e-12).bound == BOUNDS.forward
    assert broken([row(0.5, 2e-12)])
    assert not broken([row(2e9, 1e-6)])
    assert broken([row(2e9, 1e-2)])


def test_cases_cover_every_choice():
    def chosen(option, default, cases):
        return {case.network.get(option, default) for case in cases}

    for cases in (CASES, cases_of("mvo_net")):
        assert {case.lowering for case in cases} == set(COMPARED)
        assert chosen("variant", "full", cases) == set(VARIANTS)
        assert chosen("decoder_layout", "paper", cases) == set(DECODER_LAYOUTS)
        assert chosen("encoder_form", "released", cases) == set(FORMS)
    pairs = {(case.network["variant"], case.lowering) for case in cases_of("mvo_net")}
    assert len(pairs) == len(VARIANTS) * len(COMPARED)
    assert chosen("form", "", cases_of("timesformer")) == {"gated", "released"}


def test_every_model_of_the_registry_has_a_twin():
    assert set(shipped_models()) == TWINS.keys() == SMALL.keys() == LAYOUTS.keys()
    for model in TWINS:
        case = full_size_case(model)
        assert case.lowering in ("", *COMPARED)
        assert case.config["in_channels"] == 3  # the published one


@pytest.mark.slow(reason="compiles a network in both precisions")
def test_float32_is_about_as_exact_as_torch():
    """Few draws, for time: a wide bound here, 1.5 with the 128 draws of the command."""
    with jax.enable_x64(True):
        rows = suite.float32_rows(Case("mvo_net", "conv2d", {"variant": "full"}, batch=2), draws=8)
    ratios = [row.value for row in rows if row.measure == "ratio"]
    assert len(ratios) > 40
    # The median over quantities is steady where single ones of few draws are not; measured 0.8.
    assert 0.3 < float(np.median(ratios)) < 1.2
    # 8 draws of a quantity of two numbers scatter by a third; a lost digit would be a factor of 10.
    assert max(ratios) < 5


def test_formulas_agree():
    with jax.enable_x64(True):
        rows = suite.formulas(100)
    assert broken(rows) == {}
    assert len(rows) == 8


def test_a_network_without_a_counterpart_quantity_breaks():
    ours = {"values": {"logits": np.zeros((2, 1))}}
    theirs = {"values": {"logits": np.zeros((2, 1)), "coarse mask": np.zeros((2, 4, 4))}}
    rows = suite.compare(STEPPED, "inference", ours, theirs)
    assert [row.quantity for row in rows if not row.holds] == ["coarse mask"]


def test_zero_gradients_by_architecture():
    paper, released = STEPPED, deep_case()
    assert paper.zero_gradient("pseudo_branch.deconv1.deconv2.bias")  # another block follows
    assert not paper.zero_gradient("pseudo_branch.deconv2.deconv2.bias")
    assert released.zero_gradient("pseudo_branch.deconv1.conv3.bias")
    assert not paper.zero_gradient("fc_action.bias")


ROWS = [
    Row("full / conv2d", "inference", "logits", 1e-15, 2e-15, "absolute", 1e-15, 1e-12),
    Row("full / conv2d", "training step", "gradient trunk.a", 1e-9, 1e-3, "relative", 1e-3, 1e-11),
    Row("full / conv2d", "training step", "gradient trunk.b", 0.0, 0.0, "relative", 0.0, 1e-11),
    Row("full / conv2d", "float32", "loss", 1e-7, 1.2e-7, "ratio", 1.2, 1.5),
]
RESULT = Result(ROWS, [Trace("full / conv2d", "adamw", [1.0, 0.9], [0.0, 1e-15], [1e-16, 0.0])])


def test_table_shows_the_worst_of_each_family():
    table = report.text_table(RESULT).splitlines()
    assert len(table) == 4  # header, logits, gradients of the trunk, float32 loss
    gradients = next(line for line in table if "gradient, trunk" in line)
    assert "BROKEN" in gradients
    assert "gradient trunk.a" in gradients
    assert sum("holds" in line for line in table) == 2
    assert "1.20 x torch's" in table[-1]


def test_page_and_json(tmp_path):
    about = {"jax": "1.2.3", "steps": 100}
    report.write_html(tmp_path / "a.html", RESULT, about)
    page = (tmp_path / "a.html").read_text()
    assert "1 of 4 comparisons broke their bound" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")  # works offline
    whole = dataclasses.replace(RESULT, rows=[row for row in ROWS if row.holds], traces=[])
    report.write_html(tmp_path / "b.html", whole, about)
    assert "All 3 comparisons hold" in (tmp_path / "b.html").read_text()
    report.write_json(tmp_path / "a.json", RESULT, about)
    assert '"holds": false' in (tmp_path / "a.json").read_text()


def test_nan_breaks_every_bound():
    assert not dataclasses.replace(ROWS[0], value=math.nan).holds


@pytest.mark.slow(reason="starts an interpreter and a worker that import JAX and PyTorch")
def test_workers_end_with_the_process_that_started_them():
    code = (
        "import concurrent.futures, multiprocessing, os, time\n"
        "from mvo_jax.interop.parity.suite import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = concurrent.futures.ProcessPoolExecutor(1, context, end_with_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n"
        "    time.sleep(600)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "pool.py"
        script.write_text(code)
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=env) as parent:
            assert parent.stdout is not None
            worker = Path(f"/proc/{int(parent.stdout.readline())}")
            assert worker.exists()
            parent.kill()
        for _ in range(300):
            if not worker.exists():
                return
            time.sleep(0.1)
    raise AssertionError("the worker outlived the process that started it")
