# Site settings, which the SLURM, ssh and SkyPilot scripts read on every machine before they start anything.
# Ray actors inherit the environment of `ray start` on their machine, not that of the command, so set variables here.
# shellcheck shell=bash

export PATH="$PWD/.venv/bin:$PATH"

# Download models to shared storage once, before the run; mmprm then needs no network connection.
# export HF_HOME=/shared/huggingface
# export HF_HUB_OFFLINE=1

# Network interfaces between machines, as listed by `ip -br address` and `ibv_devinfo -l`. Unset: NCCL and Gloo guess.
# export NCCL_SOCKET_IFNAME=eth0
# export GLOO_SOCKET_IFNAME=eth0
# export NCCL_IB_HCA=mlx5

export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
