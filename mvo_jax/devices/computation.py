"""What of JAX and of the machine changes the results of a run, in two classes.

Settings change what is computed: another stream of random numbers, another precision. A run goes on
under others only where that is allowed. The rest (backend, processor, versions) changes the last
bits: it is shown and kept. Processes of one run have both in common.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax

import mvo_jax
from mvo_jax.devices.environment import processor

_SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_random_seed_offset",
    "jax_numpy_dtype_promotion",
)
_EACH_BY_ITSELF = ("jax_disable_jit",)  # XLA joins no operations, which round in other places then
_TF32 = "NVIDIA_TF32_OVERRIDE"  # of cuBLAS and cuDNN: a matmul precision that JAX does not know of
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def settings() -> dict[str, Any]:
    """What changes the meaning of a computation, by JAX's own names; starts no device."""
    values = {name: getattr(jax.config, name) for name in _SETTINGS}
    values |= {name: getattr(value, "value", value) for name, value in values.items()}
    precision = "jax_default_matmul_precision"
    return {**values, precision: values[precision] or "default", _TF32: os.environ.get(_TF32, "")}


def installation() -> dict[str, Any]:
    """What can be told of the rounding before a device is started."""
    # Where a compiler writes its dumps may differ from host to host.
    flags = os.environ.get("XLA_FLAGS", "").split()
    return {
        **{name: getattr(jax.config, name) for name in _EACH_BY_ITSELF},
        "xla_flags": " ".join(flag for flag in flags if not flag.startswith("--xla_dump")),
        "versions": {"mvo_jax": mvo_jax.__version__, **{name: version(name) for name in _PACKAGES}},
    }


def rounding(devices: Sequence[Any]) -> dict[str, Any]:
    """What changes the rounding of a computation on ``parallel.devices`` that share a batch."""
    first = devices[0]
    own = [device for device in devices if device.process_index == jax.process_index()]
    return {
        "backend": first.platform,
        "processor": processor() if first.platform == "cpu" else first.device_kind,
        "devices": len(devices),
        "devices_of_process": len(own),
        "processes": jax.process_count(),
        **installation(),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences, one line each; what was not recorded before differs from nothing."""
    found = []
    for name, value in now.items():
        old = before.get(name, value)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            found += changes(old, value)
        elif old != value:
            found.append(f"{name} {old!r} -> {value!r}")
    return found
