#!/usr/bin/env bash
# Make sample clips, score them with the embedded model and show the table: ./demo.sh [FOLDER]
set -euo pipefail
if [ $# -gt 1 ]; then
    echo "usage: $0 [FOLDER]    (default: demo/)" >&2
    exit 2
fi
mkdir -p "${1:-$(dirname "$0")/demo}"
folder=$(cd "${1:-$(dirname "$0")/demo}" && pwd)
cd "$(dirname "$0")"
. ./environment.sh
use_python "$PWD/requirements.txt"
"$PYTHON" -m tests.clips "$folder/videos"
"$PYTHON" predict_folder.py --test-dir "$folder/videos" --output "$folder/submission.csv"
echo
echo "$folder/submission.csv (label: probability that the faces are fake; 0.5 where there is none)"
column -s, -t "$folder/submission.csv" 2>/dev/null || cat "$folder/submission.csv"
