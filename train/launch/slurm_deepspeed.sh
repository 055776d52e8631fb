#!/usr/bin/env bash
# One deepspeed launcher per node: sbatch slurm_deepspeed.sh --config svilm_base run.dir=...
#SBATCH --job-name=svilm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
: "${PYTHON:=python}" "${RANKS:=8}"
LAUNCH=${LAUNCH:-$("$PYTHON" -c 'import svilm_fast.train.launch as launch; print(*launch.__path__)')}
. "$LAUNCH/slurm_common.sh"
FIRST=$(first_node)
PORT=$(job_port)
export PYTHON FIRST PORT
hostfile=$(mktemp "$PWD/hostfile.XXXXXX") # on all nodes, unlike /tmp
trap 'rm -f "$hostfile"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$RANKS/" >"$hostfile"
# shellcheck disable=SC2016
run_and_requeue bash -c 'NODE=$SLURM_NODEID exec bash "$@"' node \
    "$LAUNCH/deepspeed_nodes.sh" "$hostfile" --auto-resume "$@"
