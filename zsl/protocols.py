"""Two ways to read the same evaluations, never mixed.

    published   the best iteration (and weight) by the figure itself on the test classes, each figure by itself; the seen side
                of the AUC is training images, unless the data set has test images of seen classes. It flatters.
    honest      the iteration and weight that were best on held-out seen classes; the seen side is held-out images.

Figures that belong together (H and the two accuracies that it is made of) are taken from one evaluation.
"""

from typing import Any, NamedTuple

PROTOCOLS = ("honest", "published")
# What chooses -> what is read there.
TOGETHER = {"top1": ("top1",), "per_class_top1": ("per_class_top1",), "h": ("h", "seen", "unseen"), "auc": ("auc",)}
METRICS = tuple(metric for metrics in TOGETHER.values() for metric in metrics)

Row = dict[str, Any]


class Result(NamedTuple):
    """A line of results.csv. `value` is a share of 1; `chosen` says at which iteration, or with which setting."""

    method: str
    seed: int
    protocol: str
    metric: str
    value: float
    weight: float | None
    chosen: str


def best(rows: list[Row], key: str) -> Row | None:
    """The row with the largest `key`, the first of equals; None where no row has it."""
    with_key = [row for row in rows if key in row]
    return max(with_key, key=lambda row: row[key]) if with_key else None


def honest(choose: list[Row], final: list[Row], where: str) -> dict[str, tuple[float, Row]]:
    """Metric -> its value and row in `final`, at what was best in `choose`.

    Args:
        choose: evaluations on held-out seen classes.
        final: on the unseen classes.
        where: the key that says which rows of both belong together.
    """
    found = {}
    by_place = {str(row[where]): row for row in final}
    for key, metrics in TOGETHER.items():
        chosen = best(choose, key)
        row = by_place.get(str(chosen[where])) if chosen else None
        if row:  # none where the final training broke down before that iteration
            found |= {metric: (row[metric], row) for metric in metrics if metric in row}
    return found


def published(final: list[Row], own_seen_test: bool) -> dict[str, tuple[float, Row]]:
    """Metric -> its value and row, at what was best in `final`.

    Args:
        own_seen_test: the data set has test images of seen classes; otherwise the AUC's seen side is training images.
    """
    auc = "auc" if own_seen_test else "auc_train"
    found = {}
    for key, metrics in TOGETHER.items():
        row = best(final, auc if key == "auc" else key)
        if row:
            found |= {metric: (row[auc if metric == "auc" else metric], row) for metric in metrics}
    return found
