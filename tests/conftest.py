"""Eight simulated devices for every test, set before JAX is imported."""

import os

from mvo_jax.cli.xla_flags import configure_xla

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# JAX 0.10 sizes the thread pool that collectives wait in by the number of cores.
os.environ.setdefault("NPROC", "16")
configure_xla(os.environ)
