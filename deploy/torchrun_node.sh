#!/usr/bin/env bash
# Run `mmprm train` or `mmprm sft` on several machines: start this script on each of them, with the same arguments.
#
#   NODE_RANK=0 NODES=2 HEAD=10.0.0.1 RUN_ID=1 deploy/torchrun_node.sh train --config configs/train/internvl3-38b.yaml
#
# NODES      number of machines
# NODE_RANK  number of this machine, from 0 (SLURM and indexed Jobs of Kubernetes set it)
# HEAD       host name or address of machine 0, which hosts the rendezvous
# RUN_ID     any word that is the same on all machines and differs between runs
# PORT       port on HEAD (29400)
# RANKS      ranks per machine (one per GPU)
# WAIT       seconds to wait for the other machines before torchrun fails (600)
# LOGS       folder for the output of this machine's ranks (/tmp/mmprm-torchrun)
#
# SIGTERM to torchrun on any machine reaches all ranks; they save after the current step and exit within an hour.
set -euo pipefail

: "${NODES:?number of machines}" "${HEAD:?machine on which they meet}" "${RUN_ID:?a word common to all machines}"
node_rank=${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:?number of this machine, or NODE_RANK}}}
wait_s=${WAIT:-600}
# torchrun compares HEAD with its own addresses to decide which machine hosts the rendezvous. This fails if a machine's
# own name resolves to 127.0.1.1, as on Debian: each machine would wait for another one to open the port.
is_host=$([[ $node_rank == 0 ]] && echo true || echo false)

exec torchrun \
  --nnodes "$NODES" \
  --nproc-per-node "${RANKS:-gpu}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$HEAD:${PORT:-29400}" \
  --rdzv-id "$RUN_ID" \
  --rdzv-conf "join_timeout=$wait_s,read_timeout=$wait_s,is_host=$is_host" \
  --max-restarts 0 \
  --shutdown-timeout 3600 \
  --log-dir "${LOGS:-/tmp/mmprm-torchrun}" \
  --tee 3 \
  -m mmprm "$@"
