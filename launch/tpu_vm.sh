#!/bin/bash
# A run on a Cloud TPU VM, one host or a pod slice: makes the TPU, installs, trains on all its hosts.
#
#   PROJECT=my-project ZONE=us-central2-b NFS=10.0.0.2:/share launch/tpu_vm.sh \
#       --config configs/mvo.py --workdir /shared/runs/mvo
#
# Needs gcloud, logged in. TYPE is the accelerator (v4-16 has two hosts). NFS is a share in the same
# network (Filestore), mounted at /shared on every host: checkpoints need a file system that all of
# them see. Repeat the command after a preemption: it goes on. See docs/cluster.md.
set -euo pipefail

: "${PROJECT:?the Google Cloud project}" "${ZONE:?the zone}" "${NFS:?HOST:/PATH of the share for /shared}"
NAME=${NAME:-mvo}
TYPE=${TYPE:-v4-16}
RUNTIME=${RUNTIME:-tpu-ubuntu2204-base}
[ $# -gt 0 ] || { echo "give the flags of train.py" >&2; exit 2; }

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all \
    --command="$1"
}

if ! gcloud compute tpus tpu-vm describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
  --format='value(state)' 2>/dev/null | grep -q READY; then
  gcloud compute tpus tpu-vm create "$NAME" --project="$PROJECT" --zone="$ZONE" \
    --accelerator-type="$TYPE" --version="$RUNTIME" --spot
fi

here=$(cd "$(dirname "$0")/.." && pwd)
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git -C "$here" archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$NAME:mvo_jax.tar.gz" --project="$PROJECT" \
  --zone="$ZONE" --worker=all

on_all_hosts "
set -e
mkdir -p mvo_jax && tar -xzf mvo_jax.tar.gz -C mvo_jax
cd mvo_jax
command -v mount.nfs >/dev/null || {
  sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common python3-venv
}
sudo mkdir -p /shared
mountpoint -q /shared || sudo mount -t nfs -o hard $NFS /shared
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install --quiet 'jax[tpu]' -r requirements.txt
"

# Every host runs the same line; the TPU's metadata say that they belong together.
on_all_hosts "cd mvo_jax && .venv/bin/python train.py $(printf '%q ' "$@")"
