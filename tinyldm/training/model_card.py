"""The run's README.md: its report and its model card in one. Every number in it comes from the run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from tinyldm.config import parsing
from tinyldm.config.paths import shareable
from tinyldm.config.schema import DataConfig, TrainConfig
from tinyldm.data.identity import hub_id
from tinyldm.errors import UserError
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training import report
from tinyldm.training.report import TEMPLATES

LABELS = {
    "eval_loss": ("held-out loss", "loss"),
    "eval_fd": ("Frechet distance", "frechet_distance"),
    "fd_guided": ("Frechet distance with guidance", "frechet_distance_guided"),
    "fd_unguided": ("Frechet distance without guidance, same seeds", "frechet_distance_unguided"),
    "eval_bits": ("bits per dimension", "bits_per_dimension"),
    "eval_bits_prior": ("bits per dimension of the prior", "bits_prior"),
    "eval_bits_steps": ("bits per dimension of the steps", "bits_steps"),
    "eval_bits_decoder": ("bits per dimension of the decoder", "bits_decoder"),
    "eval_accuracy": ("accuracy over all labels and noise levels", "accuracy"),
    "eval_psnr": ("PSNR in dB", "psnr"),
    "eval_ssim": ("SSIM", "ssim"),
    "eval_perplexity": ("codebook perplexity", "perplexity"),
    "eval_codes_used": ("share of codes in use", "codes_used"),
}
TASKS = {"train_vq": "image-to-image", "train_classifier": "image-classification"}
OWN = {"toyfaces": "apache-2.0", "digits": "cc-by-4.0"}  # licences of what tinyldm draws, and of UCI's digits


def write(run: Path, template: str, facts: dict[str, Any], rows: list[dict[str, Any]], config: Any) -> None:
    """Write the values of a run's card to card.json, the card from model_cards/<template>.md to README.md, and report.html.

    An evaluation of earlier weights is dropped.

    Args:
        facts: the values in the template: parameters, seconds, images, images_per_second, train_images, ...
        rows: the rows of metrics.csv; the last held-out figures become the card's results.
    """
    figures: dict[str, float] = {}
    for row in rows:
        figures.update({key: value for key, value in row.items() if key in LABELS})
    data: DataConfig = config.data
    recipe = parsing.to_dict(config)
    results = [
        {
            "task_type": task(recipe),
            "dataset_type": shareable(hub_id(data.name)) or Path(data.name).name,
            "dataset_name": Path(data.name).name,
            "dataset_split": data.eval_split or f"{data.eval_fraction:.0%} of {data.split}, held out by hash",
            "dataset_revision": data.revision,
            "metric_type": LABELS[key][1],
            "metric_name": LABELS[key][0],
            "metric_value": round(value, 5),
        }
        for key, value in figures.items()
    ]
    samples = sorted((run / "samples").glob("step-*.png"))
    values = {
        "data": shareable(asdict(data)),
        "figures": [(LABELS[key][0], f"{value:.4g}") for key, value in figures.items()],
        "remarks": remarks(config, figures, facts["best_step"]),
        "picture": samples[-1].relative_to(run).as_posix() if samples else None,
        "curve": (run / "loss.png").exists(),
        "config": parsing.dump(shareable(recipe)).strip(),
        "train": asdict(config.train),
        "duration": duration(facts["seconds"]),
        **shareable(facts),
    }
    card = {
        "template": template,
        "repo_id": config.hub.repo_id if config.hub.push else None,
        "metadata": {  # while the names are still those of this machine: a path is no Hub id
            **licence(recipe),
            "pipeline_tag": task(recipe),
            "datasets": [data.name] if hub_id(data.name) else None,
            "base_model": list(filter(hub_id, bases(recipe))) or None,
        },
        "results": results,
        "values": values,
        "evaluation": None,
    }
    _save(run, card)


def task(recipe: dict[str, Any]) -> str:
    """The Hub's name of the model's task. It has none for drawing by class labels: such a model can also draw without them."""
    enlarges = (recipe.get("condition") or {}).get("low_resolution")
    return TASKS.get(recipe["script"], "image-to-image" if enlarges else "unconditional-image-generation")


def licence(recipe: dict[str, Any]) -> dict[str, str]:
    """The card's licence: that of the data where it is known, else a name for it, with a link where the data have a page."""
    names = trained_on(recipe)
    if len(names) == 1 and (own := OWN.get(*names)):
        return {"license": own}
    page = hub_id(recipe["data"]["name"])
    link = {"license_link": f"https://huggingface.co/datasets/{page}"} if page else {}
    return {"license": "other", "license_name": "follows-the-training-data", **link}


