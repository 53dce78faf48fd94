"""A trained run as a folder that needs neither this repository nor JAX."""
