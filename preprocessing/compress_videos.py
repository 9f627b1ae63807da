"""Re-encode all videos with stronger compression, as an offline augmentation.

    python preprocessing/compress_videos.py --root-dir DATA_ROOT [--seed 777]

writes DATA_ROOT/compressed/, a dataset of the same layout, to preprocess with `--root-dir DATA_ROOT/compressed`: H.264
without sound, at a constant rate factor (CRF) of 23, 28 or 32, which the seed and the video's id determine.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.files import atomic_file, atomic_write, make_folder
from common.outcome import Job, Outcome
from common.text import plural
from preprocessing import stage
from preprocessing.dataset import description_files
from preprocessing.layout import COMPRESSED
from preprocessing.video import MAX_PIXELS, Clip, VideoError, iter_frames
from preprocessing.x264 import reproducible_options

RATE_FACTORS = (23, 28, 32)
TIME_BASE = Fraction(1, 90000)  # seconds
VERSION = 1
SEED = 777


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = stage.make_parser(__doc__)
    parser.add_argument("--seed", type=cli.not_negative, default=SEED, help="random seed of the rate factors")
    return parser


def main(args: argparse.Namespace) -> int:
    """Re-encode all videos. Return the exit status."""
    dataset, output = stage.load_dataset(args), args.root_dir / COMPRESSED
    jobs = []
    for video in dataset.videos.values():
        path = output / video.path.relative_to(args.root_dir)
        crf = rate_factor(video.id, args.seed)
        jobs.append(Job(video.id, (video.path,), path, (video.path, path, crf, args.max_pixels)))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "seed": args.seed}
    status = stage.run_jobs(args, dataset, compress, jobs, output, settings)
    for path in [] if args.shard else description_files(args.root_dir):  # shards leave them to --merge
        copy = output / path.relative_to(args.root_dir)
        make_folder(copy.parent)
        atomic_write(copy, path.read_bytes())
    return status


def rate_factor(clip: str, seed: int) -> int:
    """Sample one of RATE_FACTORS for a clip. It depends on the clip's id and the seed only."""
    return int(np.random.default_rng([seed, zlib.crc32(clip.encode(errors="surrogatepass"))]).choice(RATE_FACTORS))


def compress(path: Path, output: Path, crf: int, max_pixels: int = MAX_PIXELS) -> Outcome:
    """Re-encode one clip. Frames keep their timestamps; an odd last row or column is cut off."""
    clip = Clip(path, max_pixels)
    start = min(clip.times[0], 0)
    frames = 0
    make_folder(output.parent)
    with atomic_file(output) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=clip.rate, options=reproducible_options(crf))
        stream.codec_context.time_base = TIME_BASE
        for source in iter_frames(clip, range(clip.total)):
            height, width = (side // 2 * 2 for side in source.image.shape[:2])
            if not frames:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(source.image[:height, :width]), format="rgb24")
            frame.time_base, frame.pts = TIME_BASE, round((clip.times[source.index] - start) / TIME_BASE)
            container.mux(stream.encode(frame))
            frames += 1
        if not frames:
            raise VideoError(path, "no frame can be decoded. The file is damaged; download it again")
        container.mux(stream.encode(None))
    lost = clip.total - frames
    notes = [f"{plural(lost, 'frame')} cannot be decoded"] if lost else []
    return Outcome("ok", "; ".join(clip.notes + notes), {"frames": frames, f"crf_{crf}": 1})


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