def trained_on(recipe: dict[str, Any]) -> set[str]:
    """The data sets of a run and of the models that it builds on. A model whose data are unknown counts by its own name."""
    names = {recipe["data"]["name"]}
    for path in bases(recipe):
        try:
            names |= trained_on(parsing.read_yaml(Path(path) / "config.yaml"))
        except (UserError, KeyError, TypeError):
            names.add(path)
    return names


def bases(recipe: dict[str, Any]) -> list[str]:
    """The models that a run builds on: what it fine-tunes, and its first stage."""
    return [path for path in (recipe.get("init_from"), (recipe.get("first_stage") or {}).get("path")) if path]


def add_evaluation(run: Path, section: str, results: list[EvalResult]) -> None:
    """Put an evaluation into a run's card, in place of an earlier one. A run without a card stays without one."""
    if card := _load(run):
        card["evaluation"] = {"section": section.strip(), "results": [vars(result) for result in results]}
        _save(run, card)


def render(run: Path, repo_id: str) -> str | None:
    """The card of a run for its place on the Hub, where the pipeline lies at the root. None for a run without card.json."""
    return _render(run, {**card, "repo_id": repo_id}) if (card := _load(run)) else None


def _load(run: Path) -> dict[str, Any] | None:
    file = run / "card.json"
    return json.loads(file.read_text()) if file.exists() else None


def _save(run: Path, card: dict[str, Any]) -> None:
    manifest = Manifest(run)
    replace_text(manifest.own(run / "card.json"), json.dumps(card, indent=1, default=str))
    card = json.loads(json.dumps(card, default=str))
    replace_text(manifest.own(run / "README.md"), _render(run, card))
    replace_text(manifest.own(run / "report.html"), report.render(run, card))


def _render(run: Path, card: dict[str, Any]) -> str:
    name = (card["repo_id"] or run.resolve().name).split("/")[-1]
    values = dict(card["values"])
    evaluation = card["evaluation"] or {"section": "", "results": []}
    results = [EvalResult(**result) for result in [*card["results"], *evaluation["results"]]]
    metadata = ModelCardData(
        model_name=name,
        library_name="diffusers",
        tags=["tinyldm", "diffusers", card["template"]],
        **card.get("metadata", {}),  # an older run has none
        eval_results=results or None,  # none before the first evaluation
    )
    values |= {"name": name, "repo_id": card["repo_id"] or str(run), "pushed": bool(card["repo_id"])}
    if card["template"] in ("ldm", "ddpm"):
        values["draw"] = Template((TEMPLATES / "draw.md").read_text(encoding="utf-8")).render(values)
    template = str(TEMPLATES / f"{card['template']}.md")
    return str(ModelCard.from_template(metadata, template, evaluation=evaluation["section"], **values))


def remarks(config: Any, figures: dict[str, float], best_step: int | None) -> str:
    """The sentences below the held-out figures."""
    train: TrainConfig = config.train
    lines = []
    if "fd_guided" in figures:
        count = config.guidance.num_images
        lines.append(
            f"The Frechet distances chose the guidance scale: quick ones, of {count} images. More images give smaller ones."
        )
    if train.metrics_steps:
        lines.append(
            f"The Frechet distance is that of at most {train.num_metrics_images} images to the held-out part, features: "
            f"{train.metrics_features}; it is meant for comparisons within the run."
        )
    if best_step:
        lines.append(f"The best checkpoint by `{train.best_by}` is that of step {best_step:,}.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as `1 h 23 min`, `4 min 5 s` or `6 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
