"""Measures a model's samples, or images from files, against real images.

Two anchors stand beside the metrics of the samples, with as many images and the same reference. `real images` is the result
of a perfect model: images of the part of the data that is not the reference. Two halves of the reference would not do, since
a Frechet distance depends on the number of images. `reconstructions` are the same real images after the model's own first
stage: the result of a denoiser without error.
"""

from typing import Any

import numpy as np
import torch

from tinyldm import pictures
from tinyldm.errors import UserError
from tinyldm.evaluation import sheets, sweep
from tinyldm.evaluation.first_stage import reconstruct
from tinyldm.evaluation.labels import Labelled, LabelMetrics, renumber
from tinyldm.evaluation.models import draw
from tinyldm.evaluation.small import give_small
from tinyldm.evaluation.workspace import OTHER, REAL, RECONSTRUCTIONS, SAMPLES, START_OVER, Workspace, entry
from tinyldm.first_stage.autoencoder import FirstStage
from tinyldm.metrics import distances
from tinyldm.metrics.chunks import Arrays, Chunks, fill
from tinyldm.metrics.image_sets import ImageSet, open_images, pick
from tinyldm.models.model import Model

NUM_IMAGES = 10_000
PROBE_IMAGES = 5_000  # of the training part, chosen at random, to learn to read labels from


