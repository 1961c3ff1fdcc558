"""Whole runs: files, repeatability, exact resuming after a kill, and errors before training."""

import csv
import json
import math
import shutil
import signal

import numpy as np
import pytest
from scipy.stats import ttest_rel

from tests.support import zsl as support
from tests.support.processes import Training
from tests.support.runs import files
from tests.zsl.conftest import METHODS
from tinyldm.errors import UserError
from zsl import report
from zsl.__main__ import main

pytestmark = pytest.mark.usefixtures("no_feature_plots")
METRICS = {"top1", "per_class_top1", "h", "seen", "unseen", "auc"}


def train(path, birds, *args) -> None:
    main(["train", *map(str, ["--data.path", birds, "--output_dir", path, *support.TINY, *args])])


def results(path) -> list[dict[str, str]]:
    with (path / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_of_a_run(tiny_run):
    jobs = {"gazsl": ["choose", "final"]}
    for method in ("cizsl", "cizsl-kl", "cizslv2"):
        jobs[method] = [f"{stage}-{weight}" for stage in ("choose", "final") for weight in ("0.1", "1")]
    first_seed = {f"jobs/{method}/seed-0/{job}/result.json" for method, names in jobs.items() for job in names}
    models = {f"model/{method}/seed-{seed}.safetensors" for method in jobs for seed in (0, 1)}
    pictures = {"curve.png", "curve.csv", *(f"features-{method}.png" for method in jobs)}
    written = {name for name in files(tiny_run) if not name.endswith((".lock", ".manifest"))}
    assert {name for name in written if "seed-1/" not in name} == first_seed | models | pictures | {
        "config.yaml",
        "data.sha256",
        "results.csv",
        "README.md",
        "model/classes.npz",
    }
    # The second seed uses only the weights that were chosen with the first seed.
    second = {name for name in written if "seed-1/" in name}
    assert second >= {"jobs/gazsl/seed-1/choose/result.json", "jobs/gazsl/seed-1/final/result.json"}
    for method in ("cizsl", "cizsl-kl", "cizslv2"):
        weights = {row["weight"] for row in results(tiny_run) if row["method"] == method}
        assert {name.split("/")[3] for name in second if f"/{method}/" in name and "/final-" in name} == {
            f"final-{float(weight):g}" for weight in weights
        }


def test_results_have_one_line_per_method_seed_protocol_and_metric(tiny_run):
    rows = results(tiny_run)
    keys = [tuple(row[key] for key in ("method", "seed", "protocol", "metric")) for row in rows]
    assert len(set(keys)) == len(keys)
    methods = ["prototype", "eszsl", *METHODS.split(",")]
    assert set(keys) == {(m, s, p, k) for m in methods for s in "01" for p in ("honest", "published") for k in METRICS}
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert all((row["weight"] == "") == (row["method"] in ("prototype", "eszsl", "gazsl")) for row in rows)


def test_the_protocols_select_from_the_evaluations_of_the_jobs(tiny_run):
    """honest: the iteration that is best on held-out classes. published: the best value on the test classes."""

    def job(name):
        return json.loads((tiny_run / "jobs" / "gazsl" / "seed-1" / name / "result.json").read_text())

    choose, final = job("choose"), job("final")
    assert [row["iteration"] for row in final] == [2, 4, 6, 8]
    reported = {(r["protocol"], r["metric"]): r for r in results(tiny_run) if (r["method"], r["seed"]) == ("gazsl", "1")}
    for metric in ("top1", "auc", "h"):
        best = max(choose, key=lambda row, metric=metric: row[metric])["iteration"]
        [row] = [row for row in final if row["iteration"] == best]
        assert reported["honest", metric]["chosen"] == f"iteration {best}"
        assert float(reported["honest", metric]["value"]) == row[metric]
        key = "auc_train" if metric == "auc" else metric
        assert float(reported["published", metric]["value"]) == max(row[key] for row in final)
    h = next(row for row in final if row["h"] == float(reported["published", "h"]["value"]))
    assert (
        float(reported["published", "seen"]["value"]) == h["seen"]
        and float(reported["published", "unseen"]["value"]) == h["unseen"]
    )


def test_the_report_has_both_protocols_and_the_numbers_of_the_run(tiny_run):
    card = (tiny_run / "README.md").read_text()
    assert card.index("## Honest protocol") < card.index("## Published protocol") and "SIMULATED" not in card
    assert "2 seeds from 0, corrected arithmetic" in card and "7 seen classes, 3 unseen (chance 33.3%)" in card
    saved = report.read_results(tiny_run / "results.csv")
    top1 = list(report.values(saved, "cizsl", "honest", "top1").values())
    assert f"| cizsl | {np.mean(top1):.1f} ± {np.std(top1, ddof=1):.1f} |" in card
    differences = np.array(top1) - list(report.values(saved, "gazsl", "honest", "top1").values())
    assert f"| cizsl | {differences.mean():+.1f} ± {differences.std(ddof=1):.1f} |" in card
    for picture in ("curve.png", "features-cizslv2.png"):
        assert f"![{picture}]({picture})" in card and (tiny_run / picture).read_bytes()[:4] == b"\x89PNG"
    assert "creativity_weights:" in card and "Creativity weights: cizsl: " in card


def test_the_paired_test_equals_scipys():
    rows = [report.Result("gazsl", s, "honest", "top1", v, None, "") for s, v in enumerate((0.1, 0.2, 0.15))]
    rows += [report.Result("cizsl", s, "honest", "top1", v, None, "") for s, v in enumerate((0.2, 0.22, 0.14))]
    [_, row] = report.paired(rows, "honest", "top1", "gazsl")
    assert row == ["cizsl", "+3.7 ± 5.7", f"{ttest_rel((0.2, 0.22, 0.14), (0.1, 0.2, 0.15)).pvalue:.2g}", "2 of 3"]


def state(path) -> dict[str, bytes]:
    """Files that must be equal in two runs with the same settings."""
    compared = [
        *path.glob("jobs/**/result.json"),
        *path.glob("model/**/*.safetensors"),
        path / "results.csv",
        path / "curve.csv",
    ]
    return {str(file.relative_to(path)): file.read_bytes() for file in compared}


def test_a_run_repeats_bit_for_bit(tiny_run, birds, tmp_path):
    train(tmp_path / "again", birds, "--method", METHODS, "--train.creativity_weights", "[0.1, 1.0]")
    assert state(tmp_path / "again") == state(tiny_run)


@pytest.fixture(scope="module")
def uninterrupted(birds, tmp_path_factory):
    """Arguments of a run, its files after an uninterrupted training, and how often it changed files."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    args = ["train", "--data.path", str(birds), "--method", "gazsl,cizsl", *support.TINY, "--seeds", "1"]
    training = Training("zsl.__main__", [*args, "--output_dir", folder / "run"], folder / "printed.txt")
    assert training.wait() == 0, training.text()
    return args, state(folder / "run"), training.changes


@pytest.mark.parametrize("change", [0.15, 0.5, 0.85])
def test_a_killed_run_resumes_bit_for_bit(uninterrupted, tmp_path, change):
    """SIGKILL before a file changes, in the middle of a save or of a job; then --resume latest."""
    args, expected, changes = uninterrupted
    args = [*args, "--resume", "latest", "--output_dir", tmp_path / "run"]
    killed = Training("zsl.__main__", args, tmp_path / "1.txt", signal.SIGKILL, int(change * changes))
    assert killed.wait() == -signal.SIGKILL, killed.text()
    resumed = Training("zsl.__main__", args, tmp_path / "2.txt")
    assert resumed.wait() == 0, resumed.text()
    assert state(tmp_path / "run") == expected
    assert not [file for file in (tmp_path / "run").rglob(".*") if file.name not in (".lock", ".manifest")]


def test_a_resumed_run_may_have_more_seeds_and_methods_but_no_other_changes(birds, tmp_path):
    train(tmp_path / "run", birds, "--method", "gazsl", "--seeds", 1)
    one = state(tmp_path / "run")
    train(tmp_path / "run", birds, "--method", "gazsl,cizsl", "--resume", "latest")
    two = state(tmp_path / "run")
    jobs = [name for name in one if name.startswith("jobs/")]
    assert len(jobs) == 2 and all(one[name] == two[name] for name in jobs) and len(two) == 8 + 4 + 2
    with pytest.raises(UserError, match=r"changed since .* was started: train .*use another output_dir"):
        train(tmp_path / "run", birds, "--resume", "latest", "--train.learning_rate", 0.1)
    other = shutil.copytree(birds, tmp_path / "birds")
    arrays = dict(np.load(other / "features.npz"))
    np.savez(other / "features.npz", **{**arrays, "features": arrays["features"] + 1})
    with pytest.raises(UserError, match=r"changed since .* was started: data"):
        train(tmp_path / "run", other, "--resume", "latest")
    with pytest.raises(UserError, match="holds a run already"):
        train(tmp_path / "run", birds)


def test_a_run_with_other_data_at_the_same_path_is_not_resumed(tmp_path):
    path = support.folder(tmp_path / "birds")
    train(tmp_path / "run", path, "--method", "gazsl", "--seeds", 1)
    arrays = dict(np.load(path / "features.npz"))
    np.savez(path / "features.npz", **{**arrays, "features": arrays["features"] + 1})
    with pytest.raises(UserError, match=r"is not the data that .* was started with"):
        train(tmp_path / "run", path, "--method", "gazsl", "--seeds", 2, "--resume", "latest")


def test_a_diverged_training_is_reported_and_the_others_continue(birds, tmp_path, capfd):
    train(tmp_path / "run", birds, "--method", "gazsl", "--seeds", 1, "--train.learning_rate", 1e30)
    printed = capfd.readouterr()
    assert "gazsl, seed 0: training diverged before its first evaluation and has no results" in printed.err
    assert "the generator is not finite at iteration 2; training stops" in printed.out + printed.err
    assert {row["method"] for row in results(tmp_path / "run")} == {"prototype", "eszsl"}


def test_without_held_out_images_there_is_no_honest_seen_accuracy(birds, tmp_path):
    train(tmp_path / "run", birds, "--method", "gazsl", "--seeds", 1, "--data.held_out_images", 0)
    metrics = {row["metric"] for row in results(tmp_path / "run") if row["protocol"] == "honest"}
    assert metrics == {"top1", "per_class_top1"}
    assert {row["metric"] for row in results(tmp_path / "run") if row["protocol"] == "published"} >= {"top1", "auc"}
    assert "All images of seen classes were used for training" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("make", [support.original_cub, support.gbu])
def test_training_on_original_folders(make, tmp_path):
    folder = make(tmp_path / "original")
    (folder / "SIMULATED").touch()
    changes = ("--method", "cizsl", "--seeds", 1, "--model.text_size", "null", "--train.batch_size", 8, "--faithful", "true")
    train(tmp_path / "run", folder, *changes, "--train.eval_steps", 4)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "SIMULATED FEATURES" in card and "published arithmetic (faithful)" in card
    assert all(math.isfinite(float(row["value"])) for row in results(tmp_path / "run"))


@pytest.mark.parametrize("classifier", ["centroid", "softmax"])
def test_training_with_other_classifiers(birds, tmp_path, classifier):
    train(tmp_path / "run", birds, "--method", "gazsl", "--seeds", 1, "--evaluate.classifier", classifier)
    assert len(results(tmp_path / "run")) == 3 * 2 * 6


def test_a_batch_must_not_be_larger_than_the_data(birds, tmp_path):
    with pytest.raises(UserError, match=r"train.batch_size 90 is larger than the data: there are \d+ images to train on"):
        train(tmp_path / "run", birds, "--train.batch_size", 90)
