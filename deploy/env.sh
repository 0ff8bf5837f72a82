# Settings of the site, read by the scripts in deploy/slurm and deploy/ssh on every machine before anything starts.
# Ray's actors have the environment of their machine's `ray start`, not that of the command: set variables here.
# shellcheck shell=bash

export PATH="$PWD/.venv/bin:$PATH"

# Models are downloaded once, on shared storage, before the run: mmprm then opens no connection.
# export HF_HOME=/shared/huggingface
# export HF_HUB_OFFLINE=1

# The network between machines: names from `ip -br address` and `ibv_devinfo -l`. Without them NCCL and gloo guess.
# export NCCL_SOCKET_IFNAME=eth0
# export GLOO_SOCKET_IFNAME=eth0
# export NCCL_IB_HCA=mlx5

export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
