#!/usr/bin/env bash
# Run a command on this machine and on others that ssh can reach without a password. List this machine first:
#
#   HOSTS="10.0.0.1 10.0.0.2" deploy/ssh/run.sh ray annotate --config configs/annotate/internvl3-8b.yaml
#   HOSTS="10.0.0.1 10.0.0.2" deploy/ssh/run.sh torchrun train --config configs/train/internvl3-38b.yaml
#
# The repository must be at the same path on all machines. SIGTERM or Ctrl-C to this script makes the command save and
# exit. The output of the other machines is written to the folder LOGS (default: runs/ssh) on this machine.
set -euo pipefail

: "${HOSTS:?names or addresses of the machines, this one first}"
launcher=${1:?ray or torchrun}
shift
read -r -a hosts <<<"$HOSTS"
nodes=${#hosts[@]} head=${hosts[0]} logs=${LOGS:-runs/ssh} run_id=$$
mkdir -p "$logs"
source deploy/env.sh

case $launcher in
ray)
  read -r -a options <<<"${RAY_OPTIONS:-}" # extra options of `ray start`, such as RAY_OPTIONS="--num-gpus=4"
  node=(python deploy/ray_node.py --nodes "$nodes" --head "$head" --port "${RAY_PORT:-6379}" "${options[@]}")
  ;;
torchrun)
  node=(env NODES="$nodes" HEAD="$head" RUN_ID="$run_id" PORT="${PORT:-29400}" RANKS="${RANKS:-gpu}")
  ;;
*)
  echo "run.sh: $launcher must be ray or torchrun" >&2
  exit 2
  ;;
esac

# Quote the words, because ssh joins them and the remote shell splits them again. `exec` replaces that shell.
folder=$(printf '%q' "$PWD")
started=()
for rank in $(seq 1 $((nodes - 1))); do
  if [[ $launcher == ray ]]; then
    remote=("${node[@]}" --rank "$rank")
  else
    remote=("${node[@]}" NODE_RANK="$rank" deploy/torchrun_node.sh "$@")
  fi
  line="cd $folder && source deploy/env.sh && exec$(printf ' %q' "${remote[@]}")"
  ssh -o BatchMode=yes "${hosts[rank]}" "bash -c $(printf '%q' "$line")" >"$logs/${hosts[rank]}.log" 2>&1 </dev/null &
  started+=("$!")
done

if [[ $launcher == ray ]]; then
  node+=(--rank 0 -- mmprm "$@")
else
  node+=(NODE_RANK=0 deploy/torchrun_node.sh "$@")
fi
"${node[@]}" &
command=$!
trap 'kill -TERM "$command"' TERM INT

code=0
while kill -0 "$command" 2>/dev/null; do # `wait` returns early on a signal
  code=0
  wait "$command" || code=$?
done
# The other machines exit by themselves once the head is gone.
for process in "${started[@]}"; do
  wait "$process" || echo "run.sh: a machine ended with exit code $?; see $logs" >&2
done
exit "$code"
