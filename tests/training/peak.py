"""How much memory a step holds, as an allocator would count it."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """The most bytes that new tensors hold at a time."""

    def __init__(self):
        super().__init__()
        self.held = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if id(storage) not in self.known:
                    self.known.add(id(storage))
                    self.held += storage.nbytes()
                    self.most = max(self.most, self.held)
                    weakref.finalize(storage, self.dropped, id(storage), storage.nbytes())
        return result

    def dropped(self, name, size):
        """Called when a tensor's memory is free."""
        self.known.discard(name)
        self.held -= size
