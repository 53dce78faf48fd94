"""``python -m mvo_jax phantom --preset paper --data_dir data``: generate a simulated cohort."""

from mvo_jax.cli.flags import Flags, parse


def _define(values: Flags) -> None:
    values.string("data_dir", "data", "Folder that holds cohorts.")
    values.string("preset", "paper", "easy, paper or null.")
    values.string("size", "paper", "paper, demo, small, tiny...")
    values.integer("seed", 0, "Seed of the cohort.")
    values.integer("frames", 30, "Frames a cine.")
    values.integer("image_size", 64, "Pixels along each side.")
    values.integer("slices_per_patient", 1, "Slices of each patient.")
    values.float("misregistration_mm", 3.2, "How far masks lie beside the cine.")


def main(arguments: list[str]) -> None:
    """Generate the cohort unless it is there, and say where it lies."""
    values = parse(arguments, _define)
    from mvo_jax.data.phantom.storage import ensure_cohort

    builder = ensure_cohort(
        values.data_dir,
        preset=values.preset,
        seed=values.seed,
        size=values.size,
        frames=values.frames,
        image_size=values.image_size,
        slices_per_patient=values.slices_per_patient,
        misregistration_mm=values.misregistration_mm,
    )
    print(f"{builder.info.full_name} in {builder.data_path}")
    for name, split in builder.info.splits.items():
        print(f"  {name:12}{split.num_examples:6} cases")
