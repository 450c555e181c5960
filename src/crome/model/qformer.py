"""A Q-Former that starts from a sentence encoder: its tokenizer and its weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase


def reduced_tokenizer(folder: Path, size: int) -> tuple[PreTrainedTokenizerBase, torch.Tensor]:
    """A WordPiece tokenizer with fewer entries, and the ids it keeps.

    Kept are the special tokens, all ASCII characters, and the first ASCII words in the order of the
    vocabulary, which is roughly that of frequency; other words fall into pieces.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if size >= len(tokenizer):
        return tokenizer, torch.arange(len(tokenizer))
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    plain = [w for w, _ in words if w.removeprefix("##").isascii() and not w.startswith("[")]
    characters = [w for w in plain if len(w.removeprefix("##")) == 1]
    longer = [w for w in plain if len(w.removeprefix("##")) > 1]
    chosen = list(dict.fromkeys(["[PAD]", *tokenizer.all_special_tokens, *characters, *longer]))[
        :size
    ]
    vocabulary = tokenizer.get_vocab()
    kept = torch.tensor([vocabulary[word] for word in chosen])
    return BertTokenizer(vocab={word: i for i, word in enumerate(chosen)}), kept


@torch.no_grad()
def initialise_qformer(qformer: Any, bert: Any, kept: torch.Tensor) -> None:
    """Copies a BERT's embeddings, self-attention and feed-forwards into a Q-Former.

    The query path's feed-forward starts as a copy of the text path's, as in BLIP-2; cross-attention
    stays random. A narrower feed-forward keeps the neurons with the largest weights.

    Args:
        qformer: Width equal to the BERT's; at most as many layers.
        bert: A BERT encoder.
        kept: Ids of the BERT's vocabulary that the Q-Former keeps, in its own order.
    """
    source, target = bert.embeddings, qformer.embeddings
    words = source.word_embeddings.weight[kept] + source.token_type_embeddings.weight[0]
    target.word_embeddings.weight.copy_(words)
    positions = target.position_embeddings.weight
    positions.copy_(source.position_embeddings.weight[: len(positions)])
    target.layernorm.load_state_dict(source.LayerNorm.state_dict())
    for new, old in zip(qformer.encoder.layer, bert.encoder.layer, strict=False):
        new.attention.attention.query.load_state_dict(old.attention.self.query.state_dict())
        new.attention.attention.key.load_state_dict(old.attention.self.key.state_dict())
        new.attention.attention.value.load_state_dict(old.attention.self.value.state_dict())
        new.attention.output.dense.load_state_dict(old.attention.output.dense.state_dict())
        new.attention.output.LayerNorm.load_state_dict(old.attention.output.LayerNorm.state_dict())
        inner, outer = old.intermediate.dense, old.output.dense
        strength = inner.weight.norm(dim=1) * outer.weight.norm(dim=0)
        top = strength.topk(new.intermediate.dense.out_features).indices.sort().values
        for intermediate, output in (
            (new.intermediate, new.output),
            (new.intermediate_query, new.output_query),
        ):
            intermediate.dense.weight.copy_(inner.weight[top])
            intermediate.dense.bias.copy_(inner.bias[top])
            output.dense.weight.copy_(outer.weight[:, top])
            output.dense.bias.copy_(outer.bias)
            output.LayerNorm.load_state_dict(old.output.LayerNorm.state_dict())
