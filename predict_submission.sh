#!/usr/bin/env bash
# Score a folder of videos with the seven released checkpoints at the detector scale they were made with.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 VIDEO_FOLDER submission.csv [options of predict_folder.py]
  Scores a folder of videos with the seven released checkpoints; ./download_weights.sh downloads them.
USAGE
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
[ $# -ge 2 ] || { usage >&2 && exit 2; }
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
