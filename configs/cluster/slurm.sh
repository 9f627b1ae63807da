#!/usr/bin/env bash
# Run a command for the shards of its clips as a Slurm job array, then merge them. From the root of the repository:
#     array=$(sbatch --parsable --array=0-15 configs/cluster/slurm.sh ./preprocess_data.sh DATA_ROOT)
#     sbatch --dependency="afterany:$array" configs/cluster/slurm.sh ./preprocess_data.sh DATA_ROOT
# and likewise for other commands with --shard:
#     configs/cluster/slurm.sh .venv/bin/python predict_folder.py --test-dir VIDEOS --output submission.csv
#SBATCH --job-name=deepfakes
#SBATCH --output=logs/slurm-%A-%a.out
#SBATCH --open-mode=append
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

part=(--merge)
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    part=(--shard auto)
fi
exec "$@" --workers "$SLURM_CPUS_PER_TASK" "${part[@]}"
