#!/bin/bash
# A study on a Ray cluster of its own inside one Slurm job:
#
#   sbatch --export=ALL,STUDY=$PWD/study.yaml,RUNS=/shared/runs,NAME=demo docs/cluster/slurm.sh
#
# RUNS is a folder that all nodes share, and the study sets no other study.storage. Submitted again with the
# same NAME, it goes on where it stopped. Set the lines below, and "Environment", to your site's.
#SBATCH --job-name=tune-ssl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append

set -euo pipefail
: "${STUDY:?the YAML file of the study}" "${RUNS:?a folder that all nodes share}" "${NAME:?the name of the run}"

# Environment: what gives every node the same Python with tune-ssl in it.
# source /shared/venv/bin/activate

# Ports of this job's own in place of Ray's fixed ones, so that several Ray clusters can share a node; the
# others are free ones of each node.
base=$((10000 + SLURM_JOB_ID % 200 * 100)) # below the range from which Linux takes free ports
temporary=/tmp/ray-$SLURM_JOB_ID # short, and on each node's own disk
common=(
  --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
  --min-worker-port=0 --max-worker-port=0 --disable-usage-stats
)

# A token that only this job's processes can read: Ray takes orders from whoever has it.
mkdir -p "$RUNS"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$RUNS/.ray-token-$SLURM_JOB_ID"
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

# Whatever happens, end what was started here and nothing else; `ray stop` would end every Ray of a node.
started=()
driver=
# shellcheck disable=SC2329  # the traps call it
finish() {
  trap - EXIT TERM INT
  if [[ -n $driver ]] && kill -INT "$driver" 2>/dev/null; then wait "$driver" || true; fi
  if ((${#started[@]})); then
    kill "${started[@]}" 2>/dev/null || true
    wait "${started[@]}" 2>/dev/null || true
  fi
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT
trap 'finish; exit 130' TERM INT

on() { # on NODE COMMAND...: become srun of a command on one node; only for subshells
  local node=$1
  shift
  exec srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --overlap \
    --nodelist="$node" "$@"
}
# shellcheck disable=SC2016  # expanded on the node, not here
own_ip='$(hostname --ip-address | cut -d" " -f1)'

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=$(on "${nodes[0]}" hostname --ip-address | cut -d' ' -f1)
on "${nodes[0]}" bash -c "exec ray start --head --block --port=$base --node-ip-address=$own_ip \
  --include-dashboard=false --temp-dir=$temporary --ray-client-server-port=$((base + 1)) \
  --dashboard-agent-listen-port=$((base + 2)) ${common[*]}" &
started+=($!)
for _ in {1..120}; do
  if (exec 3<>"/dev/tcp/$ip/$base") 2>/dev/null; then break; fi
  kill -0 "${started[0]}" # ends the job when the head did not come up
  sleep 1
done
for number in "${!nodes[@]}"; do
  if ((number == 0)); then continue; fi
  on "${nodes[$number]}" bash -c "exec ray start --block --address=$ip:$base --node-ip-address=$own_ip \
    --dashboard-agent-listen-port=$((base + 2 + number % 98)) ${common[*]}" &
  started+=($!)
done
python - "$ip:$base" "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
for _ in range(180):
    if sum(node["Alive"] for node in ray.nodes()) == int(sys.argv[2]):
        sys.exit()
    time.sleep(1)
sys.exit("not all nodes joined the Ray cluster within 3 minutes")
PYTHON

if [[ -e $RUNS/$NAME/study.yaml ]]; then
  what=(--resume "$NAME")
else
  what=("$STUDY" --name "$NAME")
fi
tune-ssl search "${what[@]}" --runs "$RUNS" --address "$ip:$base" &
driver=$!
code=0
wait "$driver" || code=$?
driver=
exit "$code"
