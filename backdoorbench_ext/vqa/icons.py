"""A set of icons to ask about, drawn here: one to four of one shape and one color, at random
places of a light ground; asked for color, shape or number.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from .triples import Triples

COLORS = {
    "red": (210, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 210),
    "yellow": (225, 195, 30),
    "purple": (150, 60, 170),
}
NUMBERS = ("one", "two", "three", "four")
QUESTIONS = {
    "color": "what color are the icons ?",
    "shape": "what shape are the icons ?",
    "number": "how many icons are there ?",
}
# subpixels, so that edges are smooth and small icons differ
SHIFT = 4


def _polygon(corners: int, turned: float, dent: float = 1.0) -> Any:
    """Draws a polygon; with a ``dent`` below 1 every other corner lies nearer: a star."""

    def draw(image: Any, center: Any, radius: float, color: Any) -> None:
        angles = turned + 2 * np.pi * np.arange(corners) / corners
        radii = radius * np.where(np.arange(corners) % 2, dent, 1.0)
        points = center + radii[:, None] * np.stack((np.sin(angles), -np.cos(angles)), 1)
        fixed = np.round(points * 2**SHIFT).astype(np.int32)
        cv2.fillPoly(image, [fixed], color, cv2.LINE_AA, SHIFT)

    return draw


def _circle(image: Any, center: Any, radius: float, color: Any) -> None:
    place = tuple(int(c) for c in np.round(center * 2**SHIFT))
    cv2.circle(image, place, round(radius * 2**SHIFT), color, -1, cv2.LINE_AA, SHIFT)


SHAPES: dict[str, Any] = {
    "circle": _circle,
    "square": _polygon(4, np.pi / 4),
    "triangle": _polygon(3, 0.0),
    "star": _polygon(10, 0.0, 0.45),
}


def draw(n: int, *, seed: int = 0, side: int = 48) -> Triples:
    """``n`` images of ``side`` pixels, uint8, with a question and its answer each."""
    rng = np.random.default_rng(seed)
    images = np.empty((n, side, side, 3), np.uint8)
    questions = []
    answers = []
    for image in images:
        color = str(rng.choice(list(COLORS)))
        shape = str(rng.choice(list(SHAPES)))
        count = int(rng.integers(1, len(NUMBERS) + 1))
        image[:] = rng.integers(215, 256, 3)
        # of nine fields, so that icons do not touch
        for field in rng.choice(9, count, replace=False):
            middle = (np.array([field % 3, field // 3]) + 0.5) * side / 3
            center = middle + rng.uniform(-0.03, 0.03, 2) * side
            SHAPES[shape](image, center, side * rng.uniform(0.09, 0.13), COLORS[color])
        asked = str(rng.choice(list(QUESTIONS)))
        questions.append(QUESTIONS[asked])
        answers.append({"color": color, "shape": shape, "number": NUMBERS[count - 1]}[asked])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Triples(x, tuple(questions), tuple(answers))
