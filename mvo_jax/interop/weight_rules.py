"""Weights between Flax variables and torch state dicts, bit-exact, both ways from one table.

A state dict is a plain ``dict[str, np.ndarray]``. The models' tables are in ``interop/layouts/``.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvo_jax.errors import UserError

StateDict = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reorder:
    """How an array is laid out on the two sides; each direction undoes the other exactly."""

    axes: tuple[int, ...] | None = None  # Flax axis i is torch axis axes[i]; None keeps the order
    flip: tuple[int, ...] = ()  # Flax axes that run backwards in torch
    unit_axes: int = 0  # trailing axes of length 1 that only torch has
    leading_axes: int = 0  # leading axes of length 1 that only Flax has

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """torch's array as Flax stores it."""
        array = array.squeeze(tuple(range(-self.unit_axes, 0)))
        if self.axes is not None:
            array = array.transpose(self.axes)
        array = np.ascontiguousarray(np.flip(array, self.flip))
        return array.reshape((1,) * self.leading_axes + array.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Flax's array as torch stores it."""
        array = np.flip(array.squeeze(tuple(range(self.leading_axes))), self.flip)
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        return np.ascontiguousarray(array.reshape(*array.shape, *(1,) * self.unit_axes))


@dataclasses.dataclass(frozen=True)
class PatchKernel(Reorder):
    """A linear map of flattened square patches, which torch stores as a 2-D convolution.

    Flax: ``[p * p * channels, features]``, by row, column, channel; torch: ``[features, channels,
    p, p]``. Images have one channel or three; the rows tell which, as 3 p^2 is no square number.
    """

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """The convolution's kernel as a matrix."""
        if array.ndim != 4 or array.shape[1] not in (1, 3) or array.shape[2] != array.shape[3]:
            raise ValueError(f"{array.shape} is no kernel of square patches")
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The matrix as the convolution's kernel."""
        rows, features = array.shape
        channels = 1 if math.isqrt(rows) ** 2 == rows else 3
        side = math.isqrt(rows // channels)
        kernel = array.reshape(side, side, channels, features)
        return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


class Leaf(NamedTuple):
    """One array of a module: where it is in Flax, what torch calls it, how it is reordered."""

    collection: str
    flax: str
    torch: str
    reorder: Reorder = Reorder()


BIAS = Leaf("params", "bias", "bias")
CONV3D = (Leaf("params", "kernel", "weight", Reorder((2, 3, 4, 1, 0))),)
CONV1X1 = (Leaf("params", "kernel", "weight", Reorder((1, 0), unit_axes=2)), BIAS)
MATRIX = (Leaf("params", "kernel", "weight", Reorder((1, 0))),)  # a linear map without bias
LINEAR = (*MATRIX, BIAS)
LAYER_NORM = (Leaf("params", "scale", "weight"), BIAS)
# A transposed convolution is stored in Flax as the plain convolution it equals: flipped in-plane.
TRANSPOSED = (Leaf("params", "kernel", "weight", Reorder((2, 3, 0, 1), flip=(0, 1))), BIAS)
BATCH_NORM = (
    Leaf("params", "scale", "weight"),
    BIAS,
    Leaf("batch_stats", "mean", "running_mean"),
    Leaf("batch_stats", "var", "running_var"),
)

# torch counts batches for a mode of BatchNorm that nobody uses here; Flax has no such array.
BATCH_COUNTER = "num_batches_tracked"

Module = tuple[str, str, tuple[Leaf, ...]]


class Rule(NamedTuple):
    """One line of the table for one layout: two templates and how the array is reordered."""

    flax: str  # 'collection/module/leaf'
    torch: str
    reorder: Reorder


_COUNTER = re.compile(r"\{([a-z]+)(0?)\}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression with one group for each counter."""
    pieces = _COUNTER.split(template)  # text, counter, '0' or '', text, counter, ...
    pieces[0::3] = [re.escape(text) for text in pieces[0::3]]
    pieces[1::3] = [f"(?P<{counter}>0|[1-9][0-9]*)" for counter in pieces[1::3]]
    pieces[2::3] = ["" for _ in pieces[2::3]]
    return re.compile("".join(pieces))


@functools.cache  # training steps ask for the same again and again
def _translate(text: str, source: str, target: str) -> str | None:
    """Rewrite ``text`` from one template to the other, or None if it is not of the first."""
    match = _pattern(source).fullmatch(text)
    if match is None:
        return None
    first = {name: 0 if zero else 1 for name, zero in _COUNTER.findall(source)}
    counters = {name: int(value) - first[name] for name, value in match.groupdict().items()}
    if min(counters.values(), default=0) < 0:
        return None
    return _COUNTER.sub(lambda m: str(counters[m[1]] + (0 if m[2] else 1)), target)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kind of torch checkpoint names the arrays of one of our models."""

    name: str  # what messages call it
    # (Flax module, torch module, arrays); '' is the model itself. {x} is a counter from 1 on both
    # sides; {x0} is the same counter where torch starts at 0.
    modules: tuple[Module, ...]
    # Regular expressions for whole keys that a source may hold and the model has no use for. A
    # source may hold any part of them.
    ignored: tuple[str, ...] = ()

    @functools.cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The table, one line for each array."""
        return tuple(
            Rule(
                "/".join(filter(None, (leaf.collection, flax, leaf.flax))),
                ".".join(filter(None, (torch, leaf.torch))),
                leaf.reorder,
            )
            for flax, torch, leaves in self.modules
            for leaf in leaves
        )

    def torch_keys(self, path: str) -> list[tuple[str, Rule]]:
        """Keys of a Flax path, with their rules; one where the table is whole."""
        found = ((_translate(path, rule.flax, rule.torch), rule) for rule in self.rules)
        return [(key, rule) for key, rule in found if key is not None]

    def flax_paths(self, key: str) -> list[tuple[str, Rule]]:
        """Flax paths of a key, with their rules; one at most where the table is whole."""
        found = ((_translate(key, rule.torch, rule.flax), rule) for rule in self.rules)
        return [(path, rule) for path, rule in found if path is not None]

    def ignores(self, key: str) -> bool:
        """Whether the list of ignored keys has this key."""
        return any(re.fullmatch(pattern, key) for pattern in self.ignored)

    def renamed(
        self, name: str, starts: tuple[tuple[str, str], ...], *, ignored: tuple[str, ...] = ()
    ) -> "Layout":
        """The same arrays under other torch names.

        One of ``starts`` (of a torch module here, and there) fits it at most; without, it is out.
        """
        modules = (
            (flax, new + torch.removeprefix(old), leaves)
            for flax, torch, leaves in self.modules
            for old, new in starts
            if torch.startswith(old)
        )
        return Layout(name, tuple(modules), ignored)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, 'collection/module/leaf'."""
    from flax.traverse_util import flatten_dict  # the help of a command needs no Flax

    return flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that ``flatten`` took apart."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(flat, sep="/")


def listed(items: Sequence[str], limit: int) -> str:
    """The first ``limit`` items and how many more there are; a foreign checkpoint has hundreds."""
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")


def _refuse(problems: Mapping[str, list[str]], cause: str, remedy: str) -> None:
    """Raise UserError if anything does not fit, by kind."""
    if problems:
        parts = [f"{len(items)} {kind}: {listed(items, 12)}" for kind, items in problems.items()]
        raise UserError(f"{cause}: {'; '.join(parts)}", remedy)


def to_torch(
    variables: Mapping[str, Any], layout: Layout, *, batches_tracked: int = 0
) -> StateDict:
    """Flax variables as a torch state dict, with the dtype and the bits of the source.

    Args:
        variables: ``{'params': ..., 'batch_stats': ...}`` or a part, as gradients under 'params'.
        layout: the torch side.
        batches_tracked: value of torch's batch counters, which Flax does not have.

    Raises:
        UserError: arrays that no rule, or more than one, maps. All are listed.
    """
    state_dict: StateDict = {}
    problems = collections.defaultdict(list)
    for path, value in flatten(variables).items():
        found = layout.torch_keys(path)
        if len(found) != 1:
            problems["with several rules" if found else "without a rule"].append(path)
            continue
        key, rule = found[0]
        try:
            state_dict[key] = rule.reorder.to_torch(np.asarray(value))
        except ValueError:
            problems["of wrong shape"].append(f"{path} {np.shape(value)}")
            continue
        if path.startswith("batch_stats/") and path.endswith("/mean"):
            module = key.rpartition(".")[0]
            state_dict[f"{module}.{BATCH_COUNTER}"] = np.array(batches_tracked, np.int64)
    _refuse(
        problems,
        f"these arrays cannot be written in the {layout.name!r} layout",
        "choose a layout of the same model that holds all of these arrays",
    )
    return state_dict


def to_flax(
    state_dict: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
    layout: Layout,
    *,
    source: str = "the state dict",
) -> dict[str, Any]:
    """A torch state dict as Flax variables, with the bits of the source.

    Args:
        state_dict: arrays by torch key. Keys that the layout ignores are left out.
        target: what must be filled: ``{'params': ..., 'batch_stats': ...}`` or a part of it, leaves
            with ``shape`` and ``dtype`` as of ``jax.eval_shape``.
        layout: the torch side.
        source: name of the source in messages.

    Raises:
        UserError: unmapped keys, targets filled twice or not at all, wrong shapes or dtypes. All
            are listed.
    """
    wanted = flatten(target)
    filled: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    problems = collections.defaultdict(list)
    for key, value in state_dict.items():
        module, _, name = key.rpartition(".")
        counts = name == BATCH_COUNTER and f"{module}.running_mean" in state_dict
        if counts or layout.ignores(key):
            continue
        found = layout.flax_paths(key)
        if len(found) != 1:
            problems["keys with several rules" if found else "keys without a rule"].append(key)
            continue
        path, rule = found[0]
        if path in origin:
            problems["arrays filled twice"].append(f"{path} by {origin[path]} and {key}")
            continue
        origin[path] = key
        if path not in wanted:
            problems["keys the model has no place for"].append(key)
            continue
        expected = wanted[path]
        try:
            array = rule.reorder.to_flax(np.asarray(value))
        except ValueError:
            problems["keys of wrong shape"].append(f"{key} {np.shape(value)}, no {path}")
            continue
        if array.shape != tuple(expected.shape):
            needed = rule.reorder.to_torch(np.empty(expected.shape, np.bool_)).shape
            problems["keys of wrong shape"].append(f"{key} {np.shape(value)}, not {needed}")
        elif array.dtype != np.dtype(expected.dtype):
            problems["keys of wrong dtype"].append(f"{key} {array.dtype}, not {expected.dtype}")
        else:
            filled[path] = array
    for path in wanted:
        if path not in origin:
            problems["keys missing"].append(next((key for key, _ in layout.torch_keys(path)), path))
    _refuse(
        problems,
        f"{source} does not fit the model in the {layout.name!r} layout",
        "save it in float32, as by model.float().state_dict(); integers of a quantised model "
        "have to be scaled back first"
        if set(problems) == {"keys of wrong dtype"}
        else "check that it comes from the same architecture (variant, width, input channels, "
        "frames, mask size, decoder layout) and that the layout is named rightly",
    )
    return unflatten({path: filled[path] for path in wanted})
