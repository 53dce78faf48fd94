import hashlib

import numpy as np
import pytest
import scipy.stats

from mvo_jax.data.phantom.draws import Draws, smooth_field


def test_a_uniform_is_the_top_53_philox_bits_centred_in_their_cell():
    key = np.frombuffer(hashlib.sha256(b"a/1").digest()[:16], dtype="<u8")
    draws = Draws("a", 1)
    for bits in np.random.Philox(key=key).random_raw(3).tolist():
        assert draws.uniform() == (bits >> 11) * 2.0**-53 + 2.0**-54


@pytest.mark.parametrize(
    ("draw", "distribution"),
    [
        (lambda d: d.uniform(2.0, 5.0), scipy.stats.uniform(2.0, 3.0)),
        (lambda d: d.normal(3.0, 2.0), scipy.stats.norm(3.0, 2.0)),
        (lambda d: d.gamma(mean=23.0, sd=9.0), scipy.stats.gamma((23 / 9) ** 2, scale=81 / 23)),
        (lambda d: d.beta(6.0, 2.0), scipy.stats.beta(6.0, 2.0)),
    ],
)
def test_distributions(draw, distribution):
    stream = Draws(7, "distribution")
    sample = [draw(stream) for _ in range(3000)]
    # A wrong distribution gives a p-value far below this; a right one is below it once in 1000.
    assert scipy.stats.kstest(sample, distribution.cdf).pvalue > 1e-3


def test_choice_and_integer_and_chance_follow_their_probabilities():
    d = Draws(8)
    n = 4000
    share = np.bincount([d.choice((0.47, 0.38, 0.15)) for _ in range(n)], minlength=3) / n
    # 4 standard errors of a share of 0.5 among 4000.
    np.testing.assert_allclose(share, (0.47, 0.38, 0.15), atol=4 * 0.5 / n**0.5)
    assert {d.integer(3) for _ in range(200)} == {0, 1, 2}
    assert np.mean([d.chance(0.1) for _ in range(n)]) == pytest.approx(0.1, abs=4 * 0.3 / n**0.5)


def test_keys_name_streams():
    assert np.array_equal(Draws(1, 2, "x").normals(3, 4), Draws(1, 2, "x").normals(3, 4))
    assert not np.array_equal(Draws(1, 2, "x").normals(4), Draws(1, 2, "y").normals(4))
    assert not np.array_equal(Draws(1, 23).normals(4), Draws(12, 3).normals(4))


def test_clipping():
    d = Draws(4)
    values = [d.normal(0.0, 1.0, low=-0.5, high=0.25) for _ in range(200)]
    assert min(values) == -0.5
    assert max(values) == 0.25


def test_smooth_field_meets_its_nodes_and_is_periodic():
    nodes = Draws(5).normals(4, 6)
    rows, columns = np.arange(4.0)[:, None], np.arange(6.0)[None, :]
    np.testing.assert_array_equal(smooth_field(nodes, rows, columns), nodes)
    np.testing.assert_allclose(
        smooth_field(nodes, rows + 0.3, columns + 0.7),
        smooth_field(nodes, rows + 4.3, columns - 5.3),
        atol=1e-12,  # rounding of the shifted positions
    )
    middle = smooth_field(nodes, np.array(0.5), np.array(0.5))
    assert middle == pytest.approx(nodes[:2, :2].mean())
