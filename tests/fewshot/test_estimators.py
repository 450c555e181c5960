"""Every classifier keeps scikit-learn's contract."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from crome.fewshot import (
    APEClassifier,
    GDAClassifier,
    LinearProbeClassifier,
    TipAdapterClassifier,
    XMAdapterClassifier,
    ZeroShotClassifier,
)


@parametrize_with_checks(
    [
        ZeroShotClassifier(),
        TipAdapterClassifier(),
        TipAdapterClassifier(epochs=5),
        XMAdapterClassifier(epochs=5),
        GDAClassifier(),
        APEClassifier(),
        XMAdapterClassifier(),
        LinearProbeClassifier(),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)
