"""Face detection: the scale rule, coordinates of the full frame, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image
from skimage.data import astronaut

from preprocessing.detector_scale import scale_for
from preprocessing.faces import THRESHOLDS, FaceDetector
from preprocessing.video import Clip, sample_frames


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (176, 144, 2),
        (299, 299, 2),
        (300, 200, 1),
        (200, 300, 1),
        (1000, 562, 1),
        (1001, 562, 0.5),
        (720, 1280, 0.5),
        (1900, 1000, 0.5),
        (1901, 1000, 0.33),
        (1080, 1920, 0.33),
        (3840, 2160, 0.33),
    ],
)
def test_scale_rule(width: int, height: int, scale: float):
    assert scale_for(width, height) == scale


def test_thresholds_of_the_winning_solution():
    assert THRESHOLDS["inference"] == (0.7, 0.8, 0.8)
    assert THRESHOLDS["originals"] == (0.85, 0.95, 0.95)
    assert THRESHOLDS["landmarks"] == (0.65, 0.75, 0.75)


def test_equals_facenet_pytorch(face_video: Path):
    """facenet-pytorch by itself, without the memory format and the conversion to pixels of the full frame."""
    frames = [frame.image for frame in sample_frames(Clip(face_video), 6)]
    plain = MTCNN(margin=0, thresholds=[0.7, 0.8, 0.8], keep_all=True)
    for frame, faces in zip(frames, FaceDetector(scale=0.5).detect(frames), strict=True):
        small = Image.fromarray(frame).resize((240, 180))
        with torch.no_grad():
            boxes, probabilities, points = plain.detect(small, landmarks=True)
        assert len(faces) == len(boxes) == 1
        np.testing.assert_allclose(faces[0].box, boxes[0].astype(float) * 2, atol=1e-2)
        np.testing.assert_allclose(faces[0].points, points[0].astype(float) * 2, atol=1e-2)
        assert faces[0].probability == pytest.approx(probabilities[0], abs=1e-4)
        assert faces[0].box.dtype == faces[0].points.dtype == np.float32


def test_coordinates_are_in_pixels_of_the_full_frame():
    """This holds at every detector scale and for odd frame sizes."""
    image = astronaut()[:301, :421]
    boxes = [FaceDetector(scale=scale).detect([image])[0][0].box for scale in (0.5, 0.77, 1.0, 2.0)]
    for box in boxes:
        np.testing.assert_allclose(box, boxes[2], atol=12)
        assert box[0] < 224 < box[2]  # x of the nose
        assert box[1] < 118 < box[3]


def test_mixed_sizes_and_frames_without_faces():
    face = astronaut()[:300, 100:400]
    blank = np.zeros((300, 300, 3), np.uint8)
    frames = [face, blank, face[:280], face, np.zeros((5, 7, 3), np.uint8)]
    found = FaceDetector().detect(frames)
    assert [len(faces) for faces in found] == [1, 0, 1, 1, 0]
    np.testing.assert_allclose(found[0][0].box, found[3][0].box, atol=1e-3)


def test_all_faces_largest_first():
    face = astronaut()[:256, 100:356]
    small = np.asarray(Image.fromarray(face).resize((128, 128)))
    image = np.zeros((256, 512, 3), np.uint8)
    image[:128, :128], image[:, 256:] = small, face
    boxes = [face.box for face in FaceDetector().detect([image])[0]]
    assert len(boxes) == 2
    assert boxes[0][0] > 256 > boxes[1][2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu(face_video: Path):
    frames = [frame.image for frame in sample_frames(Clip(face_video), 8)]
    for on_gpu, on_cpu in zip(FaceDetector(device="cuda").detect(frames), FaceDetector().detect(frames), strict=True):
        assert len(on_gpu) == len(on_cpu)
        np.testing.assert_allclose(on_gpu[0].box, on_cpu[0].box, atol=1)


def test_detects_on_a_machine_whose_accelerator_is_not_cuda(monkeypatch: pytest.MonkeyPatch):
    """On such machines, `torch.cuda.stream` asks for the current device of an Apple GPU, which has none."""
    monkeypatch.setattr("torch._utils._get_available_device_type", lambda: "mps")
    assert len(FaceDetector().detect([astronaut()[:300, 100:400]])[0]) == 1
