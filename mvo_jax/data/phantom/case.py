"""One simulated case: a pure function of preset, seed, patient and slice."""

import dataclasses

import numpy as np

from mvo_jax.data.labels import MVO
from mvo_jax.data.phantom.draws import Draws
from mvo_jax.data.phantom.heart import Heart, build_heart
from mvo_jax.data.phantom.patient import (
    MISREGISTRATION_MM,
    PRESETS,
    Acquisition,
    Anatomy,
    Pathology,
    draw_acquisition,
    draw_anatomy,
    draw_pathology,
)
from mvo_jax.data.phantom.render import render_mask, render_video

FEATURES = (
    "fractional_area_change", "infarct_size", "transmurality", "strain", "mvo_pixels",
    "mvo_percent", "territory", "male", "age_years", "blood_snr", "haemorrhage",
)  # fmt: skip
_FEATURE_DECIMALS = 6  # the last bits of exp, sin and sqrt may differ between processors
_MVO_PREVALENCE = 265 / 680  # the paper's; used for the unseen pathology of the null preset


@dataclasses.dataclass(frozen=True)
class CaseKey:
    """Names one case."""

    preset: str
    seed: int  # of the cohort
    patient: int  # index; no two splits share one
    slice_index: int  # 0-based
    slices: int  # of the patient
    mvo: bool  # the label
    misregistration_mm: float = MISREGISTRATION_MM  # see ``draw_acquisition``

    @property
    def patient_id(self) -> str:
        """Name of the patient, unique over splits."""
        return f"p{self.patient:06d}"

    @property
    def case_id(self) -> str:
        """Name of the case, sorts by patient and slice."""
        return f"{self.patient_id}_s{self.slice_index:02d}"


@dataclasses.dataclass(frozen=True)
class Case:
    """A rendered case: key, cine, label mask and oracle features."""

    key: CaseKey
    video: np.ndarray  # uint8 [T, H, W, 1]
    lge_mask: np.ndarray  # uint8 [H, W]
    features: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is drawn for a case before anything is rendered.

    Under the null preset ``labelled`` and ``label_pathology`` are another heart than the one in
    the image: same anatomy, pathology drawn anew.
    """

    key: CaseKey
    anatomy: Anatomy
    scan: Acquisition
    pathology: Pathology
    heart: Heart
    label_pathology: Pathology
    labelled: Heart


def plan_case(key: CaseKey) -> Plan:
    """Draw anatomy, pathology and scan of a case."""
    preset = PRESETS[key.preset]
    anatomy = draw_anatomy(key.seed, key.patient)

    def heart(pathology: Pathology) -> Heart:
        return build_heart(anatomy, pathology, slice_index=key.slice_index, slices=key.slices)

    label_pathology = draw_pathology(
        Draws(key.seed, key.patient, "pathology"), mvo=key.mvo, preset=preset
    )
    labelled = heart(label_pathology)
    pathology, seen = label_pathology, labelled
    if not preset.label_follows_image:
        stream = Draws(key.seed, key.patient, "unlabelled pathology")
        pathology = draw_pathology(stream, mvo=stream.chance(_MVO_PREVALENCE), preset=preset)
        seen = heart(pathology)
    scan = draw_acquisition(
        key.seed,
        key.patient,
        key.slice_index,
        haemorrhage=pathology.haemorrhage,
        preset=preset,
        misregistration_mm=key.misregistration_mm,
    )
    return Plan(key, anatomy, scan, pathology, seen, label_pathology, labelled)


def oracle_features(plan: Plan, lge_mask: np.ndarray) -> dict[str, float]:
    """What a perfect reader could measure, in the order of FEATURES.

    Area change, infarct size (share of the slice's muscle), transmurality and strain (mid-wall,
    infarct zone) describe the heart in the image; MVO pixels and MVO percent of the ventricle's
    mass describe the label. ``territory`` counts through TERRITORIES.
    """
    infarct = plan.heart.infarct
    values = (
        plan.heart.fractional_area_change,
        plan.heart.weight[infarct].sum(),
        infarct.any(axis=1).sum() / infarct.shape[0],
        plan.heart.strain[infarct.any(axis=0)].mean(),
        np.sum(lge_mask == MVO),
        plan.label_pathology.mvo_percent,
        plan.pathology.territory,
        plan.anatomy.male,
        plan.anatomy.age_years,
        plan.scan.blood_snr,
        plan.pathology.haemorrhage,
    )
    named = zip(FEATURES, values, strict=True)
    return {name: round(float(value), _FEATURE_DECIMALS) for name, value in named}


def simulate_case(key: CaseKey, *, frames: int = 30, image_size: int = 64) -> Case:
    """Render a case; the field of view is about 120 mm whatever the number of pixels."""
    plan = plan_case(key)
    mask = render_mask(plan.labelled, plan.anatomy, plan.scan, image_size=image_size)
    video = render_video(
        plan.heart,
        plan.anatomy,
        plan.scan,
        draws=Draws(key.seed, key.patient, "texture", key.slice_index),
        frames=frames,
        image_size=image_size,
    )
    return Case(key, video, mask, oracle_features(plan, mask))
