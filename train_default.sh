#!/usr/bin/env bash
# Retrain the embedded model: train it in two steps, calibrate it on one half of fold 0 and evaluate it on the other.
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
            --resume* | --from-zero | encoder=* | --set=encoder=* | network=* | --set=network=*)
            echo "${option%%=*}: is set by $0. Use training/pipelines/train_classifier.py for other settings" >&2
            exit 2
            ;;
    esac
    previous=$option
done
. "$root/environment.sh"
use_python "$root/requirements.txt"

pipelines=$root/training/pipelines
last= # last checkpoint of the previous step
# Train a step of the training, starting from the previous step: its number, its configuration, further options.
train() {
    local step=step$1 config=$root/configs/$2
    shift 2
    local checkpoint=$output/${step}_DeepFakeClassifier_tf_efficientnet_lite0_0_last.pt
    if [ -n "$last" ] && ! [ -e "$checkpoint" ]; then set -- --resume "$last" --from-zero "$@"; fi
    "$PYTHON" "$pipelines/train_classifier.py" --config "$config" --prefix "${step}_" --data-dir "$data" \
        ${crops[@]+"${crops[@]}"} --label-smoothing 0.05 --no-hardcore --output-dir "$output" \
        --logdir "$output/logs" "$@"
    last=$checkpoint
}

train 1 default_lite0.json "$@"
# Step 2 makes fakes of real crops, for which it needs their landmarks.
"$PYTHON" "$pipelines/crop_landmarks.py" --data-dir "$data" ${crops[@]+"${crops[@]}"} >/dev/null
train 2 default_lite0_2.json "$@"
people=$root/weights/people_fold0.csv
"$PYTHON" "$pipelines/calibrate.py" --checkpoint "$last" --data-dir "$data" --people "$people" --flip --shift 0.04 \
    --output "$output/model.pt" ${crops[@]+"${crops[@]}"} ${shared[@]+"${shared[@]}"}
"$PYTHON" "$pipelines/evaluate.py" --checkpoint "$output/model.pt" --data-dir "$data" --people "$people" \
    --half report --bootstrap 2000 --json "$output/metrics.json" --plots "$output" \
    ${crops[@]+"${crops[@]}"} ${shared[@]+"${shared[@]}"}
