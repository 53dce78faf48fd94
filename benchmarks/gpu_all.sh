#!/usr/bin/env bash
# All speed figures of one GPU within nine minutes, a table at the end.
#
#   benchmarks/gpu_all.sh OUT            a GPU; BUDGET=1500 benchmarks/gpu_all.sh OUT for all parts
#   benchmarks/gpu_all.sh OUT --small    the same parts in tiny shapes, on a CPU
#
# Needs jax, flax, optax, orbax-checkpoint and torch (PYTHON names the interpreter). Every part has a
# time limit; a part that fails or runs out of time leaves the others alone, and writes what it has.
set -u
OUT=${1:?usage: benchmarks/gpu_all.sh OUT [--small]}
case $OUT in /*) ;; *) OUT=$PWD/$OUT ;; esac
cd "$(dirname "$0")/.." || exit 1
SMALL=${2:-}
PYTHON=${PYTHON:-python}
if [ -n "$SMALL" ] && [ "$SMALL" != --small ]; then
    echo "error: unexpected argument $SMALL" >&2
    exit 2
fi
# Looked for and not imported, which would take seconds of the budget.
LACKS=$("$PYTHON" -c 'from importlib.util import find_spec
print(*[n for n in "jax flax optax orbax torch".split() if find_spec(n) is None])') || exit 1
if [ -n "$LACKS" ]; then
    echo "error: $PYTHON lacks $LACKS; set PYTHON to an interpreter with all of them" >&2
    exit 1
fi
mkdir -p "$OUT" || exit 1
rm -f "$OUT/parts.txt"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$OUT/cache}
SHAPE=()
GPU=(--steps 20 --rounds 3)
TORCH=eager,compile
PATIENCE=1 # times the limits below
if [ -n "$SMALL" ]; then
    PATIENCE=6
    SHAPE=(--frames 8 --size 32 --width 4)
    GPU=(--steps 2 --rounds 1)
    TORCH=eager
fi

BUDGET=${BUDGET:-$((530 * PATIENCE))}

# part NAME LIMIT SCRIPT ARGUMENTS...: run one benchmark, at most LIMIT seconds and what is left.
part() {
    local name=$1 limit=$(($2 * PATIENCE)) left=$((BUDGET - SECONDS)) started=$SECONDS code
    shift 2
    rm -f "$OUT/$name.json" # of an earlier run
    if [ "$left" -lt 20 ]; then
        echo "$name: left out, no time" | tee -a "$OUT/parts.txt"
        return
    fi
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $name (at most $limit s)"
    # The program itself runs in the time limit's process group, and so do its contenders.
    timeout --kill-after=5 "$limit" "$PYTHON" "benchmarks/$1" "${@:2}" "${SHAPE[@]}" \
        --json "$OUT/$name.json" >"$OUT/$name.log" 2>&1
    code=$?
    tail -n 3 "$OUT/$name.log"
    case $code in
        0) code="done" ;;
        124 | 137) code="out of time" ;;
        *) code="failed with status $code, see $name.log" ;;
    esac
    [ "$code" = "done" ] || [ ! -f "$OUT/$name.json" ] || code="$code, part of it written"
    echo "$name: $code, $((SECONDS - started)) s" | tee -a "$OUT/parts.txt"
}

# pick FULL SMALL: what the mode asks for.
pick() { if [ -n "$SMALL" ]; then echo "$2"; else echo "$1"; fi; }

chunk=$(pick 20 2)
large=$(pick 128 4)
# shellcheck disable=SC2046  # words of an argument list
part run_8000 180 run_8000.py --chunk "$chunk" \
    $(pick "--limit 150" "--cohort tiny --batch 4 --steps 8 --eval-every 4")
part train_16 130 train_step.py --batch "$(pick 16 4)" --dtype bfloat16 --chunk "1,$chunk" \
    --lowering conv2d --torch-mode $TORCH "${GPU[@]}"
part train_128 130 train_step.py --batch "$large" --dtype bfloat16 \
    --lowering "$(pick conv2d,conv3d conv2d)" --torch-mode $TORCH "${GPU[@]}"
part inference 70 inference.py --part classify --batch "$large" --dtype bfloat16 \
    --torch-mode $TORCH "${GPU[@]}"
part data 120 data_step.py --batch "$(pick 16 2)" --dtype bfloat16 --chunk "$chunk" --rounds 3
if [ -z "$SMALL" ]; then # what a larger budget buys
    part train_16_conv3d 240 train_step.py --impl jax --batch 16 --dtype bfloat16 --chunk 20 \
        --lowering conv2d_padded,conv3d,conv3d_padded,conv3d_pairs "${GPU[@]}"
    part train_float32 200 train_step.py --batch 16,128 --dtype float32 --torch-mode $TORCH \
        "${GPU[@]}"
    part train_256 150 train_step.py --batch 256 --dtype bfloat16 --torch-mode $TORCH "${GPU[@]}"
    part train_autotune 400 train_step.py --impl torch --batch 16,128 --dtype bfloat16 \
        --torch-mode autotune "${GPU[@]}"
    part inference_mask 120 inference.py --part mask --batch 16,128 --dtype bfloat16 \
        --torch-mode $TORCH "${GPU[@]}"
fi

echo
"$PYTHON" benchmarks/gpu_table.py "$OUT"
