import dataclasses

import numpy as np
import pytest

from mvo_jax.data.phantom.case import CaseKey, plan_case
from mvo_jax.data.phantom.draws import Draws
from mvo_jax.data.phantom.heart import ANGLES, DEPTHS, MVO_START, N_ANGLE, N_DEPTH, build_heart
from mvo_jax.data.phantom.patient import PRESETS, draw_anatomy, draw_pathology
from mvo_jax.data.phantom.render import Deformed, render_mask


def some_plans(count=12, *, mvo=True):
    return [plan_case(CaseKey("paper", 11, i, 0, 1, mvo)) for i in range(count)]


def test_infarct_takes_its_share_of_the_muscle():
    for plan in some_plans():
        anatomy = dataclasses.replace(plan.anatomy, slice_offset=0.0)
        wanted = dataclasses.replace(
            plan.pathology, infarct_share=0.2, level=0.0, swelling=0.0, mvo=False
        )
        heart = build_heart(anatomy, wanted, slice_index=0, slices=1)
        # One cell of the table holds 1 / (40 * 512) of the muscle.
        assert heart.weight[heart.infarct].sum() == pytest.approx(0.2, abs=1e-3)
        assert heart.weight.sum() == pytest.approx(1.0)


def test_core_lies_inside_the_infarct_below_the_endocardium():
    for plan in some_plans():
        heart = plan.heart
        assert heart.core.any()
        assert not np.any(heart.core & ~heart.infarct)
        assert not heart.core[DEPTHS < MVO_START].any()
        assert heart.infarct[0].any()  # the wavefront starts at the endocardium
    assert not any(plan.heart.core.any() for plan in some_plans(mvo=False))


def test_infarcted_wall_contracts_less_than_remote_wall():
    for plan in some_plans(mvo=False):
        if plan.pathology.strain < plan.anatomy.remote_strain:
            continue
        heart = plan.heart
        opposite = heart.strain[~heart.infarct.any(axis=0)].min()
        assert heart.strain[heart.infarct.any(axis=0)].mean() > opposite


def test_tracing_inverts_the_motion():
    heart = some_plans(1)[0].heart
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, N_DEPTH, 500), rng.integers(0, N_ANGLE, 500)
    for contraction in (0.0, 0.4, 1.0):
        start = heart.endo + DEPTHS[:, None] * (heart.epi - heart.endo)
        radius = heart.radius(start, contraction)[i, j]
        angle = ANGLES[j] + heart.twist * contraction * (1.3 - DEPTHS[i])
        depth, at = Deformed(heart, contraction).trace(radius, angle)
        # In the right cell of angle the closed form is exact. The single correction of the twist
        # may end in the neighbouring cell (0.7 degrees, 0.35 mm), whose wall differs a little.
        assert np.max(np.minimum((at - j) % N_ANGLE, (j - at) % N_ANGLE)) <= 1
        same = at == j
        assert same.mean() > 0.75
        np.testing.assert_allclose(depth[same], DEPTHS[i][same], atol=1e-9)
        np.testing.assert_allclose(depth, DEPTHS[i], atol=0.06)


def test_mvo_moves_with_the_wall():
    for plan in some_plans(6):
        still = dataclasses.replace(
            plan.scan, mask_shift=np.zeros(2), mask_rotation=0.0, mask_scale=1.0,
            mask_border=np.zeros(16),
        )  # fmt: skip
        systole = dataclasses.replace(still, mask_contraction=1.0)
        size = 128
        spacing = plan.anatomy.field_of_view / size
        mask = render_mask(plan.heart, plan.anatomy, systole, image_size=size)
        rows, columns = np.nonzero(mask == 2)
        x = (columns + 0.5 - size / 2) * spacing - plan.anatomy.centre[0]
        y = (size / 2 - rows - 0.5) * spacing - plan.anatomy.centre[1]
        angle = np.arctan2(y, x) - plan.anatomy.rotation
        depth, at = Deformed(plan.heart, 1.0).trace(np.hypot(x, y), angle)
        cell = np.clip((depth * N_DEPTH).astype(int), 0, N_DEPTH - 1)
        # A pixel is MVO when most of it is; the centre of a few thin ones lies just outside.
        assert plan.heart.core[cell, at].mean() > 0.85
        diastole = render_mask(
            plan.heart, plan.anatomy, dataclasses.replace(still, mask_contraction=0.0),
            image_size=size,
        )  # fmt: skip
        if plan.heart.fractional_area_change > 0.3:
            assert np.any((mask == 2) != (diastole == 2))


def test_slices_share_the_patient_and_differ_in_shape():
    anatomy = draw_anatomy(2, 5)
    pathology = draw_pathology(Draws(2, 5, "pathology"), mvo=True, preset=PRESETS["paper"])
    hearts = [build_heart(anatomy, pathology, slice_index=s, slices=9) for s in range(9)]
    radii = [heart.endo.mean() for heart in hearts]
    assert radii[0] > radii[-1]  # the ventricle narrows towards the apex
    assert all(heart.core.any() for heart in hearts)
