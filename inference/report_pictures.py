"""The pictures of a report: the most decisive faces of a video and one frame with the boxes of all faces.

The frames are decoded again, in worker processes as for the prediction, so that a report needs no memory of the run.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tqdm import tqdm

from common.errors import ClipError, UserError
from common.files import file_facts
from common.object_store import File, local_copy
from inference.colors import score_color
from inference.decoder import Decoder, SampledFrame, StartOver, default_workers
from inference.people import counted, mean_score
from preprocessing.crops import MarginCrop, cut, resize_longer_side
from preprocessing.limits import Limits

if TYPE_CHECKING:
    from inference.explain import Explainer

# Number of decisive faces per video; side of their pictures, and width of the frame's, in pixels.
FACES, FACE_SIZE, FRAME_SIZE = 8, 96, 480
JPEG_QUALITY = 80
# Characters of all pictures of a report.
MAX_PICTURES = 20 * 2**20

# Heat maps are made one at a time: they need hooks in the networks, which the threads share.
_explaining = Lock()

log = logging.getLogger(__name__)
Record = Mapping[str, Any]


@dataclass
class FacePicture:
    """A decisive face.

    Attributes:
        face: its entry in the record.
        picture: data URI.
        heat: data URI of the heat map; None without an explainer.
    """

    face: Record
    picture: str
    heat: str | None = None


@dataclass
class VideoPictures:
    """The pictures of a video.

    Attributes:
        faces: the decisive faces by time.
        frame: data URI of a frame with the boxes of all faces.
        time: time of this frame in seconds.
        missing: why there are no pictures.
    """

    faces: list[FacePicture] = field(default_factory=list)
    frame: str = ""
    time: float = 0.0
    missing: str = ""

    @property
    def size(self) -> int:
        """Number of characters of the data URIs."""
        return len(self.frame) + sum(len(face.picture) + len(face.heat or "") for face in self.faces)


def make_pictures(
    records: Sequence[Record],
    videos: Mapping[str, File],
    frames: int,
    limits: Limits | None = None,
    explainer: Explainer | None = None,
    max_size: int = MAX_PICTURES,
) -> dict[str, VideoPictures]:
    """Return the pictures of the videos that have faces, by file name.

    Videos with higher scores come first: when `max_size` characters are reached, the rest gets no pictures.

    Args:
        records: records of --details.
        videos: file by file name.
        frames: number of frames that were sampled per video.
        limits: what decoding a video may take; None for the default limits.
        explainer: makes heat maps; None for none.
    """
    with_faces = sorted((record for record in records if record["faces"]), key=lambda record: -record["score"])
    pictures: dict[str, VideoPictures] = {}
    size = 0
    made = _make_all(with_faces, videos, frames, limits or Limits(), explainer)
    for record in tqdm(with_faces, desc="report", unit="video", disable=None):
        if size < min(max_size, MAX_PICTURES):
            found = next(made)
            size += found.size
        else:
            found = VideoPictures(missing="No pictures, to limit the size of this page.")
        pictures[record["filename"]] = found
    made.close()
    return pictures


def _make_all(
    records: Sequence[Record],
    videos: Mapping[str, File],
    frames: int,
    limits: Limits,
    explainer: Explainer | None,
) -> Generator[VideoPictures]:
    """Yield the pictures of each record, made with several decoders."""
    decoders = [Decoder(limits) for _ in range(min(default_workers(), len(records)))]
    try:
        with ThreadPoolExecutor(max(1, len(decoders))) as pool:
            for start in range(0, len(records), max(1, len(decoders))):
                group = records[start : start + len(decoders)]
                jobs = [
                    pool.submit(_make, record, videos.get(record["filename"]), frames, decoder, explainer)
                    for record, decoder in zip(group, decoders, strict=False)
                ]
                yield from (job.result() for job in jobs)
    finally:
        for decoder in decoders:
            decoder.kill()


def _make(
    record: Record, video: File | None, frames: int, decoder: Decoder, explainer: Explainer | None
) -> VideoPictures:
    missing = VideoPictures(missing="No pictures: the file is missing or has changed since it was scored.")
    if video is None or record["sha256"] is None:
        return missing
    try:
        with local_copy(video) as path:
            if file_facts(path)[1] != record["sha256"]:
                return missing
            pictures = _decode(record, path, frames, decoder, explainer)
    except ClipError as error:
        log.warning("%s: no pictures in the report (%s)", record["filename"], error)
        pictures = VideoPictures()
    except UserError:  # the decoder or the device of the explainer fails, and would fail for the other videos
        raise
    except Exception:  # an unexpected error must not cost the page
        log.exception("%s: no pictures in the report", record["filename"])
        decoder.kill()  # what it has not sent yet would be taken for the next video
        pictures = VideoPictures()
    return pictures if pictures.faces else VideoPictures(missing="No pictures: the video cannot be decoded again.")


def _decode(record: Record, path: Path, frames: int, decoder: Decoder, explainer: Explainer | None) -> VideoPictures:
    """Return the pictures of a video, without faces if none of their frames can be decoded. Raises VideoError."""
    chosen = decisive_faces(record)
    overview = max(chosen, key=_decisiveness)["frame"]
    decoder.open(path, frames)
    while True:
        pictures = VideoPictures()
        try:
            for frame in decoder.frames():  # one at a time, because they may be large
                for face in chosen:
                    if face["frame"] == frame.index:
                        pictures.faces += _picture(face, frame.image, explainer)
                if frame.index == overview:
                    pictures.frame, pictures.time = _overview(record, frame), frame.time
                del frame
            return pictures
        except StartOver:
            continue


def _picture(face: Record, image: np.ndarray, explainer: Explainer | None) -> list[FacePicture]:
    """Return the picture of a face; [] if it lies outside of the frame."""
    box = face["box"]
    crop = cut(image, explainer.window(box) if explainer else MarginCrop().window(np.asarray(box)))
    if crop is None:
        return []
    heat = None
    if explainer:
        with _explaining:
            heat = _thumbnail(explainer.overlay(crop, explainer.heat(image, box)))
    return [FacePicture(face, _thumbnail(crop), heat)]


def decisive_faces(record: Record, count: int = FACES) -> list[Record]:
    """Return the faces that decided a video's score most, by time.

    Each of the most suspicious people gets the same number of faces. A person's faces are divided into as many parts
    by time, and from each part comes the face whose score is farthest from 0.5.
    """
    people = sorted(counted(record["people"]), key=lambda person: -person["score"])[:count]
    each = max(1, count // max(1, len(people)))
    chosen: list[Record] = []
    for person in people:
        own = [face for face in record["faces"] if face["person"] == person["person"]]
        parts = np.array_split(np.arange(len(own)), min(each, len(own)))
        chosen += [max((own[index] for index in part), key=_decisiveness) for part in parts]
    return sorted(chosen, key=lambda face: (face["time"], face["person"]))


def _decisiveness(face: Record) -> float:
    return abs(mean_score(face) - 0.5)


def _overview(record: Record, frame: SampledFrame) -> str:
    """Return the picture of a frame with the box and the number of each person."""
    scale = min(1.0, FRAME_SIZE / frame.image.shape[1])
    image = cv2.resize(frame.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for face in record["faces"]:
        if face["frame"] != frame.index:
            continue
        left, top, right, bottom = (round(side * scale) for side in face["box"])
        color = score_color(mean_score(face))
        for width, shade in ((4, (0, 0, 0)), (2, color)):
            cv2.rectangle(image, (left, top), (right, bottom), shade, width)
        for width, shade in ((3, (0, 0, 0)), (1, (255, 255, 255))):
            position = (max(left, 2), max(top - 5, 12))
            text = f"#{face['person']}"
            cv2.putText(image, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, shade, width, cv2.LINE_AA)
    return _data_uri(image)


def _thumbnail(crop: np.ndarray) -> str:
    return _data_uri(resize_longer_side(np.ascontiguousarray(crop), FACE_SIZE))


def _data_uri(image: np.ndarray) -> str:
    """Return an RGB image as a JPEG data URI."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
