"""Studies: rows x seeds of one question a file, for ``python -m mvo_jax study``."""