def measure_samples(workspace: Workspace, model: Model | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare a model's samples, or images from files, with the reference.

    Returns:
        The key of the images with their count, and the result for evaluation.json.
    """
    config, given = workspace.config, None
    if config.images is not None:
        given = open_images(config.images, config.data, config.batch_size, config.num_images is not None)
    measured = measured_labels(workspace, model)
    part, reference, description = workspace.reference(config.num_reference)
    if given is not None:
        images, count = given, min(filter(None, (config.num_images, given.count)))
    else:
        assert model is not None  # Evaluate.check: either a model or images
        count = config.num_images or NUM_IMAGES
        model.small_from = give_small(workspace, model, count)
        images = draw(config, model, count, workspace.manifest.own_folder(workspace.output / "drawn"), START_OVER)
    columns = {SAMPLES: workspace.own_features("samples", images, count, workspace.network.embed)}
    if config.anchors:
        columns |= anchors(workspace, model, OTHER[part], count)
    metrics: dict[str, dict[str, Any]] = {}
    for column, arrays in columns.items():
        for name, value in workspace.compare(arrays, reference, config.chosen).items():
            metrics.setdefault(name, {})[column] = value
    result: dict[str, Any] = {"reference": description, "figures": metrics}
    samples = columns[SAMPLES]["features"]
    add_notes(workspace, images, samples, columns.get(REAL))
    labels = None
    if measured and model is not None:
        labels = label_metrics(workspace, model, measured, part, description["order"], reference, len(samples))
        result["labels"] = labels.accuracies(samples)
        result["values"] = labels.by_value(samples)
        workspace.notes += labels.notes
    if config.sweep and model is not None:
        result["sweep"] = sweep.run(workspace, model, columns[SAMPLES], reference, labels)
    if "memorisation" in config.chosen:
        result["memorisation"] = memorisation(workspace, samples, images)
    save_pictures(workspace, model, images, len(samples))
    return {**images.key, "count": len(samples)}, result


def anchors(workspace: Workspace, model: Model | None, part: str, count: int) -> dict[str, Arrays]:
    """Features of real images of a part, and of their reconstructions if the model has a first stage."""
    real = workspace.part_features(part, count)
    number = len(real["features"])
    if number < distances.MIN_IMAGES:
        workspace.notes.append(f"no anchors: the {part} part has only {number} images; see data.eval_fraction")
        return {}
    if model is None or model.first_stage is None:
        return {REAL: real}
    first_stage = FirstStage(model.first_stage)
    reconstructions = workspace.own_features(
        f"{RECONSTRUCTIONS}-{part}",
        workspace.part(part, number),
        number,
        lambda batch: workspace.network.embed(reconstruct(first_stage, batch)[1]),
        first_stage=first_stage.fingerprint(),
        dtype=workspace.config.dtype,
    )
    return {REAL: real, RECONSTRUCTIONS: reconstructions}


def add_notes(workspace: Workspace, images: ImageSet, samples: np.ndarray, real: Arrays | None) -> None:
    """Note what limits the comparison."""
    count, width = samples.shape
    if count <= width:
        workspace.notes.append(
            f"{count} images are fewer than the {width} features: distances are much larger than with more images; "
            "compare them only at this number"
        )
    if real is not None and len(real["features"]) < count:
        workspace.notes.append(
            f"the anchors use only {len(real['features'])} images, all of their part: their distances are larger than "
            f"with {count} images"
        )
    if "JPEG" in images.key["format"]:
        workspace.notes.append("JPEG files: the compression itself changes every distance")


def memorisation(workspace: Workspace, samples: np.ndarray, images: ImageSet) -> dict[str, Any]:
    """Are samples copies of training images? Compare their distances to the nearest one with those of held-out images."""
    train, held_out = workspace.part_features("train", None)["features"], workspace.part_features("held_out", None)["features"]
    nearest, indices = distances.nearest(samples, train, 3)
    to_train, fresh = nearest[:, 0], distances.nearest(held_out, train, 1)[0][:, 0]
    save_neighbours(workspace, images, to_train, indices)
    limit = np.quantile(fresh, 0.01)
    return {
        "nearer": entry(distances.nearer(to_train, fresh), len(samples)),
        "as_near_as_1_percent": entry(distances.average((to_train <= limit).astype(float)), len(samples)),
        "median_distance": {SAMPLES: float(np.median(to_train)), "held-out images": float(np.median(fresh))},
        "smallest_distance": {SAMPLES: float(to_train.min()), "held-out images": float(fresh.min())},
        "train_images": len(train),
        "held_out_images": len(held_out),
    }


def save_neighbours(workspace: Workspace, images: ImageSet, to_train: np.ndarray, indices: np.ndarray) -> None:
    """Save a picture of samples, each followed by its three nearest training images.

    On the left are the eight samples nearest to training images, on the right the first eight samples.
    """
    closest = np.argsort(to_train, kind="stable")[:8]
    rows = np.stack([closest, np.arange(len(closest))], 1).ravel()
    neighbours, places = np.unique(indices[rows], return_inverse=True)
    near = pick(workspace.parts["train"], neighbours)[places.reshape(-1)].unflatten(0, (len(rows), -1))
    tiles = torch.cat([pick(images, rows)[:, None], near], 1)
    pictures.grid(tiles.flatten(0, 1), 2 * tiles.shape[1]).save(
        workspace.manifest.own(workspace.output / f"neighbours-{workspace.network.name}.png")
    )


# ------------------------------------------------------------------------------------------------------------------ labels


def measured_labels(workspace: Workspace, model: Model | None) -> dict[str, list[str]]:
    """The labels of the samples that the data have too, with the values that the model or its classifier knows.

    Raises:
        UserError: if nothing else is to be measured, and there are none.
    """
    if "labels" not in workspace.config.chosen or model is None:
        return {}
    columns = [column.name for column in workspace.sources["train"].labels]
    teller = model.classifier or model.labels
    told = model.drawn_labels(range(1), workspace.config)
    known = {} if teller is None else {name: teller.values[name] for name in told}
    shared = {name: values for name, values in known.items() if name in columns}
    reason = f"set data.label_columns to labels of the model ({', '.join(known)})" if known else "the model has no labels"
    if not shared and workspace.config.chosen == ["labels"]:
        raise UserError(f"metrics is labels, which cannot be measured: {reason}")
    if known and not shared:
        workspace.notes.append(f"no label accuracy: {reason}")
    return shared


def label_metrics(
    workspace: Workspace,
    model: Model,
    measured: dict[str, list[str]],
    part: str,
    order: str | None,
    reference: np.ndarray,
    count: int,
) -> LabelMetrics:
    """What measures the labels of `count` samples.

    Args:
        measured: see measured_labels.
        part, order, reference: see Workspace.reference.
    """
    config = workspace.config

    def labelled(part: str, limit: int | None, features: np.ndarray | None = None) -> Labelled:
        if features is None:
            features = workspace.part_features(part, limit)["features"]
        labels = renumber(workspace.part_labels(part, limit), workspace.sources[part].labels, measured)
        if len(labels) != len(features):
            raise UserError(f"the reference {config.reference} is of other images than data.name has now: remove --reference")
        return Labelled(features, labels)

    ours = labelled(part, len(reference) if order else None, reference)
    train = labelled("train", PROBE_IMAGES)
    held_out = ours if part == "held_out" else labelled("held_out", config.num_reference)
    told = model.drawn_labels(range(config.seed, config.seed + count), config)
    drawn = np.stack([told[name].numpy() for name in measured], 1)
    others = (train if part == "held_out" else held_out) if config.anchors else None
    return LabelMetrics(measured, drawn, train, held_out, ours, others)


# ---------------------------------------------------------------------------------------------------------------- pictures


def save_pictures(workspace: Workspace, model: Model | None, images: ImageSet, count: int) -> None:
    """Save the first samples and, of a model with labels or a guide, the sheets of labels and of guidance scales."""
    config, output, own = workspace.config, workspace.output, workspace.manifest.own
    pictures.grid(pick(images, np.arange(min(64, count)))).save(own(output / "samples.png"))
    for sheet in sheets.of_model(model, config, config.seed) if model else []:
        key = {**images.key, "columns": sheet.captions}
        chunks = Chunks(workspace.manifest.own_folder(output / "sheets" / sheet.name), key, START_OVER)
        fill(chunks, sheet.count, sheet.batches, lambda batch: {"images": batch.numpy()}, f"drawing {sheet.name}.png")
        sheet.picture(torch.from_numpy(chunks.read(sheet.count)["images"])).save(own(output / f"{sheet.name}.png"))
