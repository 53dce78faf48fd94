"""Microvascular obstruction in contrast-free cine MR, in JAX/Flax."""

__version__ = "0.1.0"
