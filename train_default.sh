#!/usr/bin/env bash
# Train the embedded default model anew: train, calibrate on half of fold 0, measure on the other half.
# Stopped, the same command takes it up.
set -euo pipefail

usage() {
    cat >&2 <<USAGE
usage: $0 DATA_ROOT [OUTPUT_DIR] [options of training/pipelines/train_classifier.py]
  DATA_ROOT    holds crops/ and folds.csv; crops as weights/MODEL_CARD.md describes them
  OUTPUT_DIR   default: weights/retrained/; gets model.pt, figures.json and the plots
USAGE
    exit 2
}

case ${1:--} in -*) usage ;; esac
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
        -h | --help) usage ;;
        --device=* | --workers=*) shared+=("$option") ;;
        --config* | --prefix* | --fold* | --public* | --crops-dir* | --output-dir* | --data-dir* | --preview* | \
            encoder=* | --set=encoder=* | network=* | --set=network=*)
            echo "$0: ${option%%=*} is the recipe's; use training/pipelines/train_classifier.py for another" >&2
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
    --bootstrap 2000 --json "$output/figures.json" --plots "$output" ${shared[@]+"${shared[@]}"}
