"""Encode all videos once more, with more loss, as an augmentation that is made once.

    python preprocessing/compress_videos.py --root-dir DATA_ROOT [--seed 777]

writes DATA_ROOT/compressed/, a dataset of the same layout (`--root-dir DATA_ROOT/compressed` preprocesses it):
H.264 with a constant rate factor drawn from 23, 28 and 32 by the seed and the video's id; no sound.
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

from preprocessing import command
from preprocessing.dataset import description_files
from preprocessing.jobs import Job, Outcome
from preprocessing.output import make_folder, whole_file, write_whole
from preprocessing.video import Clip, VideoError, iter_frames

OUTPUT = "compressed"
RATE_FACTORS = (23, 28, 32)
TICK = Fraction(1, 90000)  # seconds
VERSION = 1
SEED = 777


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_run_arguments(parser)
    parser.add_argument("--seed", type=command.not_negative, default=SEED, help="of the rate factors")
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    output = args.root_dir / OUTPUT
    todo = []
    for video in dataset.videos.values():
        path = output / video.path.relative_to(args.root_dir)
        arguments = (video.path, path, rate_factor(video.id, args.seed))
        todo.append(Job(video.id, (video.path,), path, arguments))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "seed": args.seed}
    status = command.run_stage(args, compress, todo, output, settings)
    for path in description_files(args.root_dir):
        copy = output / path.relative_to(args.root_dir)
        make_folder(copy.parent)
        write_whole(copy, path.read_bytes())
    return status


def rate_factor(clip: str, seed: int) -> int:
    """One of RATE_FACTORS; the same for a clip and a seed, whatever other clips there are."""
    return int(np.random.default_rng([seed, zlib.crc32(clip.encode())]).choice(RATE_FACTORS))


def compress(path: Path, output: Path, crf: int) -> Outcome:
    """Write one clip; frames keep their times. A last row or column that makes a side odd is left out."""
    clip = Clip(path)
    make_folder(output.parent)
    frames = 0
    with whole_file(output) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=clip.rate, options={"crf": str(crf), "threads": "1"})
        stream.codec_context.time_base = TICK
        for index, image in iter_frames(clip, range(clip.total)):
            height, width = (side // 2 * 2 for side in image.shape[:2])
            if not frames:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            frame.time_base, frame.pts = TICK, round((clip.times[index] - min(clip.times[0], 0)) / TICK)
            container.mux(stream.encode(frame))
            frames += 1
        if not frames:
            raise VideoError(path, "no frame can be decoded; it is damaged, fetch it again")
        container.mux(stream.encode(None))
    lost = clip.total - frames
    return Outcome("ok", f"{lost} frames cannot be decoded" if lost else "", {"frames": frames, f"crf_{crf}": 1})


if __name__ == "__main__":
    command.main(main, get_args_parser())
