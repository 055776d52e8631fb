#!/usr/bin/env bash
# One task per GPU: srun starts every rank. sbatch slurm_tasks.sh --config svilm_base run.dir=...
#SBATCH --job-name=svilm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# Slurm runs a copy of this script, so the other scripts are found through the package.
: "${PYTHON:=python}"
LAUNCH=${LAUNCH:-$("$PYTHON" -c 'import svilm_fast.train.launch as launch; print(*launch.__path__)')}
. "$LAUNCH/slurm_common.sh"
MASTER_ADDR=$(first_node)
MASTER_PORT=$(job_port)
export MASTER_ADDR MASTER_PORT
run_and_requeue "$PYTHON" -m svilm_fast.train.pretrain --auto-resume "$@"
