"""Top-1 of a linear classifier fitted in closed form on unmerged features, merged against unmerged.

N training images, M test images, C channels.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mame_lab.measure.paired import PairedHits

PENALTIES = np.logspace(-2, 5, 8)


class LinearHead:
    """Ridge regression on standardised features to one output a class, its penalty chosen by leave-one-out.

    Args:
        feature_NC, label_N: of training images, unmerged.
        feature_MC, label_M: of test images, unmerged.
    """

    def __init__(self, feature_NC: Tensor, label_N: Tensor, feature_MC: Tensor, label_M: Tensor) -> None:
        self.classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=PENALTIES))
        self.classifier.fit(_numbers(feature_NC), label_N.numpy())
        self.label_M = label_M.numpy()
        self.unmerged_hit_M = self._hits(feature_MC)

    def __call__(self, feature_MC: Tensor) -> PairedHits:
        """What merging changes, from the merged features of the test images."""
        return PairedHits.count(self._hits(feature_MC), self.unmerged_hit_M)

    def _hits(self, feature_MC: Tensor) -> np.ndarray:
        return self.classifier.predict(_numbers(feature_MC)) == self.label_M


def _numbers(feature_NC: Tensor) -> np.ndarray:
    return feature_NC.cpu().double().numpy()
