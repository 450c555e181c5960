"""The gated cross-modal adapter of CROME (arXiv 2408.06610, equations 1 and 2), and nothing else.

Shapes: B batch, N tokens of one branch, d width of the language model, m bottleneck.
"""

from collections.abc import Mapping, Sequence

import torch.nn as nn
from torch import Tensor
from transformers.activations import ACT2FN

SHARED = "shared"
ACTIVATION = "silu"
"""Of the gate, unless a setting names another; the paper's equation has SiLU."""


class CrossModalAdapter(nn.Module):
    """Adds a gated bottleneck to the tokens of every branch just before the language model.

    Per branch, equations 1 and 2::

        z = SiLU(x W_g) * (x W_d)
        y = x + z W_u

    `W_d` and `W_g` belong to a branch, `W_u` to all of them; there are no biases, and every token
    is mapped by itself. `W_u` starts at zero, so a new adapter is the identity.

    Args:
        hidden_size: Width d of the tokens, that of the language model's embeddings.
        bottleneck: Inner width m; the paper uses 256 for every model size.
        branches: Names of the token streams. The paper has two: `query` (projected Q-Former
            outputs, its "text" branch) and `patch` (projected vision features, its "image" branch).
        gated: False drops `W_g` and gives z = SiLU(x W_d), the ablation of Table 5, row 2.
        shared_up: False gives every branch a `W_u` of its own.
        activation: Name of an activation that transformers knows.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck: int = 256,
        branches: Sequence[str] = ("query", "patch"),
        *,
        gated: bool = True,
        shared_up: bool = True,
        activation: str = ACTIVATION,
    ) -> None:
        super().__init__()
        self.activation_name = activation
        self.activation = ACT2FN[activation]
        self.down = nn.ModuleDict({b: _linear(hidden_size, bottleneck) for b in branches})
        self.gate = nn.ModuleDict(
            {b: _linear(hidden_size, bottleneck) for b in branches} if gated else {}
        )
        self.up = nn.ModuleDict(
            {b: _linear(bottleneck, hidden_size) for b in ([SHARED] if shared_up else branches)}
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws `W_d` and `W_g` from N(0, 0.02²) and sets `W_u` to zero: the identity."""
        for weight in (*self.down.parameters(), *self.gate.parameters()):
            nn.init.normal_(weight, std=0.02)
        for weight in self.up.parameters():
            nn.init.zeros_(weight)

    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapts the tokens of each branch.

        Args:
            tokens: Branch name → tokens of shape (B, N, d); N may differ between branches.

        Returns:
            The same names and shapes.

        Raises:
            KeyError: A name that is not one of this adapter's branches.
        """
        return {branch: self._adapt(branch, x) for branch, x in tokens.items()}

    def _adapt(self, branch: str, x: Tensor) -> Tensor:
        z = self.down[branch](x)  # (B, N, m)
        z = self.activation(self.gate[branch](x)) * z if self.gate else self.activation(z)
        up = self.up[SHARED] if SHARED in self.up else self.up[branch]
        return x + up(z)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)
