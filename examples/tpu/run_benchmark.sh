#!/usr/bin/env bash
# Runs the benchmark on all workers of a Cloud TPU slice, and fetches answers and summary from worker 0.
#
#   examples/tpu/run_benchmark.sh NAME ZONE [options of eval.benchmark]
#
# docs/tpu/index.md says how to create the slice and to install on it. answers.jsonl in this folder, if there is one, is
# continued: run the same command again after a slice was preempted and made anew.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 NAME ZONE [options of eval.benchmark]" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
options=(--task clips "$@" --distributed --answers answers.jsonl --out summary.json)

if [[ -e answers.jsonl ]]; then
    gcloud compute tpus tpu-vm scp answers.jsonl "$name:acckv_jax/" --zone "$zone" --worker=0
fi
status=0
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
    --command "cd acckv_jax && .venv/bin/python -m eval.benchmark $(printf '%q ' "${options[@]}")" || status=$?
gcloud compute tpus tpu-vm scp "$name:acckv_jax/answers.jsonl" . --zone "$zone" --worker=0 # also of a run cut short
((status == 0)) || exit "$status"
gcloud compute tpus tpu-vm scp "$name:acckv_jax/summary.json" . --zone "$zone" --worker=0
