#!/usr/bin/env bash
# Runs the benchmark as an xpk workload on a GKE cluster of TPUs, waits for it, and fetches answers and summary.
#
#   examples/gke/run_benchmark.sh CLUSTER TPU_TYPE IMAGE BUCKET [options of eval.benchmark]
#
# docs/gke.md says how to create the cluster, the image, and the storage "results", which mounts BUCKET as /results.
set -euo pipefail
if (($# < 4)); then
    echo "usage: $0 CLUSTER TPU_TYPE IMAGE BUCKET [options of eval.benchmark]" >&2
    exit 2
fi
cluster=$1 tpu_type=$2 image=$3 bucket=$4
shift 4
workload=acckv-$(date +%s)

xpk workload create --cluster "$cluster" --workload "$workload" --tpu-type "$tpu_type" --docker-image "$image" \
    --storage results --command "bash examples/gke/in_pod.sh /results $(printf '%q ' "$@")"
status=0
xpk workload list --cluster "$cluster" --wait-for-job-completion "$workload" || status=$? # 125: it failed
gcloud storage cp "gs://$bucket/answers.jsonl" "gs://$bucket/summary.json" .
exit "$status"
