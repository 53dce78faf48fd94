"""The import rules of docs/architecture.md, read from the source without running it."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvo_jax.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mvo_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Floors of the house: a room imports rooms of lower floors, and nothing else but itself.
FLOORS = (
    {"errors"},
    {"files"},
    {"settings"},
    {"config_files", "sweep"},
    {"models", "data"},
    {"devices"},
    {"runs"},
    {"training"},
    {"evaluation"},
    {"interop"},
    {"bundles"},
    {"trained_run"},
    {"calibrated"},
    {"ensemble"},
    {"run"},
    {"one_run"},
    {"comparison", "inspect_images", "predict_images"},
    {"serving"},
    {"cli"},
    {"__main__"},
)
DEVICE_NAMES = {
    "pmap", "shard_map", "devices", "local_devices", "device_count", "local_device_count",
    "device_put", "make_mesh", "Mesh", "NamedSharding", "PartitionSpec", "sharding",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all imported modules and of the names imported from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{'.' * node.level}{node.module or ''}.{alias.name}"


def modules_imported(path: Path, *, at_start: bool = False) -> set[str]:
    """Modules of mvo_jax that a file imports, at the top or, too, inside functions."""
    found = set()
    tree = ast.parse(path.read_text())
    for name in imports(top_of(tree) if at_start else tree):
        if name.split(".")[0] != "mvo_jax":
            continue
        while not is_module(name):
            name = name.rpartition(".")[0]
        found.add(name)
    return found


def external_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}


def top_of(tree: ast.Module) -> ast.Module:
    """The imports that the import of the file itself runs."""
    found = (ast.Import, ast.ImportFrom)
    return ast.Module([node for node in tree.body if isinstance(node, found)], [])


def imported_at_start(path: Path) -> set[str]:
    """Packages imported by the import of the file itself."""
    return {name.split(".")[0] for name in imports(top_of(ast.parse(path.read_text())))}


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_say_where_a_name_comes_from():
    for path in FILES:
        names = list(imports(ast.parse(path.read_text())))
        assert [name for name in names if name.startswith(".")] == [], path


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path):
    module = module_name(path)
    below: set[str] = set()
    if module != "mvo_jax":
        own = room(module)
        floor = next(i for i, rooms in enumerate(FLOORS) if own in rooms)
        below = {own}.union(*FLOORS[:floor])
    # The bare package is a version and names that are looked up when they are asked for.
    rooms = {room(name) for name in modules_imported(path) if name != "mvo_jax"}
    assert rooms <= below


def test_no_circular_import():
    graph = {module_name(path): modules_imported(path) for path in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [
        ({"torch", "torchvision"}, "interop/"),
        ({"orbax"}, "runs/checkpoint.py"),
        ({"tensorflow_datasets", "grain", "array_record"}, "data/"),
        ({"nibabel", "pydicom", "h5py"}, "data/importers/"),
        ({"tensorflow", "keras"}, "nowhere"),
        ({"pytest"}, "nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(sorted(value)),
)
def test_package_is_imported_in_its_room_only(packages, allowed):
    users = [str(path.relative_to(PACKAGE)) for path in FILES if packages & external_packages(path)]
    assert [user for user in users if not user.startswith(allowed)] == []


def test_devices_are_known_in_parallel_only():
    users = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in DEVICE_NAMES
                and isinstance(node.value, ast.Name)
                and node.value.id == "jax"
            ):
                users.add((module_name(path), node.attr))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax":
                names = {alias.name for alias in node.names} | set((node.module or "").split("."))
                users |= {(module_name(path), name) for name in names & DEVICE_NAMES}
    assert {user for user in users if user[0] != "mvo_jax.devices.parallel"} == set()


def test_no_utils_module():
    assert [p for p in FILES if p.stem in ("utils", "util", "helpers", "common", "misc")] == []


def test_nothing_that_ships_imports_the_tools_or_the_benchmarks():
    for path in [*FILES, *sorted((ROOT / "configs").glob("*.py"))]:
        assert not {"tools", "benchmarks", "tests"} & external_packages(path), path.name


def test_configs_know_their_neighbours_and_the_defaults_only():
    allowed = ("mvo_jax.settings.", "mvo_jax.models.registry.", "ml_collections.", "typing.", ".")
    for path in sorted((ROOT / "configs").glob("*.py")):
        names = imports(ast.parse(path.read_text()))
        assert [name for name in names if not name.startswith(allowed)] == [], path.name


def test_every_verb_is_a_module_and_every_other_module_of_cli_is_shared():
    modules = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__init__"}
    assert modules == set(VERBS) | {"main", "flags", "huge_pages", "streams"}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_nothing_that_takes_time(verb):
    # XLA reads its flags when JAX is imported, so the entry point must come before it.
    code = f"""
import sys
from mvo_jax.cli.main import main
sys.argv = ["mvo-jax", *{[verb][: bool(verb)]!r}, "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
heavy = {{"jax", "flax", "optax", "scipy", "matplotlib", "tensorflow_datasets", "orbax", "torch",
         "sklearn", "ml_collections"}}
sys.exit(" ".join(sorted(heavy & set(sys.modules))))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == ""
    # `bench` hands its flags on to a benchmark.
    shown = {"": "usage: mvo-jax VERB", "bench": "bench WHAT"}.get(verb, "Show the flags.")
    assert shown in result.stdout


def test_importing_everything_needs_neither_torch_nor_tensorflow_and_starts_no_backend():
    torch_modules = {module_name(p) for p in FILES if "torch" in imported_at_start(p)}
    names = [module_name(p) for p in FILES if p.name != "__main__.py"]
    names = [name for name in names if name not in torch_modules]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(sorted({{"torch", "tensorflow", "keras"}} & set(sys.modules)))
import jax
jax.config.update("jax_num_cpu_devices", 3)  # refused once a backend has started
print(jax.device_count())
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={"PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert result.stdout.split("\n")[:2] == ["[]", "3"]
    # Modules that do need torch belong to `interop`; from elsewhere functions import them.
    for path in FILES:
        if not path.is_relative_to(PACKAGE / "interop"):
            assert not modules_imported(path, at_start=True) & torch_modules


def test_every_command_of_the_readme_names_a_config_that_exists():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    named = re.findall(r"configs/([a-z_0-9]+\.py)", readme.read_text())
    assert named
    assert [name for name in named if not (ROOT / "configs" / name).is_file()] == []
