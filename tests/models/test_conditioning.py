"""The labels that are asked for, dropped in training and drawn for seeds."""

import pytest
import torch

from tinyldm.config.schema import ConditionConfig
from tinyldm.data.batch import UNCONDITIONAL, UNKNOWN, Condition
from tinyldm.errors import UserError
from tinyldm.models.conditioning import condition_for, drop_labels, parse_labels, preview_condition, without_labels
from tinyldm.portable.label_embedding import LabelEmbedding
from tinyldm.randomness import Draw, Rank

HAIR = ["bald", "short", "long, dark"]
FACES = [["Smiling", ["false", "true"]], ["hair", HAIR]]


def embedding(columns=FACES, rows=None) -> LabelEmbedding:
    made = LabelEmbedding(columns, 8, 1 if rows is None else len(rows))
    if rows is not None:
        made.rows = torch.tensor(rows)
    return made


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("Smiling=true", {"Smiling": 1}),
        ("Smiling=true,hair=short", {"Smiling": 1, "hair": 1}),
        (" hair = long, dark , Smiling=false", {"hair": 2, "Smiling": 0}),
        ("hair=unknown", {"hair": UNKNOWN}),
        (None, {}),
    ],
)
def test_labels_are_given_by_name(text, numbers):
    assert parse_labels(embedding(), text) == numbers


def test_the_value_of_an_only_label_needs_no_name():
    animals = embedding([["label", ["cat", "a=b, c", "unknown dog"]]])
    numbers = [parse_labels(animals, text)["label"] for text in ("cat", "a=b, c", "label=cat")]
    assert numbers == [0, 1, 0]
    assert parse_labels(animals, "unknown") == {"label": UNKNOWN}


@pytest.mark.parametrize(
    "text, words",
    [
        ("smiling=true", "no label 'smiling'; it has: Smiling, hair"),
        ("hair=red", r"label hair has no value 'red'; it has: bald, short, long, dark"),
        ("true", r"no label 'true'.*\(write it as Smiling=false\)"),
        ("Smiling=true,Smiling=false", "gives Smiling twice"),
        ("", "no label ''"),
    ],
)
def test_labels_that_a_model_does_not_have(text, words):
    with pytest.raises(UserError, match=words):
        parse_labels(embedding(), text)
    with pytest.raises(UserError, match="this model has no labels: remove it"):
        parse_labels(None, text)


def test_labels_of_seeds_have_the_shares_of_the_data():
    rows = [[0, 0]] * 60 + [[1, 1]] * 30 + [[1, 2]] * 10
    labels = condition_for(embedding(rows=rows), range(4000), {}).labels
    shares = torch.tensor([[(labels == torch.tensor(pair)).all(1).float().mean() for pair in ([0, 0], [1, 1], [1, 2])]])
    assert torch.allclose(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03)
    assert torch.equal(condition_for(embedding(rows=rows), range(130, 150), {}).labels, labels[130:150])
    smiling = condition_for(embedding(rows=rows), range(4000), {"Smiling": 1}).labels
    assert (smiling[:, 0] == 1).all() and abs((smiling[:, 1] == 1).float().mean() - 0.75) < 0.03
    never = condition_for(embedding(rows=rows), range(100), {"hair": 0, "Smiling": 1}).labels
    assert (never == torch.tensor([1, 0])).all()  # no example has both
    assert condition_for(None, range(3), {}) == UNCONDITIONAL


def test_few_examples_with_the_given_labels_do_not_make_images_alike():
    values = [str(i) for i in range(5)]
    few = embedding([["a", ["x", "y"]], ["b", values], ["c", values]], rows=[[0, i, i] for i in range(5)] + [[1, 0, 0]] * 60)
    labels = condition_for(few, range(400), {"a": 0}).labels
    assert (labels[:, 0] == 0).all() and len(labels.unique(dim=0)) == 25
    assert (condition_for(few, range(100), {"a": 1}).labels == torch.tensor([1, 0, 0])).all()
    unseen = condition_for(few, range(100), {"a": 1, "b": 2, "c": 2}).labels
    assert (unseen == torch.tensor([1, 2, 2])).all()


def test_previews_show_the_classes_in_turn_if_there_are_few():
    assert preview_condition(embedding([["label", ["a", "b", "c"]]]), 7).labels.flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    many = embedding([["label", [str(i) for i in range(200)]]], rows=[[i] for i in range(200)])
    few = preview_condition(many, 16).labels
    assert len(few.unique()) > 12 and few.max() > 100 and torch.equal(few, preview_condition(many, 16).labels)
    assert preview_condition(None, 4) == UNCONDITIONAL


def test_labels_are_dropped_together_and_each_alone():
    count = 20_000
    labels = Condition(torch.zeros(count, 2, dtype=torch.long))
    unknown = drop_labels(labels, ConditionConfig(dropout=0.2, dropout_each=0.1), Draw(0, 0, 0)).labels == UNKNOWN
    both, first = unknown.all(1).float().mean(), unknown[:, 0].float().mean()
    assert abs(first - (0.2 + 0.8 * 0.1)) < 0.01 and abs(both - (0.2 + 0.8 * 0.1**2)) < 0.01
    single = Condition(torch.zeros(count, 1, dtype=torch.long))
    alone = drop_labels(single, ConditionConfig(dropout=0.2, dropout_each=0.5), Draw(0, 0, 0)).labels == UNKNOWN
    assert abs(alone.float().mean() - 0.2) < 0.01  # a single label has one probability
    kept = drop_labels(labels, ConditionConfig(dropout=0, dropout_each=0), Draw(0, 0, 0))
    assert (
        torch.equal(kept.labels, labels.labels)
        and drop_labels(UNCONDITIONAL, ConditionConfig(), Draw(0, 0, 0)) == UNCONDITIONAL
    )
    assert (without_labels(labels).labels == UNKNOWN).all() and without_labels(UNCONDITIONAL) == UNCONDITIONAL


def test_dropped_labels_do_not_depend_on_the_number_of_ranks():
    labels = torch.arange(8)[:, None]
    config = ConditionConfig(dropout=0.5)
    alone = drop_labels(Condition(labels), config, Draw(3, 1, 0)).labels
    parts = [drop_labels(Condition(labels[4 * i : 4 * i + 4]), config, Draw(3, 1, 0, Rank(i, 2))).labels for i in range(2)]
    assert torch.equal(torch.cat(parts), alone)
