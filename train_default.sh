#!/usr/bin/env bash
# Retrain the embedded model: train, calibrate on half of fold 0, measure on the other half.
# After an interruption, the same command resumes.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 DATA_ROOT [OUTPUT_DIR] [options of training/pipelines/train_classifier.py]
  DATA_ROOT    has crops/ and folds.csv; the crops are as weights/MODEL_CARD.md describes them
  OUTPUT_DIR   default: weights/retrained/; gets model.pt, metrics.json and the plots
USAGE
}

for option in "$@"; do
    case $option in -h | --help) usage && exit 0 ;; esac
done
case ${1:--} in -*) usage >&2 && exit 2 ;; esac
root=$(cd "$(dirname "$0")" && pwd)
data=$1 output=$root/weights/retrained
shift
case ${1:--} in
    -*) ;;
    *)
        output=$1
        shift
        ;;
esac
shared=() before=
for option in "$@"; do
    case $before in --device | --workers) shared+=("$before" "$option") ;; esac
    case $option in
        --device=* | --workers=*) shared+=("$option") ;;
        --config* | --prefix* | --fold* | --public* | --crops-dir* | --output-dir* | --data-dir* | --preview* | \
            encoder=* | --set=encoder=* | network=* | --set=network=*)
            echo "$0: ${option%%=*} is part of the recipe. Use training/pipelines/train_classifier.py for another one" >&2
            exit 2
            ;;
    esac
    before=$option
done
. "$root/environment.sh"
use_python "$root/requirements.txt"

pipelines=$root/training/pipelines
"$PYTHON" "$pipelines/train_classifier.py" --config "$root/configs/default_lite0.json" --data-dir "$data" \
    --label-smoothing 0.05 --no-hardcore --output-dir "$output" --logdir "$output/logs" "$@"
"$PYTHON" "$pipelines/calibrate.py" --checkpoint "$output/DeepFakeClassifier_tf_efficientnet_lite0_0_last.pt" \
    --data-dir "$data" --output "$output/model.pt" ${shared[@]+"${shared[@]}"}
"$PYTHON" "$pipelines/evaluate.py" --checkpoint "$output/model.pt" --data-dir "$data" --half report \
    --bootstrap 2000 --json "$output/metrics.json" --plots "$output" ${shared[@]+"${shared[@]}"}
