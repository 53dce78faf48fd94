"""What a run can start from, or be converted from, by what a path holds."""

from pathlib import Path

from mvo_jax.config_files import config_from_json
from mvo_jax.devices import distributed, parallel
from mvo_jax.errors import UserError
from mvo_jax.files import local_path, sha256
from mvo_jax.interop.weight_files import PICKLED, VariablesFile, is_variables_file, read_variables
from mvo_jax.runs.checkpoint import SEAL, Checkpoints
from mvo_jax.runs.folder import RunFolder
from mvo_jax.training.setup import set_up


def read_start(path: str) -> VariablesFile:
    """The variables that ``config.init_from`` names: of a run folder, or of a converted file.

    Raises:
        UserError: neither, or damaged; a torch checkpoint has to be converted first.
    """
    source = Path(local_path(path, "config.init_from"))
    if not source.exists():
        raise UserError(
            f"config.init_from names {path}, which does not exist",
            "name the folder of a run, or a .safetensors file of `python -m mvo_jax convert`",
        )
    if source.is_dir():
        return variables_of_run(source)
    if source.suffix in PICKLED or not is_variables_file(source):
        raise UserError(
            f"config.init_from names {path}, which is not a file of this project",
            "convert a torch checkpoint first: python -m mvo_jax convert --source "
            f"{path} --layout NAME --config CONFIG --out {source.with_suffix('').name}"
            "-converted.safetensors",
        )
    return read_variables(source)


def variables_of_run(path: Path, checkpoint: str = "best") -> VariablesFile:
    """The variables of a checkpoint, 'best' or 'latest', of a trained run.

    Raises:
        UserError: no run, no such checkpoint, or a damaged one.
    """
    folder = RunFolder(path)
    config = config_from_json(folder.config())
    experiment = set_up(config, devices=parallel.devices(distributed.count()), train=False)
    checkpoints = Checkpoints(folder.path, create=False)
    variables, step = checkpoints.restore_variables(experiment.state_shapes(), checkpoint)
    checkpoints.finish()
    return VariablesFile(
        variables=variables,
        model=config.model.to_dict(),
        clip=experiment.clip_shape,
        provenance={"run": folder.path.name, "checkpoint": checkpoint, "step": step},
        # The seal has the hashes of all files of the checkpoint.
        sha256=sha256(folder.path / "checkpoints" / checkpoint / str(step) / SEAL),
    )
