import numpy as np
import pytest

from mvo_jax.data.phantom.kinematics import (
    deformed_radius,
    strongest_strain,
    through_plane_stretch,
    time_curve,
)

ENDO, EPI = 25.0, 33.6  # mm; wall 8.6


def ring(radius, strain, contraction=1.0):
    return float(
        deformed_radius(
            np.array(radius),
            endo=np.array(ENDO),
            epi=np.array(EPI),
            strain=np.array(strain),
            contraction=contraction,
        )
    )


@pytest.mark.parametrize(
    ("strain", "thickening", "ejection"),
    # Published pairs of strain and thickening that the closed form is to reproduce, in %.
    [(-0.195, 51, 63), (-0.086, 18, 31), (-0.06, 12, None), (0.0, 0, 0), (0.03, -5, None)],
)
def test_published_pairs_of_strain_and_thickening(strain, thickening, ejection):
    endo, epi = ring(ENDO, strain), ring(EPI, strain)
    # Half a percent, because the published figures are whole percents.
    assert 100 * ((epi - endo) / (EPI - ENDO) - 1) == pytest.approx(thickening, abs=0.5)
    if ejection is not None:
        stretch = float(through_plane_stretch(np.array(strain)))
        assert 100 * (1 - (endo / ENDO) ** 2 * stretch) == pytest.approx(ejection, abs=0.5)


def test_endocardium_shortens_more_than_the_middle_of_the_wall():
    assert 1 - ring(ENDO, -0.195) / ENDO == pytest.approx(0.33, abs=0.005)
    assert ring((ENDO + EPI) / 2, 0.0) == (ENDO + EPI) / 2


@pytest.mark.parametrize("strain", [-0.25, -0.1, 0.05])
@pytest.mark.parametrize("contraction", [0.0, 0.3, 1.0])
def test_every_shell_keeps_its_volume(strain, contraction):
    stretch = 1 + (float(through_plane_stretch(np.array(strain))) - 1) * contraction
    shells = np.linspace(ENDO, EPI, 7)
    now = np.array([ring(r, strain, contraction) for r in shells])
    np.testing.assert_allclose(np.diff(now**2) * stretch, np.diff(shells**2), rtol=1e-12)


def test_middle_of_a_thin_wall_shortens_by_the_strain():
    # The formula puts the strain on the end-diastolic mid-wall point's radius only to first order
    # in the wall's thickness, so a wall of 0.1 mm is used: the rest is (0.1 / 25)^2.
    radius = deformed_radius(
        np.array(25.05), endo=np.array(25.0), epi=np.array(25.1), strain=np.array(-0.15),
        contraction=1.0,
    )  # fmt: skip
    assert float(radius) / 25.05 == pytest.approx(0.85, abs=2e-5)


def test_strongest_strain_is_the_edge_of_the_possible():
    endo, epi = np.array([19.0, 20.0]), np.array([30.0, 29.0])
    strain = strongest_strain(endo, epi)

    def smallest(strain):
        radius = deformed_radius(endo, endo=endo, epi=epi, strain=np.array(strain), contraction=1.0)
        return np.min(radius / endo)

    assert smallest(strain) >= 0.35
    assert smallest(strain - 0.002) < 0.35  # one step of the search further


def test_time_curve_is_a_heart_beat():
    phase = np.arange(1000) / 1000
    g = time_curve(phase, end_systole=0.36, filling_delay=0.17)
    assert g[0] == 0.0
    assert g[360] == 1.0
    assert np.argmax(g) == 360
    assert g[-1] < 0.02  # the beat closes
    assert np.all(np.diff(g[:361]) > 0)
    assert np.all(np.diff(g[361:]) <= 0)
    assert np.all((g >= 0) & (g <= 1))
