from mvo_jax.bundles.bundle import from_pretrained as from_pretrained
from mvo_jax.bundles.bundle import load_bundle as load_bundle
from mvo_jax.config_files import load_config as load_config
from mvo_jax.models.registry import create_model as create_model
from mvo_jax.models.registry import list_models as list_models
from mvo_jax.run import evaluate as evaluate
from mvo_jax.run import train_and_evaluate as train_and_evaluate
from mvo_jax.trained_run import load_run as load_run

__version__: str
