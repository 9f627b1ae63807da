"""MTCNN without loops: its steps give what facenet-pytorch, torchvision and PyTorch give, also in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from facenet_pytorch.models.utils.detect_face import nms_numpy
from PIL import Image
from skimage.data import astronaut
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.ops import batched_nms

from preprocessing.mtcnn import Candidates, Detections, Mtcnn, keep_outer, pyramid, suppress
from preprocessing.summed_area import crop, fits_narrow, narrow, resize, summed_area_tables

CPU = torch.device("cpu")
THRESHOLDS = (0.65, 0.75, 0.75)  # the lowest in use: most candidates


def scenes(count: int, height: int, width: int) -> np.ndarray:
    """Return pictures with several faces of different sizes in different places, and much that is not a face."""
    rng = np.random.default_rng(5)
    picture = Image.fromarray(astronaut())
    canvases = []
    for _ in range(count):
        canvas = np.asarray(picture.resize((width, height))).copy()
        for side in rng.integers(60, 180, 3):
            face = np.asarray(picture.crop((150, 20, 350, 220)).resize((side, side)).rotate(rng.integers(-20, 20)))
            top, left = rng.integers(0, height - side), rng.integers(0, width - side)
            canvas[top : top + side, left : left + side] = face
        canvases.append(canvas)
    return np.stack(canvases)


def facenet(image: np.ndarray) -> Detections:
    """Return the faces that facenet-pytorch finds in one image."""
    plain = MTCNN(margin=0, thresholds=list(THRESHOLDS), keep_all=True)
    with torch.no_grad():
        boxes, probabilities, points = plain.detect(Image.fromarray(image), landmarks=True)
    return Detections(*(np.asarray(values, np.float32) for values in (boxes, probabilities, points)))


@pytest.mark.parametrize(("height", "width"), [(270, 480), (421, 301), (200, 201)])
def test_batches_equal_single_images_of_facenet_pytorch(height: int, width: int):
    images = scenes(3, height, width)
    found = Mtcnn(THRESHOLDS, CPU).detect(images)
    assert sum(len(faces.boxes) for faces in found) >= 6
    for image, faces in zip(images, found, strict=True):
        expected = facenet(image)
        assert len(faces.boxes) == len(expected.boxes)
        np.testing.assert_allclose(faces.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose(faces.points, expected.points, atol=1e-3)
        np.testing.assert_allclose(faces.probabilities, expected.probabilities, atol=1e-5)


def test_a_frame_without_candidates():
    """No network has anything to do, neither alone nor beside a frame with faces."""
    detector = Mtcnn(THRESHOLDS, CPU)
    blank = np.zeros((1, 200, 200, 3), np.uint8)
    faces = scenes(1, 200, 200)
    assert [len(found.boxes) for found in detector.detect(blank)] == [0]
    alone, (none, together) = detector.detect(faces)[0], detector.detect(np.concatenate([blank, faces]))
    assert none.boxes.shape == (0, 4)
    assert none.points.shape == (0, 5, 2)
    np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-3)


def test_pyramid_starts_with_the_smallest_face():
    assert pyramid(19, 500) == []
    (level,) = pyramid(20, 20)
    assert level.shape == (13, 13)
    assert level.places == (2, 2)
    assert [level.shape for level in pyramid(100, 200)][:2] == [(61, 121), (43, 86)]


@pytest.mark.parametrize("shape", [(214, 380), (40, 60), (39, 69), (14, 25), (360, 633), (400, 700)])
def test_resize_is_adaptive_average_pooling(shape: tuple[int, int]):
    images = np.random.default_rng(0).integers(0, 256, (2, 357, 633, 3), np.uint8)
    images[0, :200] = 255  # the largest sums
    tables = summed_area_tables(images, CPU)
    expected = adaptive_avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).double(), shape)
    for source in (tables, narrow(tables)) if fits_narrow((357, 633), shape) else (tables,):
        resized = resize(source, shape)[..., :3].permute(0, 3, 1, 2)
        np.testing.assert_allclose(resized.numpy(), expected.numpy(), rtol=1e-6)


def test_narrow_tables_are_for_small_windows():
    assert fits_narrow((540, 960), (325, 577))
    assert fits_narrow((540, 960), (58, 103))
    assert not fits_narrow((540, 960), (41, 73))


def test_crop_is_adaptive_average_pooling_of_each_region():
    """Regions smaller than the result are enlarged."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 120, 150, 3), np.uint8)
    regions = np.array([[0, 0, 150, 120], [3, 5, 4, 6], [100, 20, 131, 51], [149, 0, 150, 120], [10, 10, 34, 34]])
    owners = np.array([0, 1, 2, 2, 1])
    found = crop(summed_area_tables(images, CPU), owners, regions, 24)
    for part, owner, (xmin, ymin, xmax, ymax) in zip(found, owners, regions, strict=True):
        region = torch.from_numpy(images[owner, ymin:ymax, xmin:xmax]).permute(2, 0, 1).double()
        np.testing.assert_allclose(part[..., :3].permute(2, 0, 1).numpy(), adaptive_avg_pool2d(region, 24), rtol=1e-6)


def test_sums_beyond_32_bits_give_exact_means():
    image = np.full((1, 3000, 3000, 3), 255, np.uint8)
    image[0, 2990:, 2990:] = 7
    assert 255 * image[0, ..., 0].size > 2**31
    means = crop(
        summed_area_tables(image, CPU), np.array([0, 0]), np.array([[0, 0, 2990, 2990], [2990, 2990, 3000, 3000]]), 2
    )
    assert means[0, ..., :3].unique().tolist() == [255]
    assert means[1, ..., :3].unique().tolist() == [7]


def test_suppression_equals_torchvision():
    """Also where an overlap equals the threshold, which is allowed."""
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 200, (400, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.integers(20, 90, (400, 1)).astype(np.float32)], axis=1)
    boxes[:2] = [1000, 1000, 1010, 1010], [1000, 1000, 1010, 1007]  # intersection over union 0.7
    probabilities, groups = (rng.permutation(400).astype(np.float32) + 1) / 400, rng.integers(0, 5, 400)
    groups[:2] = 0
    candidates = Candidates(np.zeros(400, np.int64), boxes, probabilities, np.zeros((400, 6)))
    for threshold in (0.5, 0.7):
        tensors = [torch.from_numpy(values) for values in (boxes, probabilities, groups)]
        expected = batched_nms(*tensors, threshold).tolist()
        assert suppress(candidates, threshold, 1, groups).tolist() == expected
        assert len(expected) < 400
    assert {0, 1} <= set(suppress(candidates, 0.7, 1).tolist())


def test_boxes_of_different_frames_do_not_suppress_each_other():
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    candidates = Candidates(np.array([1, 0, 1]), boxes, np.array([0.8, 0.7, 0.9], np.float32), np.zeros((3, 6)))
    assert suppress(candidates, 0.5, 2).tolist() == [1, 2]


def test_keep_outer_equals_facenet_pytorch():
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 100, (60, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(10, 80, (60, 2)).astype(np.float32)], axis=1)
    probabilities = rng.permutation(60).astype(np.float32) / 60
    kept = keep_outer(boxes, probabilities)
    assert kept.tolist() == nms_numpy(boxes, probabilities, 0.7, "Min").tolist()
    assert 1 < len(kept) < 60
