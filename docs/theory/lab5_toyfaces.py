# %% [markdown]
# # Lab 5, second part: a cascade of the product
# lab5_cascade.py trains for seconds. Here are the runs of run_cascade.py, which take hours: toyfaces of 16 px, a second stage
# from 16 to 64 px, and one model of 64 px with the same compute. The chapter is 5-cascades.md.

# %%
import json

import matplotlib.pyplot as plt
from labkit import HERE, Record

RESULTS = HERE.parent / "results" / "cascade"
record = Record("5-cascades-toyfaces")


def number(name: str, value: float) -> None:
    """Keep a number of these runs, beside those of the first part."""
    record.number(f"toyfaces_{name}", value)


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1, 1.9))
results = json.loads((RESULTS / "results.json").read_text())
levels = results["levels"]

# %% What was trained, and what it costs to draw an image
number("samples", results["num_images"])
for name, steps in results["steps"].items():
    number(f"steps_{name}", steps)
for name, seconds in results["seconds_per_image"].items():
    number(f"seconds_{name}", seconds)

# %% The distances by level of noise: of real small images (what the stage can do), of generated ones (what the cascade does)
curves = {kind: [row["fd"][0] for row in results[kind]] for kind in ("generated", "real")}
for kind, curve in curves.items():
    for level, distance, row in zip(levels, curve, results[kind], strict=True):
        number(f"level_{100 * level:.0f}", level)
        number(f"{kind}_{100 * level:.0f}", distance)
        number(f"{kind}_{100 * level:.0f}_error", row["fd"][1])
    assert curve == sorted(curve), "what the chapter says: noise only hurts"
single, floor = results["single"]["fd"], results["real images"]["fd"]
number("single", single[0])
number("single_error", single[1])
number("floor", floor[0])

# %% What generated conditions lose, and the cascade beside one model
number("compounding_error", curves["generated"][0] - curves["real"][0])
number("cascade_over_single", curves["generated"][0] / single[0])
number("single_precision", results["single"]["precision"][0])
number("cascade_precision", results["generated"][0]["precision"][0])

# %% The figure: both curves, and faces
for kind, marker in (("generated", "o-"), ("real", "^--")):
    left.plot(levels, curves[kind], marker, label=f"small faces: {kind}")
left.axhline(single[0], color="C3", linestyle=":", label="one model, same compute")
left.axhline(floor[0], color="grey", linestyle=":", label="real faces")
left.set(xlabel="noise in the condition", ylabel="Frechet distance, 64 px", title="Here noise only hurts")
left.legend()
names = {"small": "first stage", "none": "level 0", "much": "level 0.8", "single": "one model", "real": "data"}
rows = [plt.imread(RESULTS / f"{name}.png") for name in names]
width, height = rows[-1].shape[1], rows[-1].shape[0]
for i, row in enumerate(rows):
    right.imshow(row, extent=(0, width, (i + 1) * height, i * height))
right.set(xlim=(0, width), ylim=(len(rows) * height, 0), xticks=[], title="The cascade, one model, the data")
right.set_yticks([(i + 0.5) * height for i in range(len(rows))], list(names.values()))
record.figure(figure)
record.save()
