"""``python -m mvo_jax fingerprint``: is the result the same on another machine?"""

import contextlib
import os

from mvo_jax.cli.flags import Flags, parse
from mvo_jax.errors import EXIT_COMPARISON, UserError


def _define(values: Flags) -> None:
    values.string("out", "", "JSON file to write this machine's results to.")
    values.list("compare", [], "Two such files to compare, A.json,B.json.")
    values.enum("dtype", "float32", ["float32", "float64"], "Precision to compute in.")
    values.enum("size", "small", ["small", "full"], "8x32x32, or the paper's network.")
    many = "How many of the devices, a divisor of 8; 0 for all. On a CPU as many are simulated."
    values.integer("devices", 0, many, lower_bound=0)
    values.string("lowering", "auto", "How convolutions run, as config.model.lowering.")
    values.float("scale", 1.0, "Multiplies the tolerances of --compare.", lower_bound=0)


def main(arguments: list[str]) -> None:
    """Write a fingerprint, or compare two.

    Raises:
        UserError: two fingerprints differ by more than they may (exit code 1), or files or devices
            that are not there.
    """
    values = parse(arguments, _define)
    if bool(values.out) == bool(values.compare):
        raise UserError(
            "fingerprint needs one of --out and --compare",
            "--out=HERE.json writes, --compare=HERE.json,THERE.json compares",
        )
    if values.compare:
        _compare(values.compare, values.scale)
        return
    import jax

    from mvo_jax.interop.fingerprint import compute, write

    if values.devices and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Has an effect on CPUs only, and none once JAX has started.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", values.devices)
    with jax.enable_x64(values.dtype == "float64"):
        about = {"size": values.size, "lowering": values.lowering}
        fingerprint = compute(dtype=values.dtype, num_devices=values.devices, **about)
    write(values.out, fingerprint)
    about = fingerprint["about"]
    print(
        f"wrote {values.out}: {len(fingerprint['entries'])} results in {about['dtype']} on "
        f"{about['devices']} x {about['device']}, jax {about['jax']}, lowering {about['lowering']}"
    )
    print("computed under " + ", ".join(f"{k}={v}" for k, v in about["settings"].items()))


def _compare(paths: list[str], scale: float) -> None:
    from mvo_jax.devices.computation import changes
    from mvo_jax.interop.fingerprint import Difference, compare, read

    if len(paths) != 2:
        raise UserError(f"--compare names {len(paths)} files", "name two, A.json,B.json")
    first, second = (read(path) for path in paths)
    for path, content in zip(paths, (first, second), strict=True):
        about = content["about"]
        print(
            f"{path}: {about['dtype']}, {about['devices']} x {about['device']} "
            f"({about['backend']}), jax {about['jax']}, lowering {about['lowering']}"
        )
    for what in changes(first["about"], second["about"]):
        print(f"they differ in {what}")
    found = compare(first, second, scale=scale)
    groups: dict[str, list[Difference]] = {}
    for difference in found:
        groups.setdefault(difference.name.split("/")[0], []).append(difference)
    print(f"{'group':10}  {'results':>7}  {'identical':>9}  {'largest':>8}  {'allowed':>8}  where")
    for group, members in groups.items():
        worst = max(members, key=lambda d: (not d.holds, d.value))
        identical = sum(d.identical for d in members)
        where = worst.name.partition("/")[2] if worst.value else ""
        print(
            f"{group:10}  {len(members):7}  {identical:9}  {worst.value:8.1e}  {worst.bound:8.1e}  "
            f"{'' if worst.holds else 'DIFFERS: '}{where}".rstrip()
        )
    broken = [difference for difference in found if not difference.holds]
    if broken:
        raise UserError(
            f"{len(broken)} of {len(found)} results differ by more than they may, "
            f"first {broken[0].name}: {broken[0].value:.1e}, allowed {broken[0].bound:.1e}",
            "compare the versions above; --scale multiplies what is allowed",
            exit_code=EXIT_COMPARISON,
        )
    print(f"all {len(found)} results agree")
