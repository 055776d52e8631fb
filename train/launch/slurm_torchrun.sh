#!/usr/bin/env bash
# One torchrun per node: sbatch slurm_torchrun.sh --config svilm_base run.dir=...
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
: "${PYTHON:=python}" "${RANKS:=gpu}"
LAUNCH=${LAUNCH:-$("$PYTHON" -c 'import svilm_fast.train.launch as launch; print(*launch.__path__)')}
. "$LAUNCH/slurm_common.sh"
FIRST=$(first_node)
PORT=$(job_port)
# Seconds that the ranks have to save after SIGTERM; torch before 2.13 always waits 30 s.
: "${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:=240}"
export PYTHON RANKS FIRST PORT TORCH_ELASTIC_SHUTDOWN_TIMEOUT
export NODES=$SLURM_JOB_NUM_NODES RUN_ID=$SLURM_JOB_ID
# $SLURM_NODEID and the node's name are only known inside the task.
# shellcheck disable=SC2016
run_and_requeue bash -c 'NODE=$SLURM_NODEID OWN=${OWN:-$SLURMD_NODENAME} exec bash "$@"' node \
    "$LAUNCH/torchrun_nodes.sh" --auto-resume "$@"
