"""Weights between Flax variables and torch state dicts, bit-exact, both ways from one table.

Only numpy is needed here: a state dict is a plain ``dict[str, np.ndarray]``. The tables of the
models are in ``interop/layouts/``.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        kept = array.ndim - self.unit_axes
        if array.shape[kept:] != (1,) * self.unit_axes:
            raise ValueError(f"trailing axes of {array.shape} are not 1")
        array = array.reshape(array.shape[:kept])
        if self.axes is not None:
            array = array.transpose(self.axes)
        array = np.ascontiguousarray(np.flip(array, self.flip))
        return array.reshape((1,) * self.leading_axes + array.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Flax's array as torch stores it."""
        if array.shape[: self.leading_axes] != (1,) * self.leading_axes:
            raise ValueError(f"leading axes of {array.shape} are not 1")
        array = array.reshape(array.shape[self.leading_axes :])
        array = np.flip(array, self.flip)
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


@dataclasses.dataclass(frozen=True)
class Leaf:
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


@dataclasses.dataclass(frozen=True)
class Rule:
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

    @functools.cached_property
    def torch_keys(self) -> Callable[[str], list[tuple[str, Rule]]]:
        """A function of a Flax path: its keys, with their rules; one where the table is whole."""

        def torch_keys(path: str) -> list[tuple[str, Rule]]:
            found = ((_translate(path, rule.flax, rule.torch), rule) for rule in self.rules)
            return [(key, rule) for key, rule in found if key is not None]

        return functools.cache(torch_keys)  # training steps ask for the same paths again and again

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

        Of ``starts`` (start of a torch module here, its start there) one fits a module at most; a
        module that none fits is not part of the new layout.
        """
        modules = (
            (flax, new + torch.removeprefix(old), leaves)
            for flax, torch, leaves in self.modules
            for old, new in starts
            if torch.startswith(old)
        )
        return Layout(name, tuple(modules), ignored)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by path, 'collection/module/leaf'."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that ``flatten`` took apart."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def listed(items: Sequence[str], limit: int) -> str:
    """The first ``limit`` items and how many more there are; a foreign checkpoint has hundreds."""
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")


class _Problems(collections.defaultdict[str, list[str]]):
    """What does not fit, by kind."""

    def check(self, cause: str, remedy: str) -> None:
        """Raise UserError if there is anything."""
        if self:
            parts = [f"{len(items)} {kind}: {listed(items, 12)}" for kind, items in self.items()]
            raise UserError(f"{cause}: {'; '.join(parts)}", remedy)


def to_torch(
    variables: Mapping[str, Any], layout: Layout, *, batches_tracked: int = 0
) -> StateDict:
    """Flax variables as a torch state dict, with the dtype and the bits of the source.

    Args:
        variables: ``{'params': ..., 'batch_stats': ...}`` of the layout's model, or a part of it,
            such as gradients under 'params' or the trunk alone.
        layout: the torch side.
        batches_tracked: value of torch's batch counters, which Flax does not have.

    Raises:
        UserError: arrays that no rule, or more than one rule, maps. All are listed.
    """
    state_dict: StateDict = {}
    problems = _Problems(list)
    for path, value in flatten(variables).items():
        found = layout.torch_keys(path)
        if len(found) != 1:
            problems["without a rule" if not found else "with several rules"].append(path)
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
    problems.check(
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
    """A torch state dict as Flax variables, shaped as ``target``, with the bits of the source.

    Args:
        state_dict: arrays by torch key. Keys that the layout ignores are left out.
        target: what must be filled: ``{'params': ..., 'batch_stats': ...}`` with leaves that have
            ``shape`` and ``dtype``, as ``jax.eval_shape(model.init, ...)`` gives; or a part of it.
        layout: the torch side.
        source: name of the source in error messages, e.g. the file.

    Raises:
        UserError: unmapped keys, targets filled twice or not at all, wrong shapes or dtypes. All
            are listed in one message.
    """
    wanted = flatten(target)
    filled: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    problems = _Problems(list)
    norms = {
        key.removesuffix("running_mean") + BATCH_COUNTER
        for key in state_dict
        if key.endswith(".running_mean")
    }
    for key, value in state_dict.items():
        if key in norms or layout.ignores(key):
            continue
        found = layout.flax_paths(key)
        if len(found) != 1:
            problems["keys without a rule" if not found else "keys with several rules"].append(key)
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
    for path in (path for path in wanted if path not in origin):
        missing = next((key for key, _ in layout.torch_keys(path)), path)
        problems["keys missing"].append(missing)
    problems.check(
        f"{source} does not fit the model in the {layout.name!r} layout",
        "save it in float32, as by model.float().state_dict(); integers of a quantised model "
        "have to be scaled back first"
        if set(problems) == {"keys of wrong dtype"}
        else "check that it comes from the same architecture (variant, width, input channels, "
        "frames, mask size, decoder layout) and that the layout is named rightly",
    )
    return unflatten({path: filled[path] for path in wanted})
