"""TFDS builder of the simulated cohort (array_record files, no TensorFlow)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from mvo_jax.data.phantom.case import FEATURES, Case, CaseKey
from mvo_jax.data.phantom.cohort import CohortSpec
from mvo_jax.data.phantom.workers import render_cases


@dataclasses.dataclass(eq=False)
class PhantomConfig(tfds.core.BuilderConfig):
    """Configuration of the builder: the specification of the cohort."""

    spec: CohortSpec | None = None


def case_features(
    frames: int, image_size: int, oracle: tuple[str, ...]
) -> tfds.features.FeaturesDict:
    """Schema of a stored case, the same for simulated and for real cohorts.

    Args:
        oracle: names of scalar features known of every case; empty for real data.
    """
    image = functools.partial(
        tfds.features.Tensor, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )
    return tfds.features.FeaturesDict(
        {
            "video": image(shape=(frames, image_size, image_size, 1)),
            "lge_mask": image(shape=(image_size, image_size)),
            "label": tfds.features.Scalar(np.int32),
            "case_id": tfds.features.Text(),
            "patient_id": tfds.features.Text(),
            "slice_index": tfds.features.Scalar(np.int32),
            "features": {name: tfds.features.Scalar(np.float32) for name in oracle},
        }
    )


class Phantom(tfds.core.GeneratorBasedBuilder):
    """Simulated short-axis cine cohort with MVO labels; synthetic, no clinical claim."""

    VERSION = tfds.core.Version("1.0.0")  # raised whenever the bytes of a case change

    jobs: int | None = None
    on_case: Callable[[], object] | None = None

    @property
    def spec(self) -> CohortSpec:
        """The cohort's specification."""
        config = self.builder_config
        assert isinstance(config, PhantomConfig)
        assert config.spec is not None
        return config.spec

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=case_features(self.spec.frames, self.spec.image_size, FEATURES),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing is downloaded
        keys = {split: self.spec.keys(split) for split in self.spec.splits}
        # One stream for all splits, so that the processes start once; TFDS takes them in order.
        cases = render_cases(
            [key for split in keys.values() for key in split],
            frames=self.spec.frames,
            image_size=self.spec.image_size,
            jobs=self.jobs,
        )
        return {split: self._generate_examples(cases, wanted) for split, wanted in keys.items()}

    def _generate_examples(
        self, cases: Iterator[Case], wanted: list[CaseKey]
    ) -> Iterator[tuple[int, dict]]:
        for i, key in enumerate(wanted):
            case = next(cases)
            if case.key != key:
                raise RuntimeError(f"Case {case.key.case_id} came where {key.case_id} was due.")
            names = {name: getattr(key, name) for name in ("case_id", "patient_id", "slice_index")}
            images = {"video": case.video, "lge_mask": case.lge_mask}
            yield i, {**images, "label": int(key.mvo), **names, "features": case.features}
            if self.on_case is not None:
                self.on_case()
