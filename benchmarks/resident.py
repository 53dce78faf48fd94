"""The shipped step on a split that lies in device memory, and the simulated cohort to fill it.

Needs neither the data-set packages nor the config files: what `train.py` puts together from a
config is put together here from the published sizes.
"""

from typing import Any

from benchmarks import networks
from benchmarks.networks import Config

# configs/mvo.py, repeated because that file needs ml_collections.
AUGMENTATION = {
    "max_shift": 4.0,
    "flip": True,
    "max_rotation_deg": 15.0,
    "brightness": 0.1,
    "contrast": 0.2,
    "gamma": 0.2,
    "time_shift": True,
}
MASK_SIZE = 16


def simulated_split(cohort: str, split: str, config: Config) -> dict[str, Any]:
    """A split of the simulated cohort, made anew.

    Returns:
        'video' uint8 ``[N, T, H, W, 1]``, 'lge_mask' uint8 ``[N, H, W]``, 'label' int32 ``[N]``.
    """
    import numpy as np

    from mvo_jax.data.phantom.cohort import CohortSpec
    from mvo_jax.data.phantom.workers import render_cases

    spec = CohortSpec("paper", 0, cohort, config["frames"], config["size"])
    keys = spec.keys(split)
    cases = list(render_cases(keys, frames=config["frames"], image_size=config["size"]))
    return {
        "video": np.stack([case.video for case in cases]),
        "lge_mask": np.stack([case.lge_mask for case in cases]),
        "label": np.array([key.mvo for key in keys], np.int32),
    }


class Resident:
    """Model, state and steps of one run on one device.

    Args:
        config: as in ``networks``, with 'lowering'.
        split: of ``simulated_split``.
        total_steps: of the learning-rate schedule.

    Attributes:
        model: the Flax module.
        data: the split in device memory.
        state: donated to and replaced by every step.
    """

    def __init__(self, config: Config, split: dict[str, Any], *, total_steps: int):
        import jax

        from mvo_jax.devices import parallel
        from mvo_jax.settings import LossSettings
        from mvo_jax.training.optim import OptimiserSettings, make_optimiser
        from mvo_jax.training.state import create_state
        from mvo_jax.training.step import make_loss, make_train_step

        self.devices = parallel.devices(1)
        self.cases, self.batch = len(split["label"]), config["batch"]
        self.model: Any = networks.jax_model(config, axis_name=parallel.AXIS)
        optimiser = make_optimiser(OptimiserSettings(total_steps=total_steps))
        state = create_state(self.model, optimiser, jax.random.key(0), networks.clip_shape(config))
        self.state: Any = parallel.replicate(state, self.devices)
        self.data = parallel.replicate(split, self.devices)
        self.key = parallel.replicate(jax.random.key(1), self.devices)
        loss = make_loss(self.model, LossSettings())
        self.train_step = make_train_step(loss, optimiser, axis_name=parallel.AXIS)

    def indices(self, first: int, chunk: int) -> Any:
        """Cases of steps ``first`` to ``first + chunk - 1``, as the loop draws them."""
        import numpy as np

        from mvo_jax.data.batches import batch_indices
        from mvo_jax.devices import parallel

        steps = range(first, first + chunk)
        drawn = [batch_indices(0, k, num_cases=self.cases, batch_size=self.batch) for k in steps]
        return parallel.shard(np.stack(drawn), 1)

    def step_on_split(self, augmentation: dict[str, Any]) -> Any:
        """The shipped ``step(state, data, indices [1, K, B], key)``, compiled when first called."""
        import functools

        from mvo_jax.data.augment import Augmentation
        from mvo_jax.devices import parallel
        from mvo_jax.training.step import make_batch, make_steps

        batch_of = functools.partial(
            make_batch,
            augmentation=Augmentation(**augmentation),
            mask_size=MASK_SIZE,
            axis_name=parallel.AXIS,
        )
        return parallel.data_parallel(
            make_steps(self.train_step, batch_of),
            in_axes=(None, None, 0, None),
            out_axes=None,
            on=self.devices,
            donate=(0,),
        )
