#!/usr/bin/env bash
# Retrain the embedded model: train and fine-tune it, average the weights of both runs, calibrate them on one half of the
# people of fold 0 and evaluate them on the other half.
# After an interruption, the same command resumes.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 DATA_ROOT [OUTPUT_DIR] [options of training/pipelines/train_classifier.py]
  DATA_ROOT    folder with crops_square/, folds_square.csv and landmarks/, which ./preprocess_data.sh DATA_ROOT
               --crop square makes; without crops_square/, such crops are expected in crops/ and their list in folds.csv,
               and landmarks/ is made from them if it does not exist
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
data_options=(--data-dir "$data" ${crops[@]+"${crops[@]}"})
if [ ! -d "$data/landmarks" ]; then
    "$PYTHON" "$pipelines/crop_landmarks.py" "${data_options[@]}"
fi

# train NAME CONFIG [OPTIONS]: train with a configuration of configs/.
network=DeepFakeClassifier_tf_efficientnet_lite0_0
train() {
    local prefix=$1 config=$2
    shift 2
    "$PYTHON" "$pipelines/train_classifier.py" --config "$root/configs/$config" "${data_options[@]}" --prefix "$prefix" \
        --label-smoothing 0.05 --no-hardcore --output-dir "$output" --logdir "$output/logs" "$@"
}
train "" default_lite0.json "$@"
start=() # the weights that fine-tuning starts from, unless it resumes
if [ ! -f "$output/tuned_${network}_last.pt" ]; then start=(--resume "$output/${network}_last.pt" --from-zero); fi
train tuned_ default_lite0_fine_tuning.json ${start[@]+"${start[@]}"} "$@"

"$PYTHON" "$pipelines/average_weights.py" --output "$output/average.pt" \
    --checkpoints "$output/${network}_last.pt" "$output/tuned_${network}_last.pt"

shared+=(--people "$root/weights/people_fold0.csv")
"$PYTHON" "$pipelines/calibrate.py" --checkpoint "$output/average.pt" --flip \
    "${data_options[@]}" --output "$output/model.pt" "${shared[@]}"
"$PYTHON" "$pipelines/evaluate.py" --checkpoint "$output/model.pt" --half report --bootstrap 2000 \
    --json "$output/metrics.json" --plots "$output" "${data_options[@]}" "${shared[@]}"
