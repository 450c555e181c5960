"""Tip-Adapter and Tip-Adapter-F (arXiv 2207.09519): an image cache beside the zero-shot logits."""

from dataclasses import dataclass

from crome.fewshot.methods.cache_classifier import CacheClassifier


@dataclass(repr=False, eq=False, kw_only=True)
class TipAdapterClassifier(CacheClassifier):
    """Tip-Adapter, and with ``epochs`` Tip-Adapter-F (arXiv 2207.09519).

    Args:
        class_features: Text features, (n_classes, width), rows in sorted label order; None for an
            image cache alone.
        classes: Label of each row of ``class_features``, when some have no images or the order
            differs.
        logit_scale: Factor on the image-text cosine; 100 is CLIP's.
        epochs: Training epochs of the keys; 0 is the training-free Tip-Adapter, 20 the published
            Tip-Adapter-F.
        batch_size: Images per training step.
        learning_rate: AdamW's, with cosine decay.
        alphas: Weights of the cache to try; by default a range relative to the logits' spread.
        betas: Sharpnesses to try.
        selection: ``log_loss`` or, as published, ``accuracy`` on the validation images.
        random_state: Seed of folds and training order.
        device: The device to compute on, such as ``cuda``; by default the CPU.

    Attributes:
        classes_: Sorted labels, (n_classes,).
        keys_: Cache keys, (n_cached, width).
        alpha_: Chosen weight of the cache.
        beta_: Chosen sharpness.
        temperature_: Divides the logits in ``predict_proba``.
        validation_accuracy_: Accuracy of the chosen settings; NaN without validation images.
    """
