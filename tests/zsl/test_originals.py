"""The folders of CIZSL, GAZSL and Xian et al., and pickles that contain more than arrays."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from tests.support import zsl as support
from tinyldm.errors import UserError
from zsl import convert, originals
from zsl.config import Convert
from zsl.division import divide
from zsl.load import load


@pytest.mark.parametrize("split", ["easy", "hard"])
def test_cub(tmp_path, split):
    folder = support.original_cub(tmp_path / "CUB2011", split)
    loaded = load(str(folder), split)
    assert loaded.name == f"CUB2011 {split}" and loaded.features.shape == (72, 7) and loaded.texts.shape == (12, 9)
    assert (loaded.unseen + 1).tolist() == [1, 4, 7, 10] and loaded.class_ids.tolist() == list(range(1, 13))
    ids = np.repeat([2, 3, 5, 6, 8, 9, 11, 12, 1, 4, 7, 10], 6)  # label i is the i-th id in train_cid, then in test_cid
    assert np.array_equal(loaded.class_ids[loaded.labels], ids)
    ending = "" if split == "easy" else "_hard"
    features = scipy.io.loadmat(folder / f"pfc_feat_test{ending}.mat")["pfc_feat"]
    assert np.array_equal(loaded.features[48:], features.astype(np.float32))


def test_the_hard_splits_have_the_published_validation_classes():
    assert originals.CUB.validation == {"easy": None, "hard": 30} and originals.NAB.validation["hard"] == 65


def test_gbu(tmp_path):
    loaded = load(str(support.gbu(tmp_path / "AWA2")))
    assert loaded.features.shape == (40, 6) and loaded.texts.shape == (8, 4) and loaded.class_names[0] == "animal 1"
    assert loaded.unseen.tolist() == [6, 7] and loaded.validation_classes.tolist() == [4, 5]
    division = divide(loaded, 0, 0.2)
    assert (
        len(division.train) == 24 and division.seen_test.tolist() == [0, 5, 10, 15, 20, 25] and len(division.unseen_test) == 10
    )


@pytest.mark.parametrize("make", [support.original_cub, support.gbu])
def test_converting_keeps_the_data_and_removes_pickles(tmp_path, make):
    folder = make(tmp_path / "original")
    message = convert.run(Convert(str(folder), str(tmp_path / "one.npz")))
    assert "unseen classes" in message and "SIMULATED" not in message
    one, two = load(str(folder)), load(str(tmp_path / "one.npz"))
    for key in ("features", "labels", "unseen", "texts", "class_ids", "seen_test", "validation_classes"):
        assert np.array_equal(getattr(one, key), getattr(two, key)), key
    with np.load(tmp_path / "one.npz", allow_pickle=False) as opened:
        assert all(opened[key].dtype != object for key in opened.files)


def test_simulated_features_stay_marked(tmp_path):
    folder = support.original_cub(tmp_path / "CUB2011")
    (folder / "SIMULATED").touch()
    assert "SIMULATED" in convert.run(Convert(str(folder), str(tmp_path / "one.npz")))
    assert load(str(tmp_path / "one.npz")).simulated


def test_pickles_of_python_2_and_3(tmp_path):
    labels = np.arange(40, dtype=np.uint8) % 7
    contents = [support.python2_array(labels), support.python2_scalars(labels), pickle.dumps(labels.astype(np.uint16))]
    contents += [pickle.dumps(labels, protocol) for protocol in (3, 4, 5)] + [pickle.dumps(list(range(40)), 2)]
    for content in contents:
        (tmp_path / "l.pkl").write_bytes(content)
        labels_read = originals.read_labels(tmp_path / "l.pkl")
        assert labels_read.dtype == np.int64 and labels_read.tolist() in (labels.tolist(), list(range(40)))


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch EXECUTED",), "posix.system|nt.system"),
        (eval, ("1",), "builtins.eval|__builtin__.eval"),
        (np.load, ("EXECUTED",), "numpy.*load"),
        (getattr, (np, "load"), "builtins.getattr|__builtin__.getattr"),
    ],
)
def test_a_pickle_that_contains_anything_else_is_refused_and_never_executed(
    tmp_path, monkeypatch, protocol, function, args, named
):
    monkeypatch.chdir(tmp_path)
    args = args if args[0] is not np else ((1, 2), "count")
    (tmp_path / "l.pkl").write_bytes(pickle.dumps([1, Evil(function, *args)], protocol))
    with pytest.raises(UserError, match=rf"l\.pkl is refused: it asks for ({named}); only arrays.*nothing is executed"):
        originals.read_labels(tmp_path / "l.pkl")
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(["a", "b"]), "refused: it holds a list, not integers"),
        (pickle.dumps(np.ones(3)), "refused: it holds f8, not integers"),
        (pickle.dumps(np.array([None])), "refused: it holds O8"),
        (pickle.dumps([True, False]), "refused: it holds a list"),
        (pickle.dumps([2**80]), "not a pickle of labels"),
        (b"", "not a pickle of labels"),
        (b"\x80\x02](K", "not a pickle of labels"),
    ],
)
def test_pickles_without_labels(tmp_path, content, words):
    (tmp_path / "l.pkl").write_bytes(content)
    with pytest.raises(UserError, match=words):
        originals.read_labels(tmp_path / "l.pkl")


def test_missing_or_inconsistent_files(tmp_path):
    folder = support.original_cub(tmp_path / "CUB2011")

    def check_refused(words):
        with pytest.raises(UserError, match=words) as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)

    features = folder / "pfc_feat_test.mat"
    kept = features.read_bytes()
    scipy.io.savemat(features, {"pfc_feat": np.ones((23, 7))})
    check_refused("has 23 rows, but labels_test.pkl has 24 labels")
    scipy.io.savemat(features, {"other": np.ones(3)})
    check_refused("has no pfc_feat; it has other")
    features.write_bytes(kept[:300])
    check_refused("cannot be read as a .mat")
    features.unlink()
    check_refused(r"pfc_feat_test.mat is missing; docs/zsl.md says where")
    features.write_bytes(kept)
    (folder / "labels_test.pkl").write_bytes(support.python2_array(np.full(24, 4, np.uint8)))
    check_refused("labels are out of range; the easy split has 4 test classes")
    scipy.io.savemat(folder / "train_test_split_easy.mat", {"train_cid": [range(1, 9)], "test_cid": [[9, 10, 11, 13]]})
    check_refused("class ids of the easy split are out of range; the texts have 12 classes")
    with pytest.raises(UserError, match=r"train_test_split_hard\.mat is missing"):
        load(str(folder), "hard")
    with pytest.raises(UserError, match="is not an original folder"):
        convert.run(Convert(str(tmp_path), str(tmp_path / "x.npz")))


def test_gbu_rows_out_of_range(tmp_path):
    folder = support.gbu(tmp_path / "AWA2")
    content = {key: value for key, value in scipy.io.loadmat(folder / "att_splits.mat").items() if key[0] != "_"}
    scipy.io.savemat(folder / "att_splits.mat", {**content, "test_unseen_loc": np.array([[41]])})
    with pytest.raises(UserError, match="test_unseen_loc is outside the range 1 to 40"):
        load(str(folder))


@support.needs_cub_wiki
@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("CUB2011", "easy", (150, 50, 8855, 2933)),
        ("CUB2011", "hard", (160, 40, 9410, 2378)),
        ("NABird", "easy", (323, 81, 39230, 9332)),
        ("NABird", "hard", (323, 81, 39699, 8863)),
    ],
)
def test_the_real_splits_and_labels(name, split, counts):
    """Class and image counts as published."""
    folder, names = support.CUB_WIKI / name, originals.NAB if name == "NABird" else originals.CUB
    train, test = originals.read_mat(folder / names.split.format(split=split), "train_cid", "test_cid")
    labels = [originals.read_labels(folder / names.labels[split].format(part=part)) for part in ("train", "test")]
    assert (train.size, test.size, len(labels[0]), len(labels[1])) == counts
    for own, ids in zip(labels, (train, test), strict=True):
        assert np.array_equal(np.unique(own), np.arange(ids.size))
        assert name == "NABird" or (np.diff(own) >= 0).all()  # CUB's are sorted, NABird's are not
    assert not set(train.ravel()) & set(test.ravel())


def nested(levels: int) -> bytes:
    """A pickle of lists in lists, which stands for 10^levels numbers."""
    rest = b"".join(b"]q" + bytes([level]) + b"(" + (b"h" + bytes([level - 1])) * 10 + b"e" for level in range(1, levels))
    return b"\x80\x02]q\x00(K\x01K\x02e" + rest + b"."


NUMPY = b"\x80\x02cnumpy.core.multiarray\n"
BOMBS = {
    "a memo of 2^31 objects": b"\x80\x02]r\xff\xff\xff\x7fa.",
    "a text of 1 TiB": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "lists in lists": nested(12),
    "a scalar of 9 GB": NUMPY + b"scalar\ncnumpy\ndtype\nU\x0bV9000000000K\x00K\x01\x87R\x85R.",
    "an array of 4 GB": b"\x80\x02cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x01\x85\x85R.",
    "an array to be of 8 GB": NUMPY + b"_reconstruct\ncnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x02\x85U\x01b\x87R.",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_pickles_that_claim_to_be_huge(tmp_path, content):
    (tmp_path / "l.pkl").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError):
        originals.read_labels(tmp_path / "l.pkl")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_a_mat_that_grows_like_no_real_one(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.zeros((100, 400_000), np.float32), "y": np.ones(3)}, do_compression=True)
    with pytest.raises(UserError, match=r"a\.mat cannot be read as a \.mat \(it would grow from"):
        originals.read_mat(tmp_path / "a.mat", "x")
    assert originals.read_mat(tmp_path / "a.mat", "y")[0].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("missing", [["train_loc"], ["val_loc"], ["train_loc", "val_loc", "trainval_loc"]])
def test_lists_that_the_data_set_does_not_need_may_be_missing(tmp_path, missing):
    folder = support.gbu(tmp_path / "AWA")
    whole = load(str(folder))
    parts = scipy.io.loadmat(folder / "att_splits.mat")
    kept = {key: value for key, value in parts.items() if not key.startswith("__") and key not in missing}
    scipy.io.savemat(folder / "att_splits.mat", kept)
    data = load(str(folder))
    assert data.validation_classes is None and whole.validation_classes is not None
    assert (data.seen_test == whole.seen_test).all() and (data.unseen == whole.unseen).all()


@pytest.mark.parametrize("content", ["abc", np.zeros((3, 3, 3)), scipy.sparse.eye(60).tocsc()], ids=["text", "cube", "sparse"])
def test_variables_of_another_kind(tmp_path, content):
    folder = support.original_cub(tmp_path / "CUB2011")
    for name, key in (("pfc_feat_train.mat", "pfc_feat"), ("train_test_split_easy.mat", "train_cid")):
        before = (folder / name).read_bytes()
        scipy.io.savemat(folder / name, {"test_cid": np.ones((1, 1)), key: content})
        with pytest.raises(UserError):
            load(str(folder))
        (folder / name).write_bytes(before)
