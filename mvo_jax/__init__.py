"""Microvascular obstruction in contrast-free cine MR, in JAX/Flax.

    from mvo_jax import load_config, train_and_evaluate, load_run, create_model, list_models

What is named here is imported when it is first asked for: ``import mvo_jax`` loads no JAX. XLA's
flags are set before that, as the commands do, so that a notebook gets the numbers of ``train.py``:
ask for these names before JAX makes its first array. Asked for before ``import jax``, compiled
programs are kept on disk too.
"""

import importlib
import os

# From 1.29 on onnxruntime reports to its maker, from its import on, and keeps files for that in the
# folder of temporary files and in ~/.cache. Nothing leaves the machine here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
_MODULES = {
    "create_model": "mvo_jax.models.registry",
    "evaluate": "mvo_jax.run",
    "load_config": "mvo_jax.config_files",
    "list_models": "mvo_jax.models.registry",
    "from_pretrained": "mvo_jax.bundles.bundle",
    "load_bundle": "mvo_jax.bundles.bundle",
    "load_run": "mvo_jax.trained_run",
    "train_and_evaluate": "mvo_jax.run",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("mvo_jax.devices.environment").configure_in_time()
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
