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
from tinyldm.files import replace_text
from tinyldm.manifest import Manifest
from tinyldm.training import report
from tinyldm.training.report import TEMPLATES

LABELS = {
    "eval_loss": ("held-out loss", "loss"),
    "eval_fd": ("Frechet distance", "frechet_distance"),
    "fd_guided": ("Frechet distance with guidance", "frechet_distance_guided"),
    "fd_unguided": ("... without guidance, the same seeds", "frechet_distance_unguided"),
    "eval_bits": ("bits per dimension", "bits_per_dimension"),
    "eval_bits_prior": ("... of the prior", "bits_prior"),
    "eval_bits_steps": ("... of the steps", "bits_steps"),
    "eval_bits_decoder": ("... of the decoder", "bits_decoder"),
    "eval_accuracy": ("accuracy over all labels and noise levels", "accuracy"),
    "eval_psnr": ("PSNR in dB", "psnr"),
    "eval_ssim": ("SSIM", "ssim"),
    "eval_perplexity": ("codebook perplexity", "perplexity"),
    "eval_codes_used": ("share of codes in use", "codes_used"),
}


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
    results = [
        {
            "task_type": task(facts),
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
        "remarks": remarks(config.train, facts["best_step"]),
        "picture": samples[-1].relative_to(run).as_posix() if samples else None,
        "curve": (run / "loss.png").exists(),
        "config": parsing.dump(shareable(parsing.to_dict(config))).strip(),
        "train": asdict(config.train),
        "duration": duration(facts["seconds"]),
        **shareable(facts),
    }
    card = {
        "template": template,
        "repo_id": config.hub.repo_id if config.hub.push else None,
        "datasets": [data.name] if hub_id(data.name) else None,
        "results": results,
        "values": values,
        "evaluation": None,
    }
    _save(run, card)


def task(values: dict[str, Any]) -> str:
    """The Hub's name of the model's task: the run's own, or to generate."""
    return values.get("task") or f"{'' if values.get('labels') else 'un'}conditional-image-generation"


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
        license="other",
        license_name="follows-the-training-data",
        tags=["tinyldm", "diffusers", task(values), card["template"]],
        datasets=card["datasets"],
        base_model=values.get("base") if hub_id(values.get("base") or ".") else None,
        eval_results=results or None,  # none before the first evaluation
    )
    values |= {"name": name, "repo_id": card["repo_id"] or str(run), "pushed": bool(card["repo_id"])}
    if card["template"] in ("ldm", "ddpm"):
        values["draw"] = Template((TEMPLATES / "draw.md").read_text(encoding="utf-8")).render(values)
    template = str(TEMPLATES / f"{card['template']}.md")
    return str(ModelCard.from_template(metadata, template, evaluation=evaluation["section"], **values))


def remarks(train: TrainConfig, best_step: int | None) -> str:
    """The sentences below the held-out figures."""
    lines = []
    if train.metrics_steps:
        lines.append(
            f"The Frechet distance is that of at most {train.num_metrics_images} images to the held-out part, features: "
            f"{train.metrics_features}; it is meant for comparisons within the run."
        )
    if best_step:
        lines.append(f"The best checkpoint by `{train.best_by}` is that of step {best_step:,}.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as `1 h 23 min` or `4 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
