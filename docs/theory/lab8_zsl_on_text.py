# %% [markdown]
# # Lab 8: which differences between methods are more than chance
# Reads results.csv of two runs of `python -m zsl train` (docs/results): a line a method, seed, protocol and figure.
# All methods of a seed share held-out classes, first weights, batches and noise, so they are compared seed by seed. The
# tests are written out by hand and held against SciPy. The chapter is 8-zsl-on-text.md.

# %%
import csv
import itertools
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from labkit import HERE, Record, holm
from scipy import stats

RESULTS = HERE.parent / "results" / "zsl-flowers" / "results.csv"
NEIGHBOURS = HERE.parent / "results" / "zsl-flowers-anchors" / "results.csv"  # classes described by their neighbours
BASELINES, FIGURES = ("prototype", "eszsl"), ("top1", "per_class_top1", "unseen", "seen", "h", "auc")
record = Record("8-zsl-on-text")


# %% The paired t-test by hand
def student(t: float, freedom: int) -> float:
    """P(|T| > |t|) of Student's t: the density by the trapezoid rule, t = sqrt(freedom) tan(angle)."""
    angles = np.linspace(0, math.atan(abs(t) / math.sqrt(freedom)), 20_001)
    density = np.cos(angles) ** (freedom - 1)
    whole = math.sqrt(math.pi) * math.gamma(freedom / 2) / math.gamma((freedom + 1) / 2)
    return 1 - 2 * np.trapezoid(density, angles) / whole


