#!/usr/bin/env bash
# Prepare a dataset for training: run the five stages in order, or those that the embedded model needs. After an
# interruption, the same command resumes.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 DATA_ROOT [options]
  DATA_ROOT            folder of the dataset and the outputs
  --detector-scale S   scale of the face detector's input: auto (by frame size) or a number
  --device D           device of the face detector: auto, cpu, cuda or cuda:1
  --workers N          number of worker processes
  --layout L           layout of the dataset's files: auto, dfdc, ffpp or celebdf
  --crop KIND          margin (default): for the winning solution's networks; square: tight squares for the embedded
                       model, which needs no landmarks and masks, so stages 3 and 4 are left out
  --crops-dir DIR      folder of the crops within DATA_ROOT (default: crops, or crops_square for square ones)
  --max-pixels N       largest frame, width x height
  --timeout SECONDS    fail a clip when decoding makes no progress for this long
  --clip-timeout SECONDS   fail a clip that takes longer than this
  --all-originals      list also the originals that no fake names, which DFDC's folds.csv leaves out
  --preview N          write contact sheets of N crops, landmarks and masks to DATA_ROOT/previews/
  --retry-failed       re-run the clips that failed in an earlier run
  --overwrite          start over instead of resuming an earlier run
  --shard I/N          process only the clips of shard I (from 0) of N; auto: of the Slurm array
  --merge              process no clip, but write folds.csv when all shards are finished
USAGE
}

for option in "$@"; do
    case $option in -h | --help) usage && exit 0 ;; esac
done
case ${1:--} in -*) usage >&2 && exit 2 ;; esac
data=$1
shift
root=$(cd "$(dirname "$0")" && pwd)
. "$root/environment.sh"
use_python "$root/requirements.txt"

options=() all_originals=() # options of all stages; those of the last one
stages=(detect_original_faces extract_crops generate_landmarks generate_diffs) last=(generate_folds)
next="./train.sh $data NUM_GPUS" again="the same command"
merge="--merge, which writes folds.csv" previous= # the previous argument
for option in "$@"; do
    case $previous=$option in
        --crop=square* | *=--crop=square*)
            stages=(detect_original_faces extract_crops)
            next="./train_default.sh $data"
            merge="--merge --crop square, which writes folds_square.csv"
            ;;
    esac
    previous=$option
    case $option in
        --all-originals) all_originals=("$option") ;;
        --shard | --shard=*)
            last=() # the list has the crops of all shards
            options+=("$option")
            ;;
        --merge) again="their shards" && options+=("$option") ;;
        *) options+=("$option") ;;
    esac
done
status=0
quiet=()
[ ${#last[@]} != 0 ] || next="when all shards are finished, $0 $data $merge"
for stage in "${stages[@]}" ${last[@]+"${last[@]}"}; do
    echo "== $stage"
    code=0
    [ "$stage" != generate_folds ] || options+=(${all_originals[@]+"${all_originals[@]}"})
    "$PYTHON" "$root/preprocessing/$stage.py" --root-dir "$data" \
        ${options[@]+"${options[@]}"} ${quiet[@]+"${quiet[@]}"} || code=$?
    case $code in
        0) ;;
        3) status=3 ;;
        *) echo "stopped at $stage (exit status $code)" >&2 && exit "$code" ;;
    esac
    quiet=(--no-dataset-report) # the first stage has already listed the dataset's problems
done
if [ $status != 0 ]; then
    echo "finished, but some clips failed (see above). Fix them and run $again with --retry-failed" >&2
fi
echo "next: $next"
exit $status
