#!/usr/bin/env bash
# Download the seven released checkpoints (1.9 GB), or ImageNet weights to start training from, and verify them.
#
# After an interruption, the same command resumes. A file gets its final name only after it has been loaded as the
# expected network; valid files are skipped. WEIGHTS_URL and IMAGENET_URL override the download locations.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 [FOLDER]
       $0 --imagenet [ENCODER ...]
  FOLDER      existing folder for the released checkpoints (default: weights/)
  --imagenet  download ImageNet weights into PyTorch's cache instead (default: tf_efficientnet_b7_ns and
              tf_efficientnet_b5_ns, 390 MB)
USAGE
}

imagenet='' override=WEIGHTS_URL # the variable that overrides the location
case ${1:-} in
    -h | --help) usage && exit 0 ;;
    --imagenet) imagenet=1 override=IMAGENET_URL && shift ;;
    -*) usage >&2 && exit 2 ;;
esac
for argument in "$@"; do
    case $argument in -*) usage >&2 && exit 2 ;; esac
done
[ -n "$imagenet" ] || [ $# -le 1 ] || { usage >&2 && exit 2; }
root=$(cd "$(dirname "$0")" && pwd)
if [ -z "$imagenet" ]; then
    folder=${1:-$root/weights}
    [ -d "$folder" ] || { echo "$folder: no such folder. Create it first" >&2 && exit 2; }
    folder=$(cd "$folder" && pwd)
fi
command -v curl >/dev/null || { echo "curl: not found. Install it" >&2 && exit 2; }
. "$root/environment.sh"
use_python "$root/requirements.txt"

python_module() {
    PYTHONPATH=$root "$PYTHON" -m "$@"
}

# check: print `FILE: ...` for each file that is valid; report what is wrong with the others to stderr.
urls=()
if [ -n "$imagenet" ]; then
    [ $# -gt 0 ] || set -- tf_efficientnet_b7_ns tf_efficientnet_b5_ns
    published=$(python_module training.tools.imagenet "$@")
    while read -r url; do
        urls+=("${IMAGENET_URL:-${url%/*}}/${url##*/}")
    done < <(sort -u <<< "$published") # variants of an encoder share a file
    folder=$(python_module training.tools.imagenet --folder)
    mkdir -p "$folder"
    check() { python_module training.tools.imagenet --check "$@"; }
else
    while read -r name; do
        urls+=("${WEIGHTS_URL:-https://github.com/selimsef/dfdc_deepfake_challenge/releases/download/0.0.1}/$name")
    done < "$root/configs/released_checkpoints.txt"
    check() { python_module training.tools.checkpoint --released "$@"; }
fi

# Download URL $1 to NAME.part, resuming a partial download.
fetch() {
    local url=$1 name=${1##*/} attempt code status
    for attempt in 1 2 3 4 5; do
        status=0
        code=$(curl --fail --location --progress-bar --write-out '%{http_code}' \
            --connect-timeout 30 --speed-limit 1000 --speed-time 60 \
            --continue-at - --output "$folder/$name.part" "$url") || status=$?
        case $status:$code in
            0:* | *:416) return 0 ;; # 416: nothing is left to download
            *:404) echo "$url: no such file. Set $override to a location that has it" >&2 && return 1 ;;
            5:* | 6:* | 7:* | 28:000) # proxy not found, host not found, connection refused, no response
                echo "${url%/*}: cannot be reached. Check the connection and run the same command again" >&2
                exit 1
                ;;
            33:*) rm -f "$folder/$name.part" ;; # the server cannot resume downloads
        esac
        echo "$name: interrupted (attempt $attempt of 5)" >&2
        sleep "${RETRY_SECONDS:-5}"
    done
    echo "$name: incomplete. Run the same command again to resume" >&2
    return 1
}

present=() failed=() # files in the folder; names that could not be downloaded
for url in "${urls[@]}"; do
    [ ! -f "$folder/${url##*/}" ] || present+=("$folder/${url##*/}")
done
valid=
[ ${#present[@]} -eq 0 ] || valid=$(check "${present[@]}") || true
for url in "${urls[@]}"; do
    name=${url##*/}
    case $valid in
        *"$folder/$name: "*) echo "$name: already present" && continue ;;
    esac
    echo "$name"
    if ! fetch "$url"; then
        failed+=("$name")
    elif check "$folder/$name.part"; then
        mv "$folder/$name.part" "$folder/$name"
    else
        rm "$folder/$name.part"
        failed+=("$name")
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
