"""A tiny experiment, random cases and a compilation cache for the tests of this room."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_run import make_on_disk, make_random_split, make_tiny_config

from mvo_jax.data.splits import Split, StreamedSplit


@pytest.fixture(scope="package", autouse=True)
def _compile_each_program_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Most tests start a new run of one network; XLA takes longer than the steps."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="package")
def tiny_config() -> Callable[..., Any]:
    """``tiny_config(**{"train.total_steps": 5})``: the paper's config in small."""
    return make_tiny_config


@pytest.fixture(scope="package")
def random_split() -> Callable[..., Split]:
    return make_random_split


@pytest.fixture(scope="package")
def on_disk() -> Callable[[Split], StreamedSplit]:
    """The same cases, streamed. Reading TFDS files is tested in tests/data/test_stream.py."""
    return make_on_disk
