"""Who is simulated: the random parameters of a patient, each with its source.

Three independent groups, each drawn from its own stream: the healthy anatomy and function, the
pathology, and the acquisition of one slice. Ranges marked "ours" have no published figure.

Angles are in radians in the frame of the heart, counter-clockwise as displayed: 0 is the middle of
the lateral wall, pi/2 anterior, pi septal, 3 pi/2 inferior. Lengths are in mm.
"""

import dataclasses
import math

import numpy as np

from mvo_jax.data.phantom.draws import Draws

SLICE_SPACING_MM = 10.0
MISREGISTRATION_MM = 3.2  # standard deviation along each axis of what registration leaves; ours
TERRITORIES = ("LAD", "RCA", "LCx")
# Centre of each coronary territory at mid level: AHA segments 7-8, 9-10 and 11-12.
_TERRITORY_ANGLE = (math.radians(120.0), math.radians(240.0), math.radians(0.0))
_MAX_INFARCT_SHARE = 0.42  # of a slice: more would be more than two territories
_TERRITORY_WEIGHTS = (0.47, 0.38, 0.15)  # anterior 47 % of 355 STEMI patients; the rest is ours


@dataclasses.dataclass(frozen=True)
class Preset:
    """How hard the task is; numbers are factors."""

    contrast: float  # how far infarct and MVO differ in signal from remote muscle
    core_contrast: float  # how much darker an MVO core is than the infarct around it
    core_size: float  # the share of the slice that an MVO core takes
    strain_gap: float  # the difference in infarct strain between MVO and no MVO
    label_follows_image: bool  # whether label and mask show the pathology that is in the image


