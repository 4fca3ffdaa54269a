#!/usr/bin/env bash
# Train on one node or many: sbatch slurm/train.sh CONFIG [section.key=value ...]
# Submit from the repository's top folder. A job that nears its time limit, or gets USR1 or TERM
# (scancel --signal=TERM JOB), saves, queues again and goes on where it was; so does the same line
# when it is submitted again.
#
# ---- Yours to edit; options of sbatch win: sbatch --nodes=4 slurm/train.sh CONFIG ----------------
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --nodes=1
# A rank for each GPU: the same number twice, and no --gpus-per-task, for each rank picks its own.
# Without GPUs: sbatch --gpus-per-node=0 --ntasks-per-node=1 slurm/train.sh CONFIG
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Python, modules or a container, and how often a job is requeued: slurm/settings.sh
# --------------------------------------------------------------------------------------------------
#SBATCH --job-name=mednoise
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes for a step and a checkpoint. Not B:USR1, which would reach this shell alone.
#SBATCH --signal=USR1@120
set -euo pipefail

if [[ ! -f slurm/ranks.sh ]]; then
    echo "error: $PWD is not the repository's top folder; submit from there" >&2
    exit 2
fi
# shellcheck source=slurm/ranks.sh
source slurm/ranks.sh
enter_repository

if (($# == 0)); then
    echo "error: no configuration; sbatch slurm/train.sh CONFIG [section.key=value ...]" >&2
    exit 2
fi
run_ranks "${PYTHON[@]}" launcher/run.py --config "$1" --resume auto "${@:2}"
