"""Which face of a crop gets the landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessing.boxes import overlap
from preprocessing.crops import SquareCrop
from preprocessing.faces import Face
from preprocessing.generate_landmarks import face_points


def face(xmin: float, ymin: float, xmax: float, ymax: float, value: float) -> Face:
    return Face(np.array([xmin, ymin, xmax, ymax]), 0.9, np.full((5, 2), value))


def test_landmarks_are_those_of_the_cropped_face():
    """The crop of this box starts at (80, 60); a larger face extends into it."""
    box = np.array([100.0, 90, 160, 180])
    larger, cropped, elsewhere = face(60, 0, 100, 150, 1), face(22, 28, 80, 118, 2), face(0, 0, 20, 30, 3)
    np.testing.assert_array_equal(face_points([larger, cropped, elsewhere], box), 2)
    assert face_points([larger, elsewhere], box) is None
    assert face_points([], box) is None


def test_crop_at_the_edge_of_the_frame_starts_at_0():
    larger, cropped = face(60, 0, 100, 150, 1), face(5, 3, 65, 93, 2)
    np.testing.assert_array_equal(face_points([larger, cropped], np.array([5.0, 3, 65, 93])), 2)


def test_square_crops_start_elsewhere():
    """This square starts at (100, 105)."""
    box, rule = np.array([100.0, 90, 160, 180]), SquareCrop(side=60 / 90, center=0.5)
    margin, square = face(20, 30, 80, 120, 1), face(0, -15, 60, 75, 2)
    np.testing.assert_array_equal(face_points([margin, square], box, rule), 2)
    np.testing.assert_array_equal(face_points([margin, square], box), 1)


def test_overlap():
    assert overlap(np.array([0, 0, 10, 10]), np.array([5, 0, 15, 10])) == pytest.approx(1 / 3)
    assert overlap(np.array([0, 0, 10, 10]), np.array([10, 0, 15, 10])) == 0
