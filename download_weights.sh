#!/usr/bin/env bash
# Fetch the seven released checkpoints (1.9 GB) into weights/: ./download_weights.sh [FOLDER]
#
# A broken download is taken up where it broke off, also by running this again. A file gets its name only
# when it loads as the network it should be; those that are there and sound are skipped.
# WEIGHTS_URL is where the files lie, if not at the authors' release.
set -euo pipefail
if [ $# -gt 1 ]; then
    echo "usage: $0 [FOLDER]    (default: weights/)" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-$root/weights}"
folder=$(cd "${1:-$root/weights}" && pwd)
url=${WEIGHTS_URL:-https://github.com/selimsef/dfdc_deepfake_challenge/releases/download/0.0.1}
command -v curl >/dev/null || { echo "curl is needed; install it" >&2; exit 2; }
. "$root/environment.sh"
use_python "$root/requirements.txt"

# Whether files are released checkpoints: prints `FILE: ...` of each that is, and what is wrong with the others.
check() {
    PYTHONPATH=$root "$PYTHON" -m training.tools.checkpoint --released "$@"
}

# Fetch one file to NAME.part, going on from what is there.
fetch() {
    local name=$1 part=$folder/$1.part attempt code status
    for attempt in 1 2 3 4 5; do
        status=0
        code=$(curl --fail --location --progress-bar --write-out '%{http_code}' \
            --connect-timeout 30 --speed-limit 1000 --speed-time 60 \
            --continue-at - --output "$part" "$url/$name") || status=$?
        case $status:$code in
            0:* | *:416) return 0 ;; # 416: nothing is left to fetch
            *:404) echo "$url/$name: no such file; set WEIGHTS_URL to a place that has it" >&2; return 1 ;;
            33:*) rm -f "$part" ;; # this server cannot go on in the middle
        esac
        echo "$name: broken off (attempt $attempt of 5)" >&2
        sleep "${RETRY_SECONDS:-5}"
    done
    echo "$name: not complete; run $0 again to go on" >&2
    return 1
}

present=() failed=()
while read -r name; do
    [ ! -f "$folder/$name" ] || present+=("$folder/$name")
done < "$root/configs/released_checkpoints.txt"
sound=
[ ${#present[@]} -eq 0 ] || sound=$(check "${present[@]}") || true
while read -r name; do
    case $sound in
        *"$folder/$name: "*) echo "$name: there already" && continue ;;
    esac
    echo "$name"
    if ! fetch "$name"; then
        failed+=("$name")
    elif check "$folder/$name.part"; then
        mv "$folder/$name.part" "$folder/$name"
    else
        rm "$folder/$name.part"
        failed+=("$name")
    fi
done < "$root/configs/released_checkpoints.txt"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
