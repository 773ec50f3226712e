"""A mean of embeddings learned from scratch, and a dense layer: short texts by their words.

Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification" (arXiv:1607.01759).
"""

from torch import Tensor, nn


def bag(
    input_shape: tuple[int, ...], num_classes: int, num_symbols: int, embedding: int = 16
) -> nn.Module:
    """Return a network on symbols (T,); symbol 0 is what fills a short text up, and counts not."""
    if embedding < 1:
        raise ValueError(f"embedding={embedding}; it must be at least 1")
    if len(input_shape) != 1:
        raise ValueError("it reads symbols (T,), and no other shape")
    return _Bag(num_classes, num_symbols, embedding)


class _Bag(nn.Module):
    def __init__(self, num_classes: int, num_symbols: int, embedding: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, embedding)
        self.output = nn.Linear(embedding, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map symbols int64 (N, T) to logits (N, classes)."""
        there = (x > 0).unsqueeze(2)
        summed = (self.embedding(x) * there).sum(1)
        logits: Tensor = self.output(summed / there.sum(1).clamp(min=1))
        return logits
