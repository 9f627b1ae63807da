#!/usr/bin/env bash
# Make four sample clips, one of them manipulated, score them with the embedded model, print the submission and write a report.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 [FOLDER]
  FOLDER   folder for the clips and the results (default: demo/)
USAGE
}

case ${1:-} in
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
esac
[ $# -le 1 ] || { usage >&2 && exit 2; }
root=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-$root/demo}"
folder=$(cd "${1:-$root/demo}" && pwd)
cd "$root"
. ./environment.sh
use_python "$PWD/requirements.txt"
"$PYTHON" -m inference.demo_clips "$folder/videos"
"$PYTHON" predict_folder.py --test-dir "$folder/videos" --output "$folder/submission.csv" \
    --report "$folder/report.html"
echo
echo "$folder/submission.csv (label: probability that the faces are fake; 0.5 if there is no face)"
column -s, -t "$folder/submission.csv" 2>/dev/null || cat "$folder/submission.csv"
echo
echo "astronaut_manipulated.mp4 was chosen because the model recognizes it; it misses most manipulations of this kind."
echo
echo "$folder/report.html (open it in a browser)"
