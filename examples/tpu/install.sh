#!/usr/bin/env bash
# Installs this checkout's last commit on all workers of a Cloud TPU slice, in ~/acckv_jax.
#
#   examples/tpu/install.sh NAME ZONE
#
# The workers' own Python is too old, so uv fetches one.
set -euo pipefail
if (($# != 2)); then
    echo "usage: $0 NAME ZONE" >&2
    exit 2
fi
name=$1 zone=$2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
archive=$(mktemp -d)/acckv_jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT

git archive --prefix=acckv_jax/ --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone "$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command '
    set -e
    tar -xzf acckv_jax.tar.gz
    cd acckv_jax
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.11 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python -e ".[run,tpu]"
'
