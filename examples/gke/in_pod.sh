#!/usr/bin/env bash
# What each pod of examples/gke/run_benchmark.sh runs: the benchmark, with its answers kept in a mounted bucket.
#
#   examples/gke/in_pod.sh FOLDER [options of eval.benchmark]
#
# A bucket cannot be appended to line by line, so the answers are written here, and copied every minute and at the end.
# Only process 0 has any. Answers that are in FOLDER already are continued.
set -euo pipefail
folder=$1
shift
keep() {
    for file in answers.jsonl summary.json; do
        if [[ -e $file ]]; then cp "$file" "$folder/"; fi
    done
}
if [[ -e $folder/answers.jsonl ]]; then cp "$folder/answers.jsonl" .; fi
python -m eval.benchmark --task clips "$@" --distributed --answers answers.jsonl --out summary.json &
benchmark=$!
trap 'kill "$benchmark" 2>/dev/null || true' TERM # Kubernetes sends it before it ends a pod
while kill -0 "$benchmark" 2>/dev/null; do
    keep
    sleep 60 &
    wait -n || true # for the minute, or the benchmark
done
status=0
wait "$benchmark" || status=$?
keep
exit "$status"
