#!/usr/bin/env bash
# One rank, as an srun task: rank.sh FOLDER COMMAND...
# Leaves a file in the folder where the rank was stopped by a signal, or failed.
set -euo pipefail
folder=$1
shift

# A lone process needs no process group.
if ((SLURM_NTASKS > 1)); then
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    # Where each task is shown its own GPU alone (--gpus-per-task), that is GPU 0 to it.
    if [[ -n "${CUDA_VISIBLE_DEVICES:-}" && $CUDA_VISIBLE_DEVICES != *,* ]]; then
        LOCAL_RANK=0
    fi
fi

# The signals of a job reach this shell as well, which has to outlive the command.
trap : USR1 TERM
code=0
"$@" || code=$?

case $code in
    0) ;;
    75)
        # Stopped with a checkpoint. Not an error to srun, which would end the ranks that are about
        # to say the same, and return that it killed them.
        touch "$folder/stopped"
        code=0
        ;;
    138) touch "$folder/stopped" ;; # killed by USR1 (128 + 10), before it was listening
    # By TERM: likewise, or srun has ended it since another rank has failed.
    143) touch "$folder/terminated" ;;
    *) touch "$folder/failed" ;;
esac
exit "$code"
