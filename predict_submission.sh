#!/usr/bin/env bash
# Score a folder of videos with the seven released checkpoints, at the detector scale that they were trained with.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 VIDEO_FOLDER SUBMISSION_CSV [options of predict_folder.py]
  VIDEO_FOLDER     folder of videos
  SUBMISSION_CSV   CSV file to write

Uses the seven released checkpoints, which ./download_weights.sh downloads.
USAGE
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
case ${1:--} in -*) usage >&2 && exit 2 ;; esac
case ${2:--} in -*) usage >&2 && exit 2 ;; esac
root=$(cd "$(dirname "$0")" && pwd)
. "$root/environment.sh"
use_python "$root/requirements.txt"
models=()
while read -r name; do
    models+=("$name")
done < "$root/configs/released_checkpoints.txt"
videos=$1 output=$2
shift 2
exec "$PYTHON" "$root/predict_folder.py" --test-dir "$videos" --output "$output" --models "${models[@]}" \
    --detector-scale 0.5 "$@"
