"""Golden runs: the losses of whole trials, kept in a file.

A change that should not change maths leaves them alone.

After a change that should: ``python -m tests.golden.test_golden`` writes the file anew;
its diff is the review.
"""

import json
from pathlib import Path

import pytest

from tests.trials import events_of, small

FILE = Path(__file__).with_name("losses.json")
CASES = {
    "fedavg-mlp-dirichlet": ["partition=dirichlet", "strategy.fraction_train=0.5"],
    "fedavg-lenet": ["model=lenet", "num_clients=4", "rounds=2"],
    "fedadam-logreg": ["model=logreg", "strategy=fedadam"],
    "kmeans-rotation": [
        "model=logreg",
        "strategy=kmeans",
        "strategy.num_clusters=2",
        "shift=rotation",
        "shift.groups=2",
    ],
}


def losses(words: list[str]) -> list[float]:
    return [record.metrics["1_global/loss"] for record in events_of(small(*words))[1:-1]]


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_file(name: str) -> None:
    # Another CPU may round a sum otherwise; the bits of one machine are tested in
    # tests/ray/test_exactness.py.
    assert losses(CASES[name]) == pytest.approx(json.loads(FILE.read_text())[name], rel=1e-3)


if __name__ == "__main__":
    FILE.write_text(
        json.dumps({name: losses(words) for name, words in CASES.items()}, indent=2) + "\n"
    )
