"""FedRoD: one head is trained to treat all classes alike, a second one is every client's own.

Chen and Chao 2022, "On Bridging Generic and Personalized Federated Learning for Image
Classification" (arXiv:2107.00778), with the balanced softmax loss and a linear personal head.
Deviations: docs/strategies/fedrod.md.
"""

import numpy as np
from numpy.typing import NDArray

from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.clients import ClientPart, Effort, Update, Values, Work, training_effort
from fedsweep.strategies.models import Models
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.stepped import Seen
from fedsweep.strategies.told import Told

RARE = 1e-9
"""Examples of a class that a client has none of: the logarithm of its share is finite."""


class TwoHeads(ClientPart):
    """A client answers by the sum of two heads: the one that all share, and one of its own.

    Both are linear on the same representation, so their sum is one linear head, whose parameters
    are the sums of theirs; and the logarithm of the classes' shares, which the balanced loss adds
    to the logits, is a part of the bias.
    """

    method = "fedrod"

    def fit(self, work: Work) -> Update:
        """Step the generic model along the balanced loss, and the own head along the plain one.

        Both gradients of a batch are taken before both steps. The own head sees the representation
        as it is: it moves nothing below it.
        """
        sent, local = work.sent(), work.local
        head_P = sent.where(_head(sent))
        prior_CP = self._prior(work, sent)
        # With the prior in its bias, the generic model's own gradient is the balanced loss's.
        generic = work.begin(sent.with_rows(sent.rows + prior_CP))
        own = work.begin(self._own(work), proximal=False)
        balanced, plain = Seen(len(work)), Seen(len(work))

        for batch in work.batches():
            of_both = generic.gradient(batch, at=generic.rows - prior_CP + own.rows)
            of_generic = generic.gradient(batch)
            balanced.add(batch, of_generic)
            plain.add(batch, of_both)

            decayed_CP = np.asarray(local.weight_decay, prior_CP.dtype) * prior_CP
            generic.step(batch, of_generic.rows - decayed_CP)  # the prior itself does not decay
            own.step(batch, of_both.rows * head_P)

        work.keep(self.method, sent.with_rows(own.rows))
        model = generic.models.with_rows(generic.rows - prior_CP)
        return Update(plain.results(), model, {"balanced_loss": balanced.losses.tolist()})

    def model(self, work: Work) -> Models:
        """Return the model whose head is the sum of both; the own one begins as nothing."""
        sent = work.sent()
        _head(sent)
        return sent.with_rows(sent.rows + self._own(work).rows)

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what two gradients a batch have a client compute."""
        del models
        return Effort(2 * training_effort(config, examples))

    def _own(self, work: Work) -> Models:
        sent = work.sent()
        return work.kept(self.method, otherwise=sent.with_rows(np.zeros_like(sent.rows)))

    def _prior(self, work: Work, sent: Models) -> ModelRows:
        """Return the logarithms of each client's shares of the classes, in the head's bias."""
        counts_CK: NDArray[np.float64] = np.maximum(work.class_counts(), RARE)
        shares_CK = counts_CK / counts_CK.sum(axis=1, keepdims=True)
        prior_CP = np.zeros_like(sent.rows)
        prior_CP[:, sent.where(_head(sent)[1:])] = np.log(shares_CK)
        return prior_CP


class FedRoD(Told):
    """FedAvg of models that are trained by the balanced loss; heads beside them are the clients'.

    All parameters are FedAvg's.
    """

    needs_classes = True  # its loss is balanced between them

    settings = FedAvgSettings
    title = "FedRoD"
    colour = "#C71585"
    partial_means = True
    any_version = True

    clients = TwoHeads
    personal_models = True


def _head(models: Models) -> list[str]:
    """Return the weight and the bias of the last layer.

    Raises
    ------
    ValueError
        It is not linear, or has no bias.
    """
    bias = models.trained[-1]
    weight = [name for name in models.trained if name == f"{bias.rpartition('.')[0]}.weight"]
    shapes = models.shapes[0]
    linear = weight and len(shapes[weight[0]]) == 2 and shapes[bias] == shapes[weight[0]][:1]
    if not linear:
        raise ValueError(
            f"strategy=fedrod needs a linear last layer with a bias; '{bias}' is none: "
            "take another model"
        )
    return [*weight, bias]
