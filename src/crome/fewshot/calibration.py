"""How far predicted probabilities are from observed accuracies."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def expected_calibration_error(
    probabilities: NDArray[np.floating], y: ArrayLike, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equally wide bins (arXiv 1706.04599, eq. 3).

    Args:
        probabilities: (n, N).
        y: Column index of the true class, (n,).
        bins: Number of confidence bins.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == np.asarray(y)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, right, bins) - np.bincount(index, confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))
