"""Entry point of every command: environment first, then the verb, then its errors.

Only the standard library is imported here, so that XLA's flags are set before JAX reads them.
"""

import contextlib
import importlib
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator

from mvo_jax.cli.huge_pages import restart_with_huge_pages
from mvo_jax.cli.streams import (
    LastingStream,
    check_width,
    quiet_abandoned_work,
    restart_in_utf8,
    secure_streams,
)
from mvo_jax.devices.environment import configure, why_xla_refuses
from mvo_jax.errors import EXIT_USER_ERROR, UserError
from mvo_jax.files import cannot_write

VERBS = {
    "train": "train a model (train.py)",
    "eval": "evaluate a run and write its report (eval.py)",
    "compare": "train and evaluate several systems, one table (the paper's Table 1)",
    "study": "rows x seeds of a question, each run stored as a small file; tables from these alone",
    "crossval": "train every fold of a prepared cohort; each patient scored once, out of fold",
    "summary": "parameters, FLOPs and memory of a config's model",
    "predict": "probability of MVO for new images or a cohort",
    "serve": "predict on a page in the browser of this machine, with an exported bundle",
    "export": "a run as a folder that predicts without this repository and without JAX",
    "inspect": "look at a cohort or a folder of images, and check it",
    "phantom": "generate a simulated cohort",
    "convert": "weights from a PyTorch checkpoint to here, and back",
    "fingerprint": "write and compare results of fixed computations on other machines",
    "parity": "compare the network, its gradients and its training with PyTorch",
    "bench": "speed and memory here, beside PyTorch where it is installed",
    "prepare": "turn a folder of images into a cohort to train on",
}
# Numpy's products round otherwise with another number of threads, and what is made of an image must
# not depend on it. The products are small: one thread is also the fastest.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_READ_IMAGES = ("prepare", "inspect", "predict", "serve")
# What they write is in a folder of another name until it is whole.
_WHOLE_OR_NOT = ("predict", "export")
_COMPUTE = ("train", "eval", "compare", "study", "crossval", "predict", "export")
# Packages that an installation may lack, and the extra of pyproject.toml that has them.
_EXTRAS = {
    "nibabel": "images",
    "pydicom": "images",
    "h5py": "images",
    "torch": "parity",
    "onnxruntime": "predict",
}
_NO_BACKEND = re.compile("unable to initialize backend|unknown backend", re.IGNORECASE)
# What an installation of requirements-predict.txt alone lacks.
_TRAINING = (
    *("array_record", "flax", "jax", "jaxlib", "ml_collections", "optax", "orbax", "safetensors"),
    *("sklearn", "tensorflow_datasets"),
)
_FROM_CHECKPOINT = "; the same command goes on from the last checkpoint"
_GOES_ON = {
    **dict.fromkeys(("train", "compare", "study", "crossval"), _FROM_CHECKPOINT),
    "prepare": "; the same command goes on with the next series",
}


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Progress of the package on stderr, as plain sentences; results go to stdout."""
    logger, handler = logging.getLogger("mvo_jax"), logging.StreamHandler(sys.stderr)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl's handler would print each line a second time
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def run(verb: str, arguments: list[str]) -> int:
    """Run a verb of ``VERBS`` and turn a user's mistake into two lines and an exit code.

    ``--debug`` among the arguments shows the traceback of an error.
    """
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    configure(os.environ)
    if verb in _READ_IMAGES:
        os.environ.update(_ONE_THREAD)
    module = importlib.import_module(f"mvo_jax.cli.{verb}")
    try:
        with _log_to_stderr():
            module.main(arguments)
    except KeyboardInterrupt:
        print(f"interrupted{_GOES_ON.get(verb, '')}", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = None if debug else _mistake(error)
        if mistake is None:
            raise
        return _refuse(mistake)
    return 0


def _mistake(error: Exception) -> UserError | None:
    """The user's mistake that an error comes from; None for a fault of ours."""
    # JAX reads its variables when it is imported, which may be by a config file.
    source = error.__cause__ if isinstance(error, UserError) else error
    if isinstance(error, UserError | ValueError) and _is_from_jax_config(source):
        return UserError(
            f"JAX does not take a variable of the environment: {source}",
            "unset it, or give one of the values that are named",
        )
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        cause = f"{package} is not installed"
        if package in _TRAINING:
            remedy = "pip install mvo_jax with all its packages; only predict --bundle needs fewer"
            return UserError(cause, remedy)
        if package in _EXTRAS:
            remedy = f'pip install "mvo_jax[{_EXTRAS[package]}]", or pip install {package}'
            return UserError(cause, remedy)
    if isinstance(error, RuntimeError) and _NO_BACKEND.search(str(error)):
        asked, reason = os.environ.get("JAX_PLATFORMS", ""), str(error).splitlines()[0]
        return UserError(
            f"JAX cannot start with JAX_PLATFORMS={asked!r}: {reason}",
            "unset JAX_PLATFORMS, or install the jax of that accelerator where there is one",
        )
    return None


def _is_from_jax_config(error: BaseException | None) -> bool:
    """Whether JAX's own reading of its settings raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__)) if error is not None else []
    name = os.path.join("jax", "_src", "config.py")
    return bool(frames) and frames[-1][0].f_code.co_filename.endswith(name)


def _refuse(error: UserError) -> int:
    print(f"error: {error.cause}\n  what to do: {error.remedy}", file=sys.stderr)
    return error.exit_code


def main(verb: str = "") -> int:
    """``mvo-jax VERB ...`` and ``python -m mvo_jax VERB ...``: the process's whole command.

    Args:
        verb: where the program stands for one (train.py); by default the first word.
    """
    secure_streams()
    quiet_abandoned_work()
    restart_in_utf8()
    check_width(os.environ)
    verb, *arguments = [verb, *sys.argv[1:]] if verb else (sys.argv[1:] or [""])
    if verb not in VERBS:
        asked = verb in ("--help", "-h")
        lines = "\n".join(f"  {name:13}{text}" for name, text in VERBS.items())
        usage = f"usage: mvo-jax VERB [options], or python -m mvo_jax VERB [options]\n\n{lines}"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return _all_was_printed(0) if asked else EXIT_USER_ERROR
    if verb in _COMPUTE and not any(re.match("--help|-h$", word) for word in arguments):
        restart_with_huge_pages()
        starts_jax = not any(word.startswith("--bundle") for word in arguments)
        if starts_jax and (reason := why_xla_refuses(os.environ)):
            remedy = "correct the flag, or unset XLA_FLAGS; flags change with the version of jaxlib"
            return _refuse(UserError(f"XLA does not take XLA_FLAGS: {reason}", remedy))
    if verb in _WHOLE_OR_NOT:
        _leave_nothing_behind()
    try:
        return _all_was_printed(run(verb, arguments))
    except SystemExit as end:  # --help, or a run that was asked to stop
        if end.code:
            raise
        return _all_was_printed(0)


def _leave_nothing_behind() -> None:
    """SIGTERM and a closed terminal unwind the command, so that half a folder does not stay."""

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the deleting
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup ignores it, and so do we
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


def _all_was_printed(code: int) -> int:
    """The exit code of a command, or that of results that a full file did not take."""
    sys.stdout.flush()
    lost = sys.stdout.lost if isinstance(sys.stdout, LastingStream) else None
    return code if code or lost is None else _refuse(cannot_write("what the command prints", lost))
