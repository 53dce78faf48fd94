"""Experiments: one runnable config a file."""
