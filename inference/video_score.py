"""The result for one video. Loads no library, so that it can be read where no video is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.object_store import File

# Score of a video that is unreadable or has no face.
UNKNOWN = 0.5


@dataclass
class VideoScore:
    """The result for one video.

    Attributes:
        path: the file.
        status: `ok`, `no_face` (no face was found), `unreadable` or `too_large` (it exceeds a limit).
        message: why the status is not `ok`.
        notes: what is unusual about the video and how it was handled.
        score: probability that the video is fake, 0 to 1; UNKNOWN unless the status is `ok`.
        model_scores: the same for each network, by its name.
        frames: number of frames that were analyzed.
        fps: average frame rate; None, like the next four, if the video could not be decoded.
        duration: length in seconds.
        width: width in pixels, after rotation.
        height: height in pixels, after rotation.
        codec: FFmpeg's name of the codec.
        faces: one dict per face, see docs/formats.md.
        people: one dict per person, see docs/formats.md.
        seconds: processing time, summed over the stages.
        sha256: SHA-256 of a file in an object store, which is computed while its copy exists; None for local files.
        bytes: size of a file in an object store.
    """

    path: File
    status: str
    message: str = ""
    notes: list[str] = field(default_factory=list)
    score: float = UNKNOWN
    model_scores: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    fps: float | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None
    faces: list[dict[str, Any]] = field(default_factory=list)
    people: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    sha256: str | None = None
    bytes: int | None = None
