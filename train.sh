#!/usr/bin/env bash
# Train the five networks of the winning solution, one per seed. After an interruption, the same command resumes.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 DATA_ROOT NUM_GPUS [CONFIG] [options of training/pipelines/train_classifier.py]
  DATA_ROOT   dataset prepared by preprocess_data.sh
  NUM_GPUS    number of GPUs (one process per GPU); 0 trains on the CPU
  CONFIG      configuration file (default: configs/b7.json)
USAGE
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
case ${1:--} in -*) usage >&2 && exit 2 ;; esac
[[ ${2:-} =~ ^[0-9]+$ ]] || { usage >&2 && exit 2; }
root=$(cd "$(dirname "$0")" && pwd)
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
            echo "${option%%=*}: is set by $0. Use training/pipelines/train_classifier.py for a single run" >&2
            exit 2
            ;;
    esac
done
. "$root/environment.sh"
use_python "$root/requirements.txt"

launch=("$PYTHON") device=cpu
if [ "$gpus" -gt 0 ]; then
    launch=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$gpus") device=cuda
fi
name=$(basename "$config" .json)
for seed in 111 555 777 888 999; do
    echo "== seed $seed"
    status=0
    "${launch[@]}" "$root/training/pipelines/train_classifier.py" --config "$config" --data-dir "$data" \
        --device "$device" --seed "$seed" --prefix "${name}_${seed}_" --fold 0 --label-smoothing 0.01 \
        --output-dir "$root/weights" --logdir "$root/logs" "$@" || status=$?
    if [ "$status" != 0 ]; then
        echo "stopped at seed $seed (exit status $status); run the same command again to resume" >&2
        exit "$status"
    fi
done
