"""Two protocols that read results from the same evaluations. Their numbers must not be mixed.

    published   for each metric, the iteration (and weight) with the best value on the test classes. The seen images of the AUC
                are training images, unless the data set has its own test images of seen classes. The results are optimistic.
    honest      the iteration and weight that are best on held-out seen classes. The seen images are held-out images.

H and the two accuracies that it combines are always taken from the same evaluation.
"""

from typing import Any, NamedTuple

PROTOCOLS = ("honest", "published")
# The metric that selects an evaluation -> the metrics read from it.
TOGETHER = {"top1": ("top1",), "per_class_top1": ("per_class_top1",), "h": ("h", "seen", "unseen"), "auc": ("auc",)}
METRICS = tuple(metric for metrics in TOGETHER.values() for metric in metrics)

Row = dict[str, Any]


class Result(NamedTuple):
    """A line of results.csv. `value` is a fraction of 1. `chosen` is the selected iteration or setting."""

    method: str
    seed: int
    protocol: str
    metric: str
    value: float
    weight: float | None
    chosen: str


def best(rows: list[Row], key: str) -> Row | None:
    """The row with the largest `key`, or the first of several equal ones. None if no row has `key`."""
    with_key = [row for row in rows if key in row]
    return max(with_key, key=lambda row: row[key]) if with_key else None


def best_value(rows: list[Row], key: str) -> float:
    """The largest value of `key`, or -1 if no row has it."""
    row = best(rows, key)
    return row[key] if row else -1.0


def honest(choose: list[Row], final: list[Row], where: str) -> dict[str, tuple[float, Row]]:
    """Metric -> its value and row in `final`, selected by the best row in `choose`.

    Args:
        choose: evaluations on held-out seen classes.
        final: evaluations on the unseen classes.
        where: the key that matches rows of `choose` and `final`: iteration or setting.
    """
    selected: dict[str, tuple[float, Row]] = {}
    by_place = {str(row[where]): row for row in final}
    for key, metrics in TOGETHER.items():
        chosen = best(choose, key)
        row = by_place.get(str(chosen[where])) if chosen else None
        if row:  # missing if the final training diverged before that iteration
            selected |= {metric: (row[metric], row) for metric in metrics if metric in row}
    return selected


def published(final: list[Row], own_seen_test: bool) -> dict[str, tuple[float, Row]]:
    """Metric -> its value and row, selected by the best row in `final`.

    Args:
        own_seen_test: the data set has its own test images of seen classes. Otherwise the AUC uses training images.
    """
    auc = "auc" if own_seen_test else "auc_train"
    selected: dict[str, tuple[float, Row]] = {}
    for key, metrics in TOGETHER.items():
        row = best(final, auc if key == "auc" else key)
        if row:
            selected |= {metric: (row[auc if metric == "auc" else metric], row) for metric in metrics}
    return selected
