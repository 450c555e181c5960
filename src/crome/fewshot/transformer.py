"""Pictures to features as a step of a scikit-learn pipeline."""

from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from crome.fewshot.encoders import BRIDGE, Encoder, load_encoder
from crome.fewshot.features import Features, image_features


class ImageFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Encode pictures with a frozen encoder.

    ``make_pipeline(ImageFeatures(), XMAdapterClassifier(class_features)).fit(paths, labels)``
    learns from files. There is nothing to fit; the encoder is loaded when it is first needed, and
    is not pickled where it is given by name.

    Args:
        encoder: Name of an encoder, as in ``load_encoder``, or a loaded one.
        device: The encoder's device; see ``load_encoder``.
        dtype: In which precision; see ``load_encoder``.
        batch_size: Pictures encoded at a time; by default 8 on a CPU and 64 elsewhere.
        cache_dir: Folder of kept features; by default one in the user's cache folder.

    Attributes:
        encoder_: The loaded encoder.
    """

    def __init__(
        self,
        encoder: str | Path | Encoder = BRIDGE,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.encoder = encoder
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.cache_dir = cache_dir

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the encoder.

        Args:
            X: Not looked at.
            y: Not looked at.
        """
        if isinstance(self.encoder, str | Path):
            self.encoder_ = load_encoder(self.encoder, device=self.device, dtype=self.dtype)
        else:
            self.encoder_ = self.encoder
        return self

    def transform(self, X: Any) -> Features:
        """Features (n, width) of pictures; see ``image_features``.

        Args:
            X: Paths, pictures of Pillow or arrays, (n,), or a table with one column of them.

        Raises:
            InputError: A picture cannot be read, or is none.
        """
        if not hasattr(self, "encoder_"):
            self.fit(None)
        rows = image_features(
            self.encoder_, X, batch_size=self.batch_size, cache_dir=self.cache_dir
        )
        self._n_features_out = rows.shape[1]
        return rows

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        tags.no_validation = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if isinstance(self.encoder, str | Path):
            state.pop("encoder_", None)
        return state
