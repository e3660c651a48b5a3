#!/usr/bin/env bash
# Runs the benchmark on two nodes of eight GPUs each, one process a GPU; submit it from the top of the checkout, which
# all nodes see:
#
#   sbatch examples/slurm/run_benchmark.sh [options of eval.benchmark]
#
# Submitted again it continues answers.jsonl.
#SBATCH --job-name=acckv
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=acckv-%j.log
set -euo pipefail

# JAX takes the GPU of a process's number on its node, so every process must see all of them. If one process dies, the
# others end too.
srun --gpu-bind=none --kill-on-bad-exit=1 .venv/bin/python -m eval.benchmark --task clips "$@" --distributed \
    --answers answers.jsonl --out summary.json
