#!/usr/bin/env bash
# Download the seven released checkpoints (1.9 GB) and verify them.
#
# After an interruption, the same command resumes. A file gets its final name only after it has been loaded as the
# expected network; valid files are skipped. WEIGHTS_URL overrides the download location.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 [FOLDER]
  FOLDER   existing folder for the checkpoints (default: weights/)
USAGE
}

case ${1:-} in
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
esac
[ $# -le 1 ] || { usage >&2 && exit 2; }
root=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$root/weights}
[ -d "$folder" ] || { echo "$folder: no such folder. Create it first" >&2 && exit 2; }
folder=$(cd "$folder" && pwd)
url=${WEIGHTS_URL:-https://github.com/selimsef/dfdc_deepfake_challenge/releases/download/0.0.1}
command -v curl >/dev/null || { echo "curl: not found. Install it" >&2 && exit 2; }
. "$root/environment.sh"
use_python "$root/requirements.txt"

# Print `FILE: ...` for each file that is a released checkpoint; report what is wrong with the others to stderr.
check() {
    PYTHONPATH=$root "$PYTHON" -m training.tools.checkpoint --released "$@"
}

# Download a file to NAME.part, resuming a partial download.
fetch() {
    local name=$1 part=$folder/$1.part attempt code status
    for attempt in 1 2 3 4 5; do
        status=0
        code=$(curl --fail --location --progress-bar --write-out '%{http_code}' \
            --connect-timeout 30 --speed-limit 1000 --speed-time 60 \
            --continue-at - --output "$part" "$url/$name") || status=$?
        case $status:$code in
            0:* | *:416) return 0 ;; # 416: nothing is left to download
            *:404) echo "$url/$name: no such file. Set WEIGHTS_URL to a location that has it" >&2 && return 1 ;;
            5:* | 6:* | 7:* | 28:000) # proxy not found, host not found, connection refused, no response
                echo "$url: cannot be reached. Check the connection and run $0 again" >&2
                exit 1
                ;;
            33:*) rm -f "$part" ;; # the server cannot resume downloads
        esac
        echo "$name: interrupted (attempt $attempt of 5)" >&2
        sleep "${RETRY_SECONDS:-5}"
    done
    echo "$name: incomplete. Run $0 again to resume" >&2
    return 1
}

present=() failed=() # files in the folder; names that could not be downloaded
while read -r name; do
    [ ! -f "$folder/$name" ] || present+=("$folder/$name")
done < "$root/configs/released_checkpoints.txt"
valid=
[ ${#present[@]} -eq 0 ] || valid=$(check "${present[@]}") || true
while read -r name; do
    case $valid in
        *"$folder/$name: "*) echo "$name: already present" && continue ;;
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
