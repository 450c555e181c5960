"""What is kept of media: tensors, and the lists of numbers with which processors count tiles."""

import torch

from crome.attached.encoding import Encoded
from crome.attached.keeping import Kept, is_numbers, small


def test_lists_of_numbers_are_kept_beside_tensors():
    tensors = {"pixels": torch.zeros(5000), "tiles": [2, 0], "grid": [[1, 2], [1, 1]]}
    assert set(small(tensors)) == {"tiles", "grid"}
    features = {"image": Encoded(pooler_output=[torch.ones(3, 2)])}
    kept = Kept(features, small(tensors), {}, ((4, 5),))
    assert Kept.read(kept.written()).tensors == {"tiles": [2, 0], "grid": [[1, 2], [1, 1]]}


def test_what_a_processor_gives_besides_numbers_is_no_input():
    assert is_numbers([[1, 2], (3.0,), []])
    assert not any(is_numbers(value) for value in (["<image>"], [{"fps": 2}], [None], "7", None))
