"""Where the left ventricle is in a cine: a small network, run without JAX."""
