#!/usr/bin/env bash
# Score a folder of videos with the seven released checkpoints (./download_weights.sh fetches them), at the
# detector scale that they were made with:
#     ./predict_submission.sh VIDEO_FOLDER submission.csv [further options of predict_folder.py]
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 VIDEO_FOLDER submission.csv [options of predict_folder.py]" >&2
    exit 2
fi
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
