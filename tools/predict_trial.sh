#!/usr/bin/env bash
# Predicts with a bundle in an environment that has requirements-predict.txt and no more: no JAX.
#
#     tools/predict_trial.sh BUNDLE IMAGES [OUT]
set -euo pipefail
bundle=$(realpath "$1") images=$(realpath "$2")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$(realpath -m "${3:-$work/out}")

# Built from a copy: setuptools leaves build/ and *.egg-info beside the sources.
git ls-files --cached --others --exclude-standard -z pyproject.toml setup.py 'requirements*.txt' mvo_jax configs |
    xargs -0 cp --parents -t "$work/" 2>/dev/null || { echo "cannot copy the sources" >&2; exit 1; }
"$python" -m venv "$work/venv"
pip() { "$work/venv/bin/pip" --disable-pip-version-check "$@"; }
pip wheel --quiet --no-deps -w "$work" "$work"
before=$(du -sm "$work/venv" | cut -f1)
pip install --quiet -r requirements-predict.txt
pip install --quiet --no-deps "$work"/mvo_jax-*.whl
size=$(($(du -sm "$work/venv" | cut -f1) - before))
pip list --format=freeze | tr '\n' ' '
echo

cd "$work"
if venv/bin/python -c 'import jax' 2>/dev/null; then echo "JAX is installed: this proves nothing" >&2; exit 1; fi
venv/bin/mvo-jax predict --bundle "$bundle" "$images" --out "$out"
test -s "$out/summary.html"
echo "predicted without JAX; installed: $size MB (limit 500)"
test "$size" -le 500
