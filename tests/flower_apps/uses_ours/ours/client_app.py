"""The clients of fedsweep on digits, which one of two sees turned: those of a trial."""

import fedsweep
from fedsweep.client.app import make_client_app
from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import load_images

[trial] = fedsweep.compose(
    "dataset=digits", "partition=iid", "shift=rotation", "shift.groups=2", "num_clients=2",
    "model=logreg",
)  # fmt: skip
config = trial.config
data = FederatedData.build(load_images(config.dataset, config.data), config)
app = make_client_app(data, config.model, config.seed)
