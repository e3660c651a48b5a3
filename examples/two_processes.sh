#!/usr/bin/env bash
# Answers a clip's questions on this machine as a pod of two hosts would: two processes of four CPU devices each.
#
#   examples/two_processes.sh [arguments and options of eval.answer]
#
# Without arguments: the bundled clip and its questions. Process 0 prints. If one process fails, the other is ended, and
# the exit status is that of the failed one. PYTHON names another interpreter than the checkout's .venv/bin/python.
set -euo pipefail
python=${PYTHON:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4

processes=()
stop() {
    kill "${processes[@]}" 2>/dev/null || true
    wait
}
trap stop EXIT
for process in 0 1; do
    "$python" -m eval.answer "$@" --coordinator "127.0.0.1:$port" --processes 2 --process "$process" &
    processes+=($!)
done
wait -n # for whichever ends first; a failure ends the script
wait -n
