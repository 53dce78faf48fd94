"""Series read by child processes ahead of whoever asks for them, in the order of the source."""

import functools
import itertools
import pickle
from collections.abc import Callable, Iterator

from mvo_jax.data.cohort.series import lost_series, read_series
from mvo_jax.data.importers.cine import Importer, Options, Series
from mvo_jax.data.processes import available_cores, map_in_children
from mvo_jax.data.slices import Clip, Rejected, Target

_FEW = 8  # series that are read here: a child takes as long to start
_MOST_CHILDREN = 4


def read_in_order(
    importer: Importer, options: Options, target: Target, todo: Iterator[Series]
) -> Iterator[list[Clip | Rejected]]:
    """What ``read_series`` gives of each, in order; where there are many, several at a time."""
    read = functools.partial(
        read_series, importer.load, options=options, target=target, with_overview=True
    )
    first = list(itertools.islice(todo, _FEW + 1))
    children = min(available_cores(), _MOST_CHILDREN)
    if len(first) <= _FEW or not _found_elsewhere(read):
        children = 1
    yield from map_in_children(
        read,
        itertools.chain(first, todo),
        jobs=children,
        lost=lambda series, status: [lost_series(series, status)],
    )


def _found_elsewhere(read: Callable[[Series], object]) -> bool:
    """Whether a child can import the function: not if it is of a notebook or a script."""
    try:
        return b"__main__" not in pickle.dumps(read)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
