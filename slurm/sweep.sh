#!/usr/bin/env bash
# Methods x noises x seeds, a job of an array for each cell:
#   sbatch slurm/sweep.sh
#   sbatch --array=0-5 slurm/sweep.sh configs/sweeps/demo.yaml [section.key=value ...]
# Submit from the repository's top folder. A cell that is finished ends at once, one that was cut off
# goes on: submit the same line again until slurm/status.sh shows all cells finished.
#
# ---- Yours to edit; options of sbatch win: sbatch --time=8:00:00 slurm/sweep.sh ------------------
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
# The cells of configs/sweeps/default.yaml; %N after it runs at most N of them at a time.
#SBATCH --array=0-47
# Of each cell.
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
# Python, modules or a container, and how often a job is requeued: slurm/settings.sh
# --------------------------------------------------------------------------------------------------
#SBATCH --job-name=mednoise-sweep
#SBATCH --output=slurm-%x-%A_%a.log
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

if [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    echo "error: not a job array; sbatch --array=0-N slurm/sweep.sh FILE" >&2
    exit 2
fi
file=${1:-configs/sweeps/default.yaml}
# The array's last job looks whether the array is as long as the sweep.
if ((SLURM_ARRAY_TASK_ID == SLURM_ARRAY_TASK_MAX)); then
    num_cells=$("${PYTHON[@]}" launcher/sweep.py count "$file" "${@:2}") || num_cells=
    if [[ -n "$num_cells" ]] && ((SLURM_ARRAY_TASK_MAX != num_cells - 1)); then
        echo "note: the array ends at $SLURM_ARRAY_TASK_MAX and $file has $num_cells cells; for all" \
            "of them sbatch --array=0-$((num_cells - 1)) slurm/sweep.sh $file" >&2
    fi
fi
run_ranks "${PYTHON[@]}" launcher/sweep.py run --job "$JOB" \
    "$file" "$SLURM_ARRAY_TASK_ID" "${@:2}"
