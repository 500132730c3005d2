"""Anderson acceleration of type II: where a fixed-point iteration v <- F(v) goes next, from the points that it has visited.

Fu, Zhang, Boyd: Anderson Accelerated Douglas-Rachford Splitting, SIAM Journal on Scientific Computing 42(6), 2020, section 3. The next
point is that affine combination of the last images F(v_j) whose residuals g_j = v_j - F(v_j), combined alike, are the shortest.

==================  ==========================================================================================================
in the paper        here
==================  ==========================================================================================================
F(v_j), g_j         ``images``, ``residuals``, the last M + 1 of them, each a row
gamma               ``shares`` of the steps between one image and the next
eta                 ``REGULARISATION``, relative to the steps between the points and those between their residuals
==================  ==========================================================================================================

The safeguard is another one: where a residual is ``LONGER`` than the one before, all that is older is forgotten, and the plain step is
taken. For F that is not expansive plain steps never lengthen it, so this tells that the combination was of points which have nothing in
common any more: other coefficients are zero, or other rows far from their labels.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

REGULARISATION = 1e-8
LONGER = 1.2

Past: TypeAlias = dict[str, Any]
"""``images`` and ``residuals`` (points, size), oldest first, and ``length`` of the last residual."""


def begin(size: int) -> Past:
    """Nothing visited yet, of points with so many numbers."""
    return {"images": np.zeros((0, size)), "residuals": np.zeros((0, size)), "length": np.inf}


def combined(
    past: Past, point: np.ndarray, image: np.ndarray, scale: np.ndarray, length: float, memory: int
) -> tuple[np.ndarray, Past]:
    """The next point after ``point``, whose image is ``image``, and the past with both.

    scale:  what a number of the point is multiplied by before residuals are added, so that the units of its parts do not matter.
    length: of point - image, in the norm in which F is not expansive.
    memory: so many steps are combined at most.
    """
    kept = memory if length <= LONGER * past["length"] else 0
    images = np.concatenate([past["images"], image[None]])[-kept - 1 :]
    residuals = np.concatenate([past["residuals"], (point - image)[None]])[-kept - 1 :]
    now = {"images": images, "residuals": residuals, "length": length}
    turns, steps = np.diff(residuals * scale, axis=0), np.diff((images + residuals) * scale, axis=0)
    weight = float((turns**2).sum() + (steps**2).sum())
    if weight == 0:
        return image, now
    system = turns @ turns.T + REGULARISATION * weight * np.eye(len(turns))
    shares = np.linalg.solve(system, turns @ (residuals[-1] * scale))
    return image - shares @ np.diff(images, axis=0), now
