"""Prompt tuning (arXiv 2104.08691): free vectors before the visual tokens, and nothing else trains.

Shapes: B images or rows, N tokens of one branch, P vectors of the prompt, d width of the language
model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crome.model.language import embed_words
from crome.model.modeling import CromeForConditionalGeneration


class SoftPrompt(nn.Module):
    """Stands where the adapter does, and puts its vectors before the tokens of one branch.

    Args:
        vectors: (P, d) to begin with.
        branch: The branch that the language model reads first.
    """

    def __init__(self, vectors: Tensor, branch: str) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.branch = branch

    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, N, d) of each branch; (B, P + N, d) of the first."""
        first = tokens[self.branch]
        prompt = self.vectors.to(first.dtype).expand(len(first), -1, -1)
        return {**tokens, self.branch: torch.cat([prompt, first], dim=1)}


@torch.no_grad()
def add_soft_prompt(model: CromeForConditionalGeneration, length: int) -> SoftPrompt:
    """Gives a model a prompt in place of its adapter; its vectors begin as words drawn at random.

    Args:
        model: Its adapter, if there is one, is dropped.
        length: P, the number of vectors.
    """
    words = model.config.text_config.get_text_config().vocab_size
    device = model.language_model.get_input_embeddings().weight.device
    drawn = torch.randint(words, (length,)).to(device)
    vectors = embed_words(model.language_model, drawn[None])[0].float()
    prompt = SoftPrompt(vectors, model.visual_order[0])
    model.adapter = prompt  # type: ignore[assignment]
    return prompt