PRESETS = {
    # Measured: with infarct contrast x3 and strain gap x2 alone a logistic model of the true area
    # change, strain, infarct size and transmurality reaches AUC 0.93, and a small network 0.7 in
    # three minutes on two cores. A check of the machinery must not hang on that much skill.
    "easy": Preset(3.0, 8.0, 3.0, 4.0, label_follows_image=True),
    "paper": Preset(1.0, 1.0, 1.0, 1.0, label_follows_image=True),
    "null": Preset(1.0, 1.0, 1.0, 1.0, label_follows_image=False),
}


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Healthy anatomy and function of a patient; nothing here depends on the infarct."""

    male: bool
    age_years: float
    endo_radius: float
    wall: float
    endo_shape: np.ndarray  # [2, 6] cosine and sine amplitudes of harmonics 2..7, relative
    epi_shape: np.ndarray
    slice_offset: float  # of slice 0 from mid-ventricle, positive towards the apex
    remote_strain: float
    twist: float
    end_systole: float
    filling_delay: float
    rv_width: float
    rv_half_angle: float
    rv_shortening: float
    papillary_angle: np.ndarray  # [2]
    papillary_radius: np.ndarray  # [2]
    rotation: float
    centre: np.ndarray  # [2] x, y
    field_of_view: float


def draw_anatomy(seed: int, patient: int) -> Anatomy:
    """Anatomy of a patient, the same under every preset.

    Sex and age: Yang et al., the paper's cohort. Wall: Kawel-Boehm 2020. Radius, heart shape and
    end-systolic time: normal ranges and the Sunnybrook infarct patients. Remote strain: mean of
    METOCARD-CNIC (Podlesnikar 2020); its sd of 5.9 % holds reading error and regional spread, so
    the spread between patients is put at 3.8 %, just under that of global strain by tagging (4.3 %,
    acute infarction). Twist: Young & Cowan 2012. Right ventricle, papillary muscles
    and position: ours, after anatomy.
    """
    d = Draws(seed, patient, "anatomy")
    male = d.chance(0.92)
    decay = 0.011 / np.arange(1.0, 7.0)
    quarter_turn = d.chance(0.2)  # in some Sunnybrook studies the right ventricle lies below
    return Anatomy(
        male=male,
        age_years=d.normal(57.0, 9.0, low=25.0, high=90.0),
        endo_radius=d.normal(25.0, 3.0, low=18.5, high=31.5),
        wall=d.normal(8.6, 1.3, low=6.0, high=11.5)
        if male
        else d.normal(7.2, 1.1, low=5.2, high=10.0),
        endo_shape=d.normals(2, 6) * decay,
        epi_shape=d.normals(2, 6) * decay * 0.6,
        slice_offset=d.normal(0.0, 6.0, low=-14.0, high=14.0),
        remote_strain=d.normal(-0.195, 0.038, low=-0.30, high=-0.11),
        twist=math.radians(d.normal(3.0, 3.0, low=-5.0, high=11.0)),
        end_systole=d.normal(0.36, 0.04, low=0.27, high=0.46),
        filling_delay=d.uniform(0.13, 0.21),
        rv_width=d.uniform(15.0, 27.0),
        rv_half_angle=math.radians(d.uniform(60.0, 76.0)),
        rv_shortening=d.uniform(0.22, 0.42),
        papillary_angle=np.radians([d.normal(55.0, 7.0), d.normal(-50.0, 7.0)]),
        papillary_radius=np.array([d.uniform(2.6, 5.2), d.uniform(2.6, 5.2)]),
        rotation=d.normal(0.0, 0.3, low=-0.8, high=0.8) + (math.pi / 2 if quarter_turn else 0.0),
        centre=np.array([d.normal(0.0, 2.5, low=-6, high=6), d.normal(0.0, 2.5, low=-6, high=6)]),
        field_of_view=d.uniform(115.0, 128.0),
    )


@dataclasses.dataclass(frozen=True)
class Pathology:
    """Infarct and MVO of a patient, in material coordinates."""

    mvo: bool
    haemorrhage: bool
    territory: int  # index into TERRITORIES
    angle: float
    infarct_share: float  # share of the left-ventricular muscle in the central slice
    level: float  # of the infarct's centre along the long axis, mm towards the apex
    transmurality: float  # largest depth of the infarct as a share of the wall
    strain: float
    swelling: float  # relative thickening of the infarcted wall by oedema
    mvo_percent: float  # of the whole left ventricle's mass, 0 without MVO
    mvo_share: float  # share of the muscle in the central slice
    foci: np.ndarray  # [n, 3]: place across and along the infarct in [0, 1], weight
    focus_aspect: float
    infarct_border: np.ndarray  # [3, 24] random nodes
    mvo_border: np.ndarray  # [4, 48] random nodes


def _infarct_size(d: Draws, *, mvo: bool, haemorrhage: bool) -> float:
    """Infarct size, % of the left ventricle (Bekkers 2010), with a share of confounders.

    A few are drawn from the other class, so that at least 15 % of the MVO cases have a smaller
    infarct than the median patient, and at least 15 % of the others a larger one.
    """
    if d.chance(0.17 if mvo else 0.03):
        mvo, haemorrhage = not mvo, True
    mean, sd = ((23.0, 9.0) if haemorrhage else (16.0, 7.0)) if mvo else (8.0, 8.0)
    return float(np.clip(d.gamma(mean=mean, sd=sd), 2.5, 48.0))


def draw_pathology(stream: Draws, *, mvo: bool, preset: Preset) -> Pathology:
    """Infarct and MVO given whether there is MVO.

    MVO size: log-normal fit to de Waha 2017, related to infarct size (ours). Haemorrhage: 80 % of
    MVO (Bekkers 2010). Transmurality grows from the endocardium (Reimer 1977), shape ours. Infarct
    strain: METOCARD-CNIC mean, split by MVO (ours).
    """
    d = stream
    haemorrhage = d.chance(0.80) and mvo
    size = _infarct_size(d, mvo=mvo, haemorrhage=haemorrhage)
    territory = d.choice(_TERRITORY_WEIGHTS)
    strain_mean = -0.0875 + (0.0175 if mvo else -0.0175) * preset.strain_gap
    # Larger infarcts hold larger cores: the log sizes are correlated, the marginal stays published.
    size_score = (math.log(size) - math.log(20.0)) / 0.5
    core_score = 0.6 * float(np.clip(size_score, -2.0, 2.0)) + 0.8 * d.normal(0.0, 1.0)
    mvo_percent = math.exp(0.74 + 1.28 * core_score)
    n_foci = 1 + d.integer(2)
    foci = np.array(
        [[d.uniform(0.1, 0.4), d.uniform(-0.45, 0.45), d.uniform(0.6, 1.0)] for _ in range(n_foci)]
    )
    infarct_share = size / 100.0 * d.uniform(1.3, 1.9)  # a slice through the infarct
    mvo_share = mvo_percent / 100.0 * d.uniform(2.0, 4.0)
    return Pathology(
        mvo=mvo,
        haemorrhage=haemorrhage,
        territory=territory,
        angle=_TERRITORY_ANGLE[territory] + math.radians(d.normal(0.0, 15.0, low=-38, high=38)),
        infarct_share=min(infarct_share, _MAX_INFARCT_SHARE),
        level=d.normal(0.0, 8.0, low=-20.0, high=20.0),
        transmurality=float(np.clip(d.beta(6.0, 2.0) if mvo else d.beta(3.0, 2.5), 0.12, 1.0)),
        strain=d.normal(strain_mean, 0.05, low=-0.21, high=0.02),
        swelling=d.uniform(0.05, 0.15),
        mvo_percent=mvo_percent if mvo else 0.0,
        mvo_share=preset.core_size * mvo_share if mvo else 0.0,
        foci=foci,
        focus_aspect=d.uniform(0.7, 1.4),
        infarct_border=d.normals(3, 24),
        mvo_border=d.normals(4, 48),
    )


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """One slice's scan: signals, coil, artefacts, and how the LGE image lies against the cine."""

    blood: float  # signals are relative to remote muscle
    infarct: float
    core: float
    fat: float
    blood_snr: float
    exposure: float  # displayed level of blood, share of the grey range
    gamma: float
    coils: np.ndarray  # [n, 4]: x, y, reach (mm), weight
    drift: np.ndarray  # [2, 3] mm: amplitude and phase of the slow drift, and its slope
    trabecula: float  # width of the blurred endocardial border, mm
    blur: bool
    ghost: float  # strength of a displaced copy, 0 for none
    ghost_shift: float  # share of the field of view
    ghost_axis: int
    start: int  # frames by which the cine starts away from end-diastole
    mask_shift: np.ndarray  # [2] mm
    mask_rotation: float
    mask_scale: float
    mask_contraction: float
    mask_border: np.ndarray  # [16] random nodes


