#!/usr/bin/env bash
# Run `mmprm train` or `mmprm sft` on several machines: start this script on each of them, with the same arguments.
#
#   NODES=2 HEAD=10.0.0.1 RUN_ID=1 deploy/torchrun_node.sh train --config configs/train/internvl3-38b.yaml
#
# NODES    number of machines
# HEAD     name or address of one of them, on which the others meet
# RUN_ID   any word that is the same on all machines and differs between runs
# PORT     port on HEAD (29400)
# RANKS    ranks per machine (one per GPU)
# WAIT     seconds to wait for the others before torchrun ends with an error (600)
# LOGS     folder of each rank's output on this machine (/tmp/mmprm-torchrun)
#
# SIGTERM to torchrun on any machine reaches all ranks: they save after the current step and end, within an hour.
set -euo pipefail

: "${NODES:?number of machines}" "${HEAD:?machine on which the others meet}" "${RUN_ID:?a word common to all machines}"
wait_s=${WAIT:-600}

exec torchrun \
  --nnodes "$NODES" \
  --nproc-per-node "${RANKS:-gpu}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$HEAD:${PORT:-29400}" \
  --rdzv-id "$RUN_ID" \
  --rdzv-conf "join_timeout=$wait_s,read_timeout=$wait_s" \
  --max-restarts 0 \
  --shutdown-timeout 3600 \
  --log-dir "${LOGS:-/tmp/mmprm-torchrun}" \
  --tee 3 \
  -m mmprm "$@"