def paired(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean, half of the 95% interval, and p of no difference, of n differences."""
    n = len(differences)
    error = differences.std(ddof=1) / math.sqrt(n)
    return differences.mean(), stats.t.ppf(0.975, n - 1) * error, student(differences.mean() / error, n - 1)


def flips(differences: np.ndarray) -> float:
    """p by turning signs: the share of the 2^n choices of signs whose sum is as far from 0. No normal distribution needed."""
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12))


x = 2.5 / math.sqrt(1 + 2.5**2 / 4)  # with 4 degrees of freedom the distribution has a closed form
record.number("student_4", student(2.5, 4), 1 - 3 / 4 * x * (1 - x**2 / 12), 1e-6)
record.number("t_limit", stats.t.ppf(0.975, 4))
random = np.random.default_rng(0)
some = random.normal(1, 1, 5)
record.number("p_by_hand", paired(some)[2], stats.ttest_1samp(some, 0).pvalue, 1e-6)
exact = stats.permutation_test((some,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
record.number("p_by_signs", flips(some), exact, 1e-9)
record.number("p_by_signs_least", flips(np.arange(1.0, 6.0)), 2 / 2**5, 1e-12)

# %% What five seeds can show: the chance that the test finds a difference of so many deviations
sizes, chances = np.linspace(0, 4, 41), {}
for n in (5, 10, 20):
    drawn = random.normal(size=(4000, n))
    t = (drawn.mean(1)[:, None] + sizes) / (drawn.std(1, ddof=1) / math.sqrt(n))[:, None]
    chances[n] = (np.abs(t) > stats.t.ppf(0.975, n - 1)).mean(0)
    exact = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, math.sqrt(n)) + stats.nct.cdf(
        -stats.t.ppf(0.975, n - 1), n - 1, math.sqrt(n)
    )
    record.number(f"power_{n}", exact, chances[n][10], 0.04)  # of one deviation
record.number("needed_5", sizes[np.argmax(chances[5] > 0.8)], machine=0.1)
record.number("false_alarms", chances[5][0], 0.05, 0.015, machine=0.01)

# %% The run
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", width_ratios=(1, 1.5))
for n, chance in chances.items():
    axes[0].plot(sizes, chance, label=f"{n} seeds")
axes[0].set(
    xlabel="true difference / deviation", ylabel="chance that p < 0.05", ylim=(0, 1), title="Few seeds miss small effects"
)
axes[0].legend()


Table = dict[tuple[str, str, str], dict[int, float]]  # (method, protocol, metric) -> seed -> percent


def key(method: str) -> str:
    return method.replace("-", "_").replace("+", "plus")


def read(file: Path) -> Table:
    found: Table = {}
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            found.setdefault((row["method"], row["protocol"], row["metric"]), {})[int(row["seed"])] = 100 * float(row["value"])
    return found


def differences_from_gazsl(table: Table, method: str, metric: str, protocol: str = "honest") -> np.ndarray:
    mine, other = table[method, protocol, metric], table["gazsl", protocol, metric]
    return np.array([mine[seed] - other[seed] for seed in mine if seed in other])


def spread(table: Table, method: str, metric: str) -> float:
    """The deviation over seeds."""
    return np.std(list(table[method, "honest", metric].values()), ddof=1)


how = "python -m zsl train, with the settings that docs/zsl-results.md has for it, then copy its results.csv"
if record.waits(RESULTS, how) or record.waits(NEIGHBOURS, how):
    axes[1].text(0.5, 0.5, "the run is not there yet", ha="center", transform=axes[1].transAxes)
    axes[1].set_axis_off()
else:
    table = read(RESULTS)
    seeds = len(table["gazsl", "honest", "top1"])
    methods = [name for name in dict.fromkeys(method for method, _, _ in table) if len(table[name, "honest", "top1"]) == seeds]
    if left_out := {name for name, _, _ in table} - set(methods):
        print("left out, since some seeds are missing:", ", ".join(sorted(left_out)))
    creative = [method for method in methods if method not in ("gazsl", *BASELINES)]
    record.number("seeds", seeds)
    record.number("creative_methods", len(creative))
    for (method, protocol, metric), values in ((where, values) for where, values in table.items() if where[0] in methods):
        of_seeds = np.array(list(values.values()))
        record.number(f"{key(method)}_{protocol}_{metric}", of_seeds.mean())
        record.number(f"{key(method)}_{protocol}_{metric}_sd", of_seeds.std(ddof=1))

    for method, metric in (("gazsl", "top1"), ("gazsl", "auc"), ("cizsl", "auc"), ("prototype", "auc")):  # beside curve.png
        record.number(f"first_{method}_{metric}", table[method, "honest", metric][0])

    # Each against GAZSL, and Holm's correction for the creative ones, of which there are many
    shown = {}
    for metric in ("top1", "auc", "h"):
        ps = {}
        for method in [*creative, *BASELINES]:
            differences = differences_from_gazsl(table, method, metric)
            mean, half, p = paired(differences)
            assert abs(p - stats.ttest_1samp(differences, 0).pvalue) < 1e-5
            name = f"{key(method)}_gain_{metric}"
            for suffix, value in (("", mean), ("_half", half), ("_p", p), ("_ahead", (differences > 0).sum())):
                record.number(name + suffix, value)
            if method in creative:
                ps[method] = p
            if metric == "top1":
                shown[method] = differences, mean, half
        for method, p in zip(ps, holm(list(ps.values())), strict=True):
            record.number(f"{key(method)}_gain_{metric}_holm", p)
            ps[method] = p
        gains = {method: record.numbers[f"{key(method)}_gain_{metric}"]["value"] for method in creative}
        record.number(f"ahead_{metric}", sum(gain > 0 for gain in gains.values()))
        record.number(f"better_{metric}", sum(gains[method] > 0 and p < 0.05 for method, p in ps.items()))
        record.number(f"worse_{metric}", sum(gains[method] < 0 and p < 0.05 for method, p in ps.items()))
        record.number(f"largest_gain_{metric}", max(gains.values()))
        record.number(f"smallest_gain_{metric}", min(gains.values()))
    generative = ["gazsl", *creative]
    for metric in ("top1", "auc"):
        record.number(f"best_generative_{metric}", max(np.mean(list(table[m, "honest", metric].values())) for m in generative))
        record.number(f"best_baseline_{metric}", max(np.mean(list(table[m, "honest", metric].values())) for m in BASELINES))
        flattery = [np.mean(list(table[m, "published", metric].values())) - np.mean(list(table[m, "honest", metric].values()))
                    for m in generative]  # fmt: skip
        record.number(f"flattery_{metric}", np.mean(flattery))
        # What the conclusion says: the prototype is ahead in each seed; choosing gained more than any difference
        assert all((differences_from_gazsl(table, "prototype", metric) > differences_from_gazsl(table, m, metric)).all()
                   for m in generative)  # fmt: skip
        assert all(abs(record.numbers[f"{key(m)}_gain_{metric}"]["value"]) < np.mean(flattery) for m in creative)
        newer = differences_from_gazsl(table, "cizslv2", metric) - differences_from_gazsl(table, "cizsl", metric)
        record.number(f"newer_{metric}", newer.mean())
        record.number(f"newer_{metric}_p", paired(newer)[2])
        # Pairing: is the deviation of the differences less than that of independent columns, whose variances would add?
        for kind, of_kind in (("creative", creative), ("plain", BASELINES)):
            apart = {method: math.hypot(spread(table, method, metric), spread(table, "gazsl", metric)) for method in of_kind}
            gained = [differences_from_gazsl(table, method, metric).std(ddof=1) < apart[method] for method in of_kind]
            record.number(f"paired_{kind}_{metric}", sum(gained))

    # The second run, and Holm's correction for the creative comparisons of both runs, in top-1 and AUC
    runs = {"": (table, creative), "second_": (second := read(NEIGHBOURS), ("cizsl", "cizslv2"))}
    ps = {}
    for run, (of_run, methods) in runs.items():
        for method, metric in itertools.product(methods, ("top1", "auc")):
            ps[f"{run}{key(method)}_gain_{metric}"] = paired(differences_from_gazsl(of_run, method, metric))[2]
    record.number("comparisons", len(ps))
    ps = dict(zip(ps, holm(list(ps.values())), strict=True))
    record.number("cizslv2_gain_auc_holm_of_both", ps["cizslv2_gain_auc"])
    for method, metric in itertools.product(runs["second_"][1], ("top1", "auc")):
        name, differences = f"second_{key(method)}_gain_{metric}", differences_from_gazsl(second, method, metric)
        record.number(f"{name}_least", differences.min())
        record.number(f"{name}_most", differences.max())
        record.number(f"{name}_ahead", (differences > 0).sum())
        for suffix, value in zip(("", "_half", "_p"), paired(differences), strict=True):
            record.number(f"{name}{suffix}", value)
        record.number(f"{name}_holm", ps[name])
        record.number(f"{name}_published", differences_from_gazsl(second, method, metric, "published").mean())
    ahead = [record.numbers[f"second_cizsl_gain_{figure}_ahead"]["value"] for figure in ("top1", "auc")]
    assert ahead == [seeds, 0] and ps["second_cizsl_gain_top1"] < 0.05 < ps["second_cizsl_gain_auc"]
    for place, (differences, mean, half) in enumerate(shown.values()):
        axes[1].plot(differences, [place] * len(differences), "o", ms=4, color="0.7")
        axes[1].errorbar(mean, place, xerr=half, fmt="s", color="C0", capsize=3)
    axes[1].axvline(0, color="black", lw=0.8)
    axes[1].set_yticks(range(len(shown)), list(shown))
    axes[1].invert_yaxis()
    axes[1].set(xlabel="top-1 minus GAZSL's, points: seeds, mean, 95% interval", title="No creative method is surely ahead")

# %%
record.figure(figure)
record.save()
