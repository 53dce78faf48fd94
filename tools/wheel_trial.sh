#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment and runs the README's commands in an empty
# folder: nothing of the checkout may be needed.
#
#     tools/wheel_trial.sh [FLAG...]      flags of the training, e.g. --config.train.total_steps=4
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Built from a copy: setuptools leaves build/ and *.egg-info beside the sources.
git ls-files --cached --others --exclude-standard -z pyproject.toml setup.py 'requirements*.txt' mvo_jax configs |
    xargs -0 cp --parents -t "$work/" 2>/dev/null || { echo "cannot copy the sources" >&2; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --disable-pip-version-check --no-deps -w "$work" "$work"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "$work"/mvo_jax-*.whl

mkdir "$work/empty"
cd "$work/empty"
export PATH="$work/venv/bin:$PATH"
python -c 'import importlib.util as u; assert u.find_spec("configs") is None, "a package configs is installed"'
mvo-jax train --config demo --workdir runs/demo "$@"
mvo-jax eval --workdir runs/demo
mvo-jax predict --workdir runs/demo data --out predicted --pictures=2
test -s runs/demo/report.html
test -s predicted/summary.html
echo "the wheel trains, evaluates and predicts in an empty folder"
