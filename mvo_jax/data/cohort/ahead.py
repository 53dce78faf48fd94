"""Series read by child processes ahead of whoever asks for them, in the order of the source."""

import functools
import itertools
import pickle
from collections import deque
from collections.abc import Callable, Iterator

from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Importer, Options, Series, printable
from mvo_jax.data.processes import Worker, available_cores
from mvo_jax.data.slices import Clip, Rejected, Target

_FEW = 8  # series that are read here: a child takes as long to start
_MOST_CHILDREN = 4

Read = Callable[[Series], list[Clip | Rejected]]


def read_in_order(
    importer: Importer, options: Options, target: Target, todo: Iterator[Series]
) -> Iterator[list[Clip | Rejected]]:
    """Read series, several at a time where there are many: a child each, and one series a child.

    Args:
        importer: of the series.
        options: how to read them.
        target: what their slices become.
        todo: the series; taken as they are needed.

    Yields:
        What ``read_series`` gives of each, in order.
    """
    read = functools.partial(
        read_series, importer.load, options=options, target=target, with_overview=True
    )
    first = list(itertools.islice(todo, _FEW + 1))
    todo = itertools.chain(first, todo)
    children = min(available_cores(), _MOST_CHILDREN)
    if len(first) <= _FEW or children < 2 or not _found_elsewhere(read):
        yield from map(read, todo)
        return
    workers = [Worker(read) for _ in range(children)]
    waiting: deque[tuple[int, Series]] = deque()
    try:
        for place, series in zip(range(children), todo):  # noqa: B905  (more series than children)
            workers[place].send((series,))
            waiting.append((place, series))
        while waiting:
            place, series = waiting.popleft()
            answer: list[Clip | Rejected]
            try:
                answer = workers[place].receive()
            except EOFError:
                answer = [_lost(series, workers[place].end())]
                workers[place] = Worker(read)
            # Before the answer is worked on: that is what the child reads ahead of.
            if (following := next(todo, None)) is not None:
                workers[place].send((following,))
                waiting.append((place, following))
            yield answer
    finally:
        for worker in workers:
            worker.process.kill()
            worker.end()


def _found_elsewhere(read: Read) -> bool:
    """Whether a child can import the function: not if it is of a notebook or a script."""
    try:
        return b"__main__" not in pickle.dumps(read)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False


def _lost(series: Series, status: int) -> Rejected:
    return series.rejected(
        f"{printable(series.path)}: the process that read it ended with status {status}",
        "the file is damaged or too large for the memory; check it",
    )
