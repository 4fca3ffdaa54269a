# shellcheck shell=bash
# shellcheck disable=SC2034  # read by the scripts that source this file
# What differs from cluster to cluster, for train.sh, sweep.sh and status.sh.
#
# Account, partition, GPUs, nodes, time and CPUs are the #SBATCH lines at the top of train.sh and
# sweep.sh, since SLURM reads them before any line is run. What is given on the command line of
# sbatch wins over them: sbatch --account=mine --nodes=4 --time=12:00:00 slurm/train.sh CONFIG

# The Python that has mednoise's packages: of the virtual environment that `make test` sets up, ...
PYTHON=("${MEDNOISE_PYTHON:-.venv/bin/python}")
# ... or of a container, with the folders that it has to see:
# PYTHON=(apptainer exec --nv --bind /scratch mednoise.sif python)

# Modules, where the cluster has them:
# module load python/3.11 cuda/12.4

# How often a job that was asked to stop, by its time limit as a rule, is put back into the queue.
MAX_REQUEUES="${MAX_REQUEUES:-20}"

# Where the logs of the ranks go, in a folder for each job; all nodes must see it.
LOGS="${MEDNOISE_LOGS:-runs/slurm}"

# The network between nodes, where the right one is not found by itself:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# Nodes without internet: nothing is downloaded in a job. Name weights by path
# (model.weights=/scratch/weights/resnet50.pth), and put data.root where all nodes see it.
