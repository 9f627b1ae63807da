#!/usr/bin/env bash
# Train the five networks of the winning solution, one per seed. After an interruption, the same command resumes.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 DATA_ROOT NUM_GPUS [CONFIG] [options of training/pipelines/train_classifier.py]
  DATA_ROOT   dataset prepared by preprocess_data.sh
  NUM_GPUS    number of GPUs of this machine (one process per GPU); 0 trains on the CPU
  CONFIG      configuration file (default: configs/b7.json)
environment variables for several nodes, each of which runs the same command:
  NNODES         number of nodes (default: 1)
  NODE_RANK      number of this node, from 0 to NNODES - 1
  MASTER_ADDR    host name or address of node 0
  MASTER_PORT    free port of node 0 (default: 29500)
  MAX_RESTARTS   restarts after a process has failed (default: 3 on several nodes, otherwise 0)
USAGE
}

fail() {
    echo "$1" >&2
    exit 2
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
case ${1:--} in -*) usage >&2 && exit 2 ;; esac
[[ ${2:-} =~ ^[0-9]+$ ]] || { usage >&2 && exit 2; }
root=$(cd "$(dirname "$0")" && pwd)
arguments=("$@")
data=$1 gpus=$2 config=$root/configs/b7.json
shift 2
case ${1:--} in
    -*) ;;
    *)
        config=$1
        shift
        ;;
esac
for option in "$@"; do
    case $option in
        --seed* | --prefix* | --config*)
            fail "${option%%=*}: is set by $0. Use training/pipelines/train_classifier.py for a single run"
            ;;
    esac
done

count='^(0|[1-9][0-9]{0,8})$'
nodes=${NNODES:-1} node=${NODE_RANK:-} port=${MASTER_PORT:-29500}
[[ $nodes =~ $count && $nodes != 0 ]] || fail "NNODES=$nodes: is not a positive integer. Set it to the number of nodes"
restarts=${MAX_RESTARTS:-$((nodes > 1 ? 3 : 0))}
[[ $restarts =~ $count ]] || fail "MAX_RESTARTS=$restarts: is not an integer from 0. Set it to the number of restarts"
rendezvous=(--standalone)
if [ "$nodes" -gt 1 ]; then
    [[ $node =~ $count && $node -lt $nodes ]] ||
        fail "NODE_RANK=$node: is not an integer from 0 to $((nodes - 1)). Give each node its own"
    [ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR: is not set. Set it to the host name of node 0"
    [[ $port =~ $count && $port != 0 && $port -lt 65536 ]] ||
        fail "MASTER_PORT=$port: is not a port. Set it to a free port of node 0, from 1 to 65535"
    # Every node waits up to 600 s for the others, which is also the default of join_timeout.
    rendezvous=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$port" --rdzv-id train.sh
        --rdzv-conf "is_host=$((node == 0)),read_timeout=600")
fi
. "$root/environment.sh"
use_python "$root/requirements.txt"

device=cuda
[ "$gpus" -gt 0 ] || device=cpu
if [ -z "${TORCHELASTIC_RUN_ID:-}" ] && [ "$((gpus > 0 || nodes > 1))" = 1 ]; then
    # torchrun runs this script in each process. One torchrun for all seeds: a node that starts again joins the others,
    # whichever seed they are at. TCP stores are not shared, because torchrun would use that of a lost node.
    export PYTHON TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    "$PYTHON" "$root/training/tools/torchrun.py" "${rendezvous[@]}" --nproc-per-node "$((gpus > 0 ? gpus : 1))" \
        --max-restarts "$restarts" --no-python "$root/train.sh" "${arguments[@]}" || {
        status=$?
        echo "run the same command again to resume" >&2
        exit "$status"
    }
    exit
fi

name=$(basename "$config" .json)
for seed in 111 555 777 888 999; do
    [ "${RANK:-0}" != 0 ] || echo "== seed $seed"
    export MASTER_PORT=$port # of its own, because the processes may reach the next seed at different times
    port=$((port + 1))
    status=0
    "$PYTHON" "$root/training/pipelines/train_classifier.py" --config "$config" --data-dir "$data" \
        --device "$device" --seed "$seed" --prefix "${name}_${seed}_" --fold 0 --label-smoothing 0.01 \
        --output-dir "$root/weights" --logdir "$root/logs" "$@" || status=$?
    if [ "$status" != 0 ]; then
        echo "stopped at seed $seed (exit status $status)" >&2
        [ -n "${TORCHELASTIC_RUN_ID:-}" ] || echo "run the same command again to resume" >&2
        exit "$status"
    fi
done
