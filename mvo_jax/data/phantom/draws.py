"""Random numbers that are the same on every machine and with every numpy.

numpy keeps the output of its bit generators fixed, not that of its distributions: these are made
here from raw Philox bits, by inverting their cumulative distribution function.
"""

import hashlib

import numpy as np
import scipy.special


class Draws:
    """A stream of random numbers named by its key.

    Equal keys, as ``Draws(seed, patient, "anatomy")``, give equal streams, different keys
    independent ones (Philox4x64, its 128-bit key is a SHA-256 prefix).
    """

    def __init__(self, *key: int | str):
        digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
        self._bits = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))

    def _unit(self, shape: tuple[int, ...]) -> np.ndarray:
        raw = self._bits.random_raw(int(np.prod(shape, dtype=np.int64)))
        # 53 bits, centred in their cell: never 0 or 1, where inverse distributions are infinite.
        return ((np.asarray(raw, dtype=np.uint64) >> 11) + 0.5).reshape(shape) * 2.0**-53

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number, uniform on (low, high)."""
        return low + (high - low) * float(self._unit(()))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def integer(self, count: int) -> int:
        """One of 0 .. count - 1, all equally likely."""
        return int(self.uniform(0, count))

    def choice(self, weights: tuple[float, ...]) -> int:
        """Index of a weight, drawn in proportion to the weights (which sum to 1)."""
        return min(
            int(np.searchsorted(np.cumsum(weights), self.uniform(), side="right")), len(weights) - 1
        )

    def normal(
        self, mean: float, sd: float, *, low: float = -np.inf, high: float = np.inf
    ) -> float:
        """One normal number, clipped to [low, high]."""
        return float(np.clip(mean + sd * scipy.special.ndtri(self.uniform()), low, high))

    def gamma(self, *, mean: float, sd: float) -> float:
        """One number of the gamma distribution with this mean and standard deviation."""
        shape = (mean / sd) ** 2
        return float(scipy.special.gammaincinv(shape, self.uniform())) * sd**2 / mean

    def beta(self, a: float, b: float) -> float:
        """One number of the Beta(a, b) distribution."""
        return float(scipy.special.betaincinv(a, b, self.uniform()))

    def normals(self, *shape: int) -> np.ndarray:
        """Array of independent standard normal numbers, float64."""
        return scipy.special.ndtri(self._unit(shape))

    def permutation(self, count: int) -> np.ndarray:
        """The integers 0 .. count - 1 in random order, int64."""
        return np.argsort(np.asarray(self._bits.random_raw(count)), kind="stable")


def smooth_field(nodes: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Smooth interpolation of random nodes [m, n], periodic, with zero slope at the nodes.

    ``rows`` and ``columns`` are positions in node units and broadcast to the result's shape.
    """
    row0, column0 = np.floor(rows), np.floor(columns)
    v, u = rows - row0, columns - column0
    v, u = v * v * (3.0 - 2.0 * v), u * u * (3.0 - 2.0 * u)
    m, n = nodes.shape
    i0, j0 = row0.astype(np.int64) % m, column0.astype(np.int64) % n
    i1, j1 = (i0 + 1) % m, (j0 + 1) % n
    return (nodes[i0, j0] * (1.0 - u) + nodes[i0, j1] * u) * (1.0 - v) + (
        nodes[i1, j0] * (1.0 - u) + nodes[i1, j1] * u
    ) * v