def draw_acquisition(
    seed: int,
    patient: int,
    slice_index: int,
    *,
    haemorrhage: bool,
    preset: Preset,
    misregistration_mm: float = MISREGISTRATION_MM,
) -> Acquisition:
    """The scan of one slice.

    Relaxation times at 3 T: remote von Knobelsdorff 2013, infarct Layland 2017, core Carrick 2016
    (direction; values ours). SNR: MRXCAT 20, Sunnybrook 14-18. Coil: exponentials, at most
    threefold across the field of view. Misregistration, drift and artefacts: ours.

    Args:
        misregistration_mm: standard deviation along each axis of the mask's shift, which is cut at
            2.5 of it; the other errors of the mask are multiplied by it over 3.2. The same draws
            are used whatever its value, and nothing but the mask depends on it.
    """
    shared = Draws(seed, patient, "scanner")
    flip = math.radians(shared.uniform(40.0, 55.0))

    def signal(density: float, t1: float, t2: float) -> float:
        """On-resonance balanced steady-state at TE 1.5 ms, TR much shorter than T2 (MRXCAT); ms."""
        ratio, decay = t1 / t2, math.exp(-1.5 / t2)
        return density * math.sin(flip) * decay / ((ratio + 1.0) - math.cos(flip) * (ratio - 1.0))

    remote = signal(1.0, shared.normal(1160, 40, low=1060, high=1260), shared.normal(45, 2.0))
    # Both cores are drawn and one is used: equal streams for equal cases with and without MVO.
    infarct = signal(
        shared.normal(1.06, 0.02),
        shared.normal(1323, 60, low=1200, high=1450),
        shared.normal(57, 4),
    )
    core_bled = signal(shared.normal(1.0, 0.01), 1150.0, shared.normal(44.0, 1.5))
    core_plain = signal(shared.normal(1.03, 0.01), 1250.0, shared.normal(52.0, 1.5))
    blood = signal(1.0, 1932.0, 275.0) * shared.uniform(1.0, 1.3)  # inflow of fresh blood
    fat = signal(0.87, 380.0, 130.0)
    rim = max(infarct / remote, 1.04)
    core = min((core_bled if haemorrhage else core_plain) / remote, rim - 0.03)
    coils = []
    for _ in range(1 + shared.integer(3)):
        towards, far = shared.uniform(0.0, 2.0 * math.pi), shared.uniform(70.0, 120.0)
        reach, weight = shared.uniform(70.0, 160.0), shared.uniform(0.5, 1.0)
        coils.append([far * math.cos(towards), far * math.sin(towards), reach, weight])

    d = Draws(seed, patient, "slice", slice_index)
    blur, ghosted = d.chance(0.05), d.chance(0.05)
    start = d.integer(5) - 2 if d.chance(0.3) else 0
    reach, errors = 2.5 * misregistration_mm, misregistration_mm / MISREGISTRATION_MM
    return Acquisition(
        blood=blood / remote,
        infarct=1.0 + preset.contrast * (rim - 1.0),
        core=max(
            0.1,
            1.0
            + preset.contrast * (core - 1.0)
            - (preset.core_contrast - preset.contrast) * (rim - core),
        ),
        fat=fat / remote,
        blood_snr=shared.uniform(12.0, 30.0),
        exposure=shared.uniform(0.66, 0.86),
        gamma=shared.uniform(0.8, 1.2),
        coils=np.array(coils),
        drift=np.array(
            [
                [d.uniform(0.0, 1.2), d.uniform(0.0, 1.0), d.normal(0.0, 0.8, low=-2, high=2)],
                [d.uniform(0.0, 1.6), d.uniform(0.0, 1.0), d.normal(0.0, 1.0, low=-2, high=2)],
            ]
        ),
        trabecula=d.uniform(1.0, 2.6),
        blur=blur,
        ghost=d.uniform(0.05, 0.12) if ghosted else 0.0,
        ghost_shift=d.uniform(0.2, 0.5),
        ghost_axis=d.integer(2),
        start=start,
        mask_shift=np.array(
            [d.normal(0.0, misregistration_mm, low=-reach, high=reach) for _ in range(2)]
        ),
        mask_rotation=errors * math.radians(d.normal(0.0, 4.0, low=-11, high=11)),
        mask_scale=1.0 + errors * d.uniform(-0.05, 0.05),
        mask_contraction=min(1.0, errors * d.uniform(0.12, 0.45)) if d.chance(0.10) else 0.0,
        mask_border=errors * d.normals(16),
    )
