from mvo_jax.config_files import load_config as load_config
from mvo_jax.models.registry import create_model as create_model
from mvo_jax.models.registry import list_models as list_models
from mvo_jax.run import evaluate as evaluate
from mvo_jax.run import load_run as load_run
from mvo_jax.run import train_and_evaluate as train_and_evaluate

__version__: str
