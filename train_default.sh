#!/usr/bin/env bash
# Retrain the embedded model: train it, calibrate it on one half of fold 0 and evaluate it on the other half.
# After an interruption, the same command resumes.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 DATA_ROOT [OUTPUT_DIR] [options of training/pipelines/train_classifier.py]
  DATA_ROOT    folder with crops_square/ and folds_square.csv, which ./preprocess_data.sh DATA_ROOT --crop square makes;
               without crops_square/, such crops are expected in crops/ and their list in folds.csv
  OUTPUT_DIR   folder for model.pt, metrics.json and the plots (default: weights/retrained/)
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
crops=() # where the crops are
if [ -d "$data/crops_square" ]; then crops=(--crops-dir crops_square --folds-csv "$data/folds_square.csv"); fi
shared=() previous= # options that calibrate.py and evaluate.py get as well; the previous argument
for option in "$@"; do
    case $previous in --device | --workers) shared+=("$previous" "$option") ;; esac
    case $option in
        --device=* | --workers=*) shared+=("$option") ;;
        --config* | --prefix* | --fold* | --public* | --crops-dir* | --output-dir* | --data-dir* | --preview* | \
            encoder=* | --set=encoder=* | network=* | --set=network=*)
            echo "${option%%=*}: is set by $0. Use training/pipelines/train_classifier.py for other settings" >&2
            exit 2
            ;;
    esac
    previous=$option
done
. "$root/environment.sh"
use_python "$root/requirements.txt"

pipelines=$root/training/pipelines
"$PYTHON" "$pipelines/train_classifier.py" --config "$root/configs/default_lite0.json" --data-dir "$data" \
    ${crops[@]+"${crops[@]}"} --label-smoothing 0.05 --no-hardcore --output-dir "$output" --logdir "$output/logs" "$@"
"$PYTHON" "$pipelines/calibrate.py" --checkpoint "$output/DeepFakeClassifier_tf_efficientnet_lite0_0_last.pt" \
    --data-dir "$data" ${crops[@]+"${crops[@]}"} --output "$output/model.pt" ${shared[@]+"${shared[@]}"}
"$PYTHON" "$pipelines/evaluate.py" --checkpoint "$output/model.pt" --data-dir "$data" \
    --half report --bootstrap 2000 --json "$output/metrics.json" --plots "$output" \
    ${crops[@]+"${crops[@]}"} ${shared[@]+"${shared[@]}"}
