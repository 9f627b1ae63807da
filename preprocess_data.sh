#!/usr/bin/env bash
# Prepare a dataset for training: boxes, crops, landmarks, diffs, folds.csv, one stage after the other.
# Stopped, or after mending what failed, the same command takes up where it was.
set -euo pipefail

usage() {
    cat >&2 <<USAGE
usage: $0 DATA_ROOT [options]
  --detector-scale S   scale of the face detector's input: auto (by the frame's size) or a number
  --device D           auto, cpu, cuda, cuda:1
  --workers N          processes
  --layout L           auto, dfdc, ffpp, celebdf
  --preview N          draw N samples of crops, landmarks and diffs into DATA_ROOT/previews/
  --retry-failed       try clips again that failed in an earlier run
  --overwrite          start afresh
USAGE
    exit 2
}

case ${1:--} in -*) usage ;; esac
data=$1
shift
detect=(--root-dir "$data")
crops=("${detect[@]}") landmarks=("${detect[@]}") diffs=("${detect[@]}") folds=("${detect[@]}")
while [ $# -gt 0 ]; do
    option=("$1")
    case $1 in
        --retry-failed | --overwrite) ;;
        --detector-scale | --device | --workers | --layout | --preview)
            [ $# -ge 2 ] || usage
            option+=("$2")
            shift
            ;;
        *) usage ;;
    esac
    shift
    case ${option[0]} in
        --layout) folds+=("${option[@]}") ;;
    esac
    case ${option[0]} in
        --preview) ;;
        *) detect+=("${option[@]}") ;;
    esac
    case ${option[0]} in
        --detector-scale | --device) ;;
        *) crops+=("${option[@]}") diffs+=("${option[@]}") ;;
    esac
    landmarks+=("${option[@]}")
done

root=$(cd "$(dirname "$0")" && pwd)
. "$root/environment.sh"
use_python "$root/requirements.txt"

failed=0
stage() {
    local name=$1 status=0
    shift
    echo "== $name"
    "$PYTHON" "$root/preprocessing/$name.py" "$@" || status=$?
    case $status in
        0) ;;
        3) failed=3 ;;
        *) echo "stopped at $name (exit status $status)" >&2 && exit "$status" ;;
    esac
}

stage detect_original_faces "${detect[@]}"
stage extract_crops "${crops[@]}"
stage generate_landmarks "${landmarks[@]}"
stage generate_diffs "${diffs[@]}"
stage generate_folds "${folds[@]}" --out "$data/folds.csv"
if [ $failed != 0 ]; then
    echo "done, but some clips failed (above); mend them and run the same command with --retry-failed" >&2
fi
exit $failed
