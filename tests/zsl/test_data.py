"""Users' own data: reading, dividing and scaling it, and one-line errors."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from tests.support import zsl as support
from tinyldm.errors import UserError
from zsl import data
from zsl.data import ClassTexts, load_npz, write_npz
from zsl.division import Scaling, divide
from zsl.load import load


def test_a_folder_of_features_and_articles(tmp_path):
    loaded = load(str(support.folder(tmp_path / "birds")))
    assert (loaded.name, loaded.features.shape, loaded.features.dtype) == ("birds", (120, 6), np.float32)
    assert loaded.unseen.tolist() == [7, 8, 9] and loaded.seen.tolist() == list(range(7))
    assert len(loaded.articles) == 10 and loaded.class_names[3] == "bird 4" and loaded.texts is None and not loaded.simulated


def test_one_file_with_all_arrays_is_written_and_read(tmp_path):
    saved = support.dataset()
    saved.seen_test, saved.validation_classes, saved.simulated = np.array([0, 12]), np.array([2, 5]), True
    data.save_npz(saved, tmp_path / "birds.npz")
    loaded = load(str(tmp_path / "birds.npz"))
    for key, value in vars(saved).items():
        same = np.array_equal if isinstance(value, np.ndarray) else lambda one, two: one == two
        assert same(getattr(loaded, key), value), key


def test_class_ids_may_be_any_integers_in_any_order(tmp_path):
    texts = {"texts": np.eye(3), "classes": np.array([70, 5, 900]), "class_names": np.array(["a", "b", "c"])}
    np.savez(tmp_path / "d.npz", features=np.ones((4, 2)), labels=[5, 900, 70, 5], unseen_classes=[900], **texts)
    loaded = load(str(tmp_path / "d.npz"))
    assert loaded.labels.tolist() == [1, 2, 0, 1] and [loaded.class_names[i] for i in loaded.unseen] == ["c"]


def test_other_texts_replace_those_next_to_the_features(tmp_path):
    path = support.folder(tmp_path / "birds")
    np.savez(tmp_path / "texts.npz", texts=np.arange(1, 21).reshape(10, 2), classes=np.arange(10, 0, -1))
    loaded = load(str(path), texts=str(tmp_path / "texts.npz"))
    assert loaded.articles is None and loaded.texts[list(loaded.class_ids).index(1)].tolist() == [19, 20]


# --------------------------------------------------------------------------------------------------------------- dividing


def test_training_and_test_images_do_not_overlap():
    data = support.dataset()
    final, choose = divide(data, 0, 0.25), divide(data, 0, 0.25, 0.3)
    for division in (final, choose):
        parts = [set(part.tolist()) for part in (division.train, division.seen_test, division.unseen_test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert (division.labels[division.train] < division.seen_classes).all()
        assert (division.labels[division.unseen_test] >= division.seen_classes).all()
        assert np.array_equal(data.labels[division.train], division.classes[division.labels[division.train]])
    assert set(final.classes[7:]) == {7, 8, 9} and len(final.seen_test) == 7 * 3 and len(final.unseen_test) == 36
    # For validation, 2 of the 7 seen classes replace the unseen ones, which are not used.
    assert (choose.seen_classes, len(choose.classes)) == (5, 7) and set(choose.classes) == set(range(7))
    assert (choose.labels[data.labels >= 7] == -1).all() and len(choose.seen_test) == 5 * 2
    # Validation uses no final test images: it holds out other images of seen classes.
    for part in (choose.train, choose.seen_test, choose.unseen_test):
        assert len(part) and not set(part) & set(final.seen_test) and not set(part) & set(final.unseen_test)


def test_the_seed_determines_what_is_held_out():
    data = support.dataset()
    one, same, other = (divide(data, seed, 0.25, 0.3) for seed in (0, 0, 1))
    assert np.array_equal(one.train, same.train) and np.array_equal(one.classes, same.classes)
    assert not np.array_equal(one.train, other.train) and not np.array_equal(one.classes, other.classes)


def test_the_held_out_parts_of_the_data_set_itself_are_used():
    data = support.dataset()
    data.seen_test, data.validation_classes = np.array([0, 1, 13]), np.array([2, 4])
    assert divide(data, 0, 0.25).seen_test.tolist() == [0, 1, 13]
    assert sorted(divide(data, 5, 0.25, 0.5).classes[5:]) == [2, 4]


def test_without_held_out_images_all_are_used_for_training():
    assert len(divide(support.dataset(), 0, 0.0).train) == 7 * 12


def test_holding_out_all_seen_classes_is_refused():
    with pytest.raises(UserError, match=r"held_out_classes 0.99 leaves 0 of 7"):
        divide(support.dataset(), 0, 0.2, 0.99)


# ---------------------------------------------------------------------------------------------------------------- scaling


@pytest.mark.parametrize("name", ["standardize", "centred", "variance", "minmax", "l2", "none"])
def test_scalings(name):
    train = np.random.default_rng(0).gamma(2.0, 3.0, (50, 4)).astype(np.float32)
    scaled = Scaling.fit(name, train).apply(train)
    expected = {
        "standardize": (train - train.mean()) / train.std(),
        "centred": (train - train.mean(0)) / np.sqrt(((train - train.mean(0)) ** 2).mean()),
        "variance": (train - train.mean()) / train.std() ** 2,
        "minmax": (train - train.min(0)) / (train.max(0) - train.min(0)),
        "l2": train / np.sqrt((train**2).sum(1, keepdims=True)),
        "none": train,
    }[name]
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_column_becomes_0():
    train = np.ones((5, 2), np.float32)
    train[:, 1] = np.arange(5)
    assert Scaling.fit("minmax", train).apply(train)[:, 0].tolist() == [0] * 5
    with pytest.raises(UserError, match="all features are the same number"):
        Scaling.fit("standardize", np.ones((5, 2), np.float32))


# -------------------------------------------------------------------------------------------------------------- bad input


def changed(**changes):
    """The arrays of a valid features.npz with changes. None removes an array."""
    data = support.dataset()
    arrays = {"features": data.features, "labels": data.labels + 1, "unseen_classes": data.unseen + 1, **changes}
    return {key: value for key, value in arrays.items() if value is not None}


NAN = support.dataset().features.copy()
NAN[17, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, "has no labels; it has features, unseen_classes"),
        ({"features": None, "unseen_classes": None}, "has no features and no unseen_classes"),
        ({"features": np.ones(120)}, "features are 120 and labels 120"),
        ({"features": np.ones((119, 6))}, "features are 119 x 6 and labels 120"),
        ({"features": np.full((120, 6), "x")}, "features are of <U1; they must be numbers"),
        ({"features": NAN}, "features of 1 images are not finite, first in row 17"),
        ({"labels": np.arange(120) % 10}, "labels in .* are out of range: class 0 has no text"),
        ({"labels": np.arange(120) % 10 + 2}, "labels in .* are out of range: class 11 has no text"),
        ({"labels": np.ones(120)}, "labels in .* are 120 of float64; they must be a 1-d array of integers"),
        ({"unseen_classes": np.array([44])}, "unseen_classes in .* are out of range: class 44"),
        ({"unseen_classes": np.array([], int)}, "10 seen and 0 unseen classes"),
        ({"unseen_classes": np.arange(1, 10)}, "1 seen and 9 unseen classes"),
        ({"labels": np.repeat(np.arange(1, 8), 20)[:120], "unseen_classes": np.array([9])}, "no image is of an unseen class"),
        ({"labels": np.repeat([1, 2, 3, 4, 5, 6, 8, 9, 10, 10], 12)}, r"class 7 \(bird 7\) is a seen class without images"),
        ({"seen_test": np.array([500])}, "seen_test must hold row numbers below 120"),
    ],
)
def test_invalid_arrays(tmp_path, changes, words):
    path = support.folder(tmp_path / "birds")
    np.savez(path / "features.npz", **changed(**changes))
    with pytest.raises(UserError, match=words) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


def test_classes_without_text(tmp_path):
    path = support.folder(tmp_path / "birds")
    lines = (path / "articles.jsonl").read_text().splitlines()
    (path / "articles.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=r"labels in .* are out of range: class 10 has no text"):
        load(str(path))
    (path / "articles.jsonl").write_text("\n".join([*lines[:-1], '{"class_id": 10, "name": "empty", "text": "  "}']))
    with pytest.raises(UserError, match=r"class 10 \(empty\) has no text; write one"):
        load(str(path))
    (path / "articles.jsonl").unlink()
    with pytest.raises(UserError, match=r"holds no texts and classes; set data\.texts"):
        load(str(path))
    vectors = np.ones((10, 3))
    vectors[4] = 0
    np.savez(path / "texts.npz", texts=vectors, classes=np.arange(1, 11))
    with pytest.raises(UserError, match=r"class 5 \(5\) has no text: its vector is all 0"):
        load(str(path))
    vectors[4] = np.inf
    np.savez(path / "texts.npz", texts=vectors, classes=np.arange(1, 11))
    with pytest.raises(UserError, match=r"the text vector of class 5 .* is not finite"):
        load(str(path))
    np.savez(path / "texts.npz", texts=vectors[:9], classes=np.arange(1, 11))
    with pytest.raises(UserError, match="texts are 9 x 3, classes 10"):
        load(str(path))
    np.savez(path / "texts.npz", texts=np.ones((10, 3)), classes=np.ones(10, int))
    with pytest.raises(UserError, match="a class occurs twice in `classes`"):
        load(str(path))


class Evil:
    def __reduce__(self):
        return print, ("EXECUTED",)


def test_objects_in_an_npz_are_refused_and_not_executed(tmp_path, capsys):
    path = support.folder(tmp_path / "birds")
    np.savez(path / "features.npz", **changed(features=np.array([[Evil()]], dtype=object)))
    with pytest.raises(UserError, match=r"not a .npz of plain arrays"):
        load(str(path))
    (path / "features.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"not a .npz of plain arrays"):
        load(str(path))
    assert "EXECUTED" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"hello"])
def test_damaged_files(tmp_path, content):
    path = support.folder(tmp_path / "birds")
    (path / "features.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"features.npz is not a .npz of plain arrays"):
        load(str(path))


def test_a_zip_with_other_files(tmp_path):
    path, buffer = support.folder(tmp_path / "birds"), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "x")
    (path / "features.npz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"features.npz has no features"):
        load(str(path))


def test_invalid_paths(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"holds no data set: it has no features.npz, res101.mat"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="cannot be written"):
        (tmp_path / "file").write_text("x")
        data.save_npz(support.dataset(), tmp_path / "file" / "out.npz")


# ----------------------------------------------------------------------------------------------------- joined by name


def features_of(tmp_path, names, **more):
    """A features.npz as `zsl features` writes it: class n is the n-th folder; image i of class n has the feature n."""
    labels = np.repeat(np.arange(1, len(names) + 1), 2)
    arrays = {"features": labels[:, None].astype(np.float32), "labels": labels, "class_names": np.array(names)}
    write_npz(tmp_path / "features.npz", {**arrays, "unseen_classes": np.array([1]), **more})
    return tmp_path / "features.npz"


def texts_of(*classes):
    ids, names = zip(*classes, strict=True)
    return ClassTexts(np.array(ids), list(names), articles=[f"about {name}" for name in names])


@pytest.mark.parametrize(
    "folders, texts",
    [
        ([str(i) for i in (1, 10, 11, 12, 2, 3)], [(i, f"flower {i}") for i in (12, 11, 10, 3, 2, 1)]),  # sorted as strings
        (["Red_Rose", "iris", "tulip"], [(7, "tulip"), (3, "IRIS"), (5, "red rose")]),
        (["003.Iris", "005.Red_Rose", "007.tulip"], [(7, "Tulip"), (3, "Iris"), (5, "Red Rose")]),
        (["003.Iris", "005.Red_Rose"], [(5, "005.Red_Rose"), (3, "003.Iris")]),
    ],
)
def test_features_and_texts_are_joined_by_name(folders, texts, tmp_path):
    data = load_npz(features_of(tmp_path, folders), texts_of(*texts))
    for label, feature in zip(data.labels, data.features[:, 0].astype(int), strict=True):
        folder, name = folders[feature - 1], data.class_names[label]
        assert folder == str(data.class_ids[label]) or "".join(filter(str.isalpha, folder.lower())) == "".join(
            filter(str.isalpha, name.lower())
        )
    assert data.unseen.tolist() == [data.labels[0]]


@pytest.mark.parametrize(
    "folders, texts, words",
    [
        (["rose", "iris"], [(1, "rose"), (2, "tulip")], "'iris' has no text; texts are for rose, tulip"),
        (["1", "3"], [(1, "rose"), (2, "tulip")], "'3' has no text"),
        (["001.rose", "002.iris"], [(2, "rose"), (1, "iris")], "'001.rose' has the number 001, but .* class 1 is 'iris'"),
        (["rose", "Rose "], [(1, "rose"), (2, "iris")], "two classes have the same text"),
        (["rose"], [(1, "rose"), (2, "Rose")], "'rose' has several texts"),
    ],
)
def test_names_that_do_not_match_are_refused(folders, texts, words, tmp_path):
    with pytest.raises(UserError, match=words):
        load_npz(features_of(tmp_path, folders), texts_of(*texts))


@pytest.mark.parametrize(
    "changes",
    [
        {"seen_test": np.array([-1])},
        {"seen_test": np.array([-1000])},
        {"features": np.zeros((120, 0))},
        {"features": np.full((120, 6), 1e300)},
        {"labels": np.array(3)},
        {"unseen_classes": np.array([[10]])},
    ],
    ids=str,
)
def test_arrays_of_other_values_than_they_should_have(tmp_path, changes):
    with pytest.raises(UserError) as caught, np.errstate(over="ignore"):
        load(str(support.folder(tmp_path / "birds", **changes)))
    assert "\n" not in str(caught.value)


def test_an_array_whose_header_claims_more(tmp_path):
    folder = support.folder(tmp_path / "birds")
    content = (folder / "features.npz").read_bytes()
    header = b"'shape': (120, 6), "
    assert header in content
    (folder / "features.npz").write_bytes(content.replace(header, b"'shape': (999999999, 6), "[: len(header)]))
    with pytest.raises(UserError, match=r"not a \.npz of plain arrays"):
        load(str(folder))
