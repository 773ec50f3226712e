"""A recurrent network over symbols or series: LEAF's, for the next character of Shakespeare.

Caldas et al. 2018 (arXiv:1812.01097): 80 characters, embedded in 8 numbers, two layers of 256
units, and a dense layer on the last output. Hochreiter and Schmidhuber 1997 for the units.
"""

from torch import Tensor, nn


def lstm(
    input_shape: tuple[int, ...],
    num_classes: int,
    num_symbols: int = 0,
    embedding: int = 8,
    hidden: int = 256,
    layers: int = 2,
) -> nn.Module:
    """Return a network on symbols (T,), which it embeds, or on series (T, C) of numbers.

    LEAF's on 80 symbols has 819,920 parameters. Series have no embedding.
    """
    for name, value in (("embedding", embedding), ("hidden", hidden), ("layers", layers)):
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")
    if len(input_shape) != (1 if num_symbols else 2):
        raise ValueError("it reads symbols (T,) or series (T, channels), and no other shape")
    return _Recurrent(input_shape, num_classes, num_symbols, embedding, hidden, layers)


class _Recurrent(nn.Module):
    """Symbols or series in, one output for the last step."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        num_symbols: int,
        embedding: int,
        hidden: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, embedding) if num_symbols else nn.Identity()
        width = embedding if num_symbols else input_shape[-1]
        self.recurrent = nn.LSTM(width, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map symbols int64 (N, T) or series (N, T, C) to outputs (N, classes)."""
        steps, _ = self.recurrent(self.embedding(x))
        logits: Tensor = self.output(steps[:, -1])
        return logits
