"""The networks that are measured: the same one in Flax and in PyTorch, from one config.

A config has 'system', 'frames', 'size', 'width' (0 for the published one), 'batch', 'dtype' and, of
the Flax side, 'lowering'. Torch is imported where it is used only.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from mvo_jax.interop.torch_models import TWINS, build_twin

Config = dict[str, Any]

SYSTEMS = TWINS
TORCH_MODES = {"eager": None, "compile": "default", "autotune": "max-autotune-no-cudagraphs"}


def model_fields(config: Config) -> dict[str, Any]:
    """The ``model`` part of a config: the published size, or another width where one is given."""
    from mvo_jax.models.registry import published_config

    fields = published_config(config["system"])
    if config["width"]:
        fields["width"] = config["width"]
    return fields


def forward_gflop(config: Config, **call: Any) -> float:
    """GFLOP of one clip's forward pass, dense.

    Args:
        config: of a contender; its lowering is left out of account.
        **call: ``train`` and ``with_mask`` of the model's call.
    """
    from mvo_jax.models.cost import forward_flops
    from mvo_jax.models.registry import dense_model

    model = dense_model(model_fields(config))
    return 1e-9 * forward_flops(model, clip_shape(config), **call)


def clip_shape(config: Config) -> tuple[int, int, int, int]:
    """(T, H, W, 1) of one clip."""
    return config["frames"], config["size"], config["size"], 1


def make_batch(config: Config) -> dict[str, Any]:
    """A random batch, the same for every contender."""
    import numpy as np

    rng = np.random.default_rng(0)
    batch = config["batch"]
    return {
        "video": rng.standard_normal((batch, *clip_shape(config)), dtype=np.float32),
        "label": np.arange(batch, dtype=np.int32) % 2,
        "coarse_mask": rng.uniform(size=(batch, 16, 16)).astype(np.float32),
    }


def jax_model(config: Config, *, axis_name: str | None = None, backend: str = "") -> Any:
    """The Flax module with the config's dtype and lowering, on this process's backend if none."""
    import jax

    from mvo_jax.models.registry import build_model

    fields = model_fields(config) | {"dtype": config["dtype"]}
    if "lowering" in fields:
        fields["lowering"] = config["lowering"]
    return build_model(
        fields,
        backend=backend or jax.default_backend(),
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        axis_name=axis_name,
    )


def lowering(model: Any) -> str | None:
    """How a Flax module's convolutions run; None where it has none."""
    return getattr(getattr(model, "numerics", None), "lowering", None)


def about_jax(compiled: Any, seconds: float) -> dict[str, Any]:
    """Versions, device, time to compile and temporary memory of a compiled JAX program."""
    import flax
    import jax

    memory = compiled.memory_analysis()
    return {
        "jax": jax.__version__,
        "flax": flax.__version__,
        "device": jax.devices()[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "compile_s": round(seconds, 1),
        "temporaries_gb": round(memory.temp_size_in_bytes / 1e9, 2) if memory else None,
    }


def torch_device() -> Any:
    """The GPU where there is one, set up for speed; else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = True
    # XLA uses TF32 for float32 matrix products by default; the same here.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return torch.device("cuda")


def torch_model(config: Config, device: Any) -> Any:
    """The torch module with its kernels in channels-last order."""
    import torch

    torch.manual_seed(0)
    model = build_twin(model_fields(config), clip_shape(config)).to(device)
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
    return model


def about_torch(device: Any) -> dict[str, Any]:
    """Versions, device and threads of torch."""
    import torch

    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "threads": torch.get_num_threads(),
    }


def matmul_gflops(config: Config) -> float:
    """Best rate of a square matrix product in a config's framework and dtype; 0 of onnxruntime."""
    if config["impl"] == "jax":
        import jax
        import jax.numpy as jnp

        side = 2048 if jax.default_backend() == "cpu" else 8192
        product = jax.jit(lambda a: a @ a)
        ones = jnp.ones((side, side), jnp.dtype(config["dtype"]))
        return _rate(lambda: product(ones).block_until_ready(), side)
    if config["impl"] == "torch":
        import torch

        device = torch_device()
        side = 2048 if device.type == "cpu" else 8192
        square = torch.ones(side, side, dtype=getattr(torch, config["dtype"]), device=device)
        return _rate(lambda: (square @ square)[0, 0].item(), side)
    return 0.0


def _rate(product: Callable[[], Any], side: int) -> float:
    """GFLOP/s of the fastest of several calls that each multiply two square matrices."""
    product()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2e-9 * side**3 / min(seconds)
