"""The packages of the wheel; pyproject.toml has the rest."""

from setuptools import find_packages, setup

# Configs lie at the top of the repository and in the wheel inside the package.
configs = ["mvo_jax.configs", "mvo_jax.configs.studies"]
setup(packages=[*find_packages(include=["mvo_jax*"]), *configs])
