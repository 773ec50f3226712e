"""A first linear layer trained in the coordinates of its examples. Imports torch only.

Under SGD every gradient of the layer's matrix W (O, F) is D^T X, X being the client's examples (n,
F) and D the gradient at the layer's outputs. So W never leaves W_0 + span(X):

    W_t = p_t W_0 + q_t K - lr A_t^T X,    A_t (n, O)

and its outputs on examples are p_t (X W_0^T) + q_t (X K^T) - lr (X X^T) A_t. With X W_0^T, X K^T
and X X^T computed once, a step costs products of n instead of F columns and never touches W, which
is written once, at the end. This is the same arithmetic in another order: exact up to rounding.
Momentum, weight decay and the proximal term are linear, so they act on p, q and A alone; K is what
they add in each step besides (SCAFFOLD's correction, Ditto's anchor). A bias is one more pixel that
is always 1.

It pays where clients have few examples of many pixels and take many steps:
full-batch gradient descent, several epochs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TOUCH = 16
"""What reading and writing a weight in a step costs, in operations of a product: cache misses."""


def pays(
    features: int, outputs: int, examples: int, seen: float, steps: float, *, drift: bool
) -> bool:
    """Return whether the dual form is cheaper for a client, by counting operations.

    Parameters
    ----------
    features, outputs : int
        F and O of the layer.
    examples : int
        The client's examples, n.
    seen : float
        Examples in all its batches together.
    steps : float
        Its steps.
    drift : bool
        Whether there is a K.
    """
    weights = features * outputs
    direct = 4 * seen * weights + TOUCH * steps * weights
    once = 2 * examples**2 * features + (6 if drift else 4) * examples * weights
    return once + 2 * (seen + 4 * steps) * examples * outputs < direct


class DualLayer:
    """The matrices of a block of C clients.

    Parameters
    ----------
    x : Tensor
        Examples (C, n, F). A client with fewer has others in their place, whose gradients are 0.
    start : sequence of Tensor
        W_0, and the bias where there is one: (O, F) and (O,) for all, or (C, O, F) and (C, O).
    drift : sequence of Tensor, optional
        K, (C, O, F) and (C, O).
    lr, momentum : float
        Of SGD.
    decay : Tensor, optional
        (C, 1): the multiple of W_t in each step's gradient: weight decay and proximal weight
        together.
    pull : Tensor, optional
        (C, 1): the multiple of W_0 that is subtracted from it: the proximal weight where W_0 is the
        anchor.
    """

    def __init__(
        self,
        x: Tensor,
        start: Sequence[Tensor],
        drift: Sequence[Tensor] | None = None,
        *,
        lr: float,
        momentum: float,
        decay: Tensor | None = None,
        pull: Tensor | None = None,
    ) -> None:
        clients, examples, _ = x.shape
        self._x, self._drift, self._lr, self._momentum = x, drift, lr, momentum
        self._gram = torch.bmm(x, x.transpose(1, 2))
        if len(start) == 2:
            self._gram.add_(1)
        self._h_0 = _outputs(x, start)
        self._h_k = None if drift is None else _outputs(x, drift)
        # One row more than there are examples: what fills up a short batch is added there.
        self._a_rows = x.new_zeros(clients * examples + 1, start[0].shape[-2])
        self._m_rows = torch.zeros_like(self._a_rows) if momentum else self._a_rows
        self._a, self._m = (
            rows[:-1].view(clients, examples, -1) for rows in (self._a_rows, self._m_rows)
        )
        self._touched = 0  # the rows beyond are 0 in A
        self._decay = None if decay is None else decay.unsqueeze(2)
        self._pull = None if pull is None else pull.unsqueeze(2)
        self._p, self._q = x.new_ones(clients, 1, 1), x.new_zeros(clients, 1, 1)
        self._mp, self._mq = torch.zeros_like(self._p), torch.zeros_like(self._q)

    def outputs(self, active: int, at: slice | Tensor) -> Tensor:
        """Return X_b W_t^T (active, b, O) of the first clients' rows, to be changed at will.

        Parameters
        ----------
        active : int
            How many clients still train.
        at : slice or Tensor
            The batch: the same slice of each client's rows, or row numbers (active, b) of x as (C
            n, F); C n fills up.
        """
        batch = [
            None if t is None else _rows_of_first(t, active, at)
            for t in (self._h_0, self._gram, self._h_k)
        ]
        h, gram, h_k = batch
        assert h is not None
        assert gram is not None
        if self._decay is not None:
            h = h * self._p[:active]
        if h_k is not None:
            h = torch.addcmul(h, h_k, self._q[:active])
        if not self._touched:
            return h.clone()
        old = slice(0, self._touched)
        return torch.baddbmm(h, gram[:, :, old], self._a[:active, old], alpha=-self._lr)

    def step(self, g: Tensor, at: slice | Tensor) -> None:
        """Take a step of SGD with the batch's gradient at the outputs, g (active, b, O)."""
        active = len(g)
        self._touched = max(self._touched, at.stop if isinstance(at, slice) else self._x.shape[1])
        old = slice(0, self._touched)
        a, m = self._a[:active, old], self._m[:active, old]
        if self._momentum:
            m.mul_(self._momentum)
        if self._decay is not None:
            m.addcmul_(a, self._decay[:active], value=-self._lr)
        if isinstance(at, slice):
            self._m[:active, at].add_(g)
        else:
            flat = at.flatten()
            self._m_rows.index_copy_(
                0, flat, self._m_rows.index_select(0, flat).add_(g.flatten(0, 1))
            )
        if self._momentum:
            a.add_(m)
        if self._decay is not None:
            decay, p = self._decay[:active], self._p[:active]
            gradient = decay * p if self._pull is None else decay * p - self._pull[:active]
            p.sub_(self._mp[:active].mul_(self._momentum).add_(gradient), alpha=self._lr)
        if self._drift is not None:
            q = self._q[:active]
            gradient = torch.ones_like(q) if self._decay is None else self._decay[:active] * q + 1
            q.sub_(self._mq[:active].mul_(self._momentum).add_(gradient), alpha=self._lr)

    def finish(self, w: Sequence[Tensor]) -> None:
        """Turn W_0 (C, O, F), and the bias (C, O), into those of the last step."""
        for i, tensor in enumerate(w):
            like = (-1, *[1] * (tensor.ndim - 1))
            if self._decay is not None:
                tensor.mul_(self._p.view(like))
            if self._drift is not None:
                tensor.addcmul_(self._drift[i], self._q.view(like))
        w[0].baddbmm_(self._a.transpose(1, 2), self._x, alpha=-self._lr)
        if len(w) == 2:
            w[1].sub_(self._a.sum(1), alpha=self._lr)


def _outputs(x: Tensor, layer: Sequence[Tensor]) -> Tensor:
    """Return what a layer (O, F), (O,), or one per client, gives rows (C, n, F): (C, n, O)."""
    if layer[0].ndim == 2:
        return F.linear(x.flatten(0, 1), *layer).view(*x.shape[:2], -1)
    matrix = layer[0].transpose(1, 2)
    return (
        torch.baddbmm(layer[1].unsqueeze(1), x, matrix) if len(layer) == 2 else torch.bmm(x, matrix)
    )


def _rows_of_first(table: Tensor, active: int, at: slice | Tensor) -> Tensor:
    """Return rows of a table (C, n, ...) for the first clients."""
    if isinstance(at, slice):
        return table[:active, at]
    rows = at.flatten().clamp_max(table.shape[0] * table.shape[1] - 1)
    return table.flatten(0, 1).index_select(0, rows).view(active, at.shape[1], -1)
