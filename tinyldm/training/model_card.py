"""The run's README.md: its report and its model card in one. Every number in it comes from the run."""

import platform
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tinyldm.config import parsing
from tinyldm.config.schema import DataConfig, TrainConfig
from tinyldm.data.identity import hub_id
from tinyldm.files import replace_text

TEMPLATES = Path(__file__).parents[2] / "model_cards"
LABELS = {
    "eval_loss": ("held-out loss", "loss"),
    "eval_fd": ("Frechet distance", "frechet_distance"),
    "eval_bits": ("bits per dimension", "bits_per_dimension"),
    "eval_bits_prior": ("... of the prior", "bits_prior"),
    "eval_bits_steps": ("... of the steps", "bits_steps"),
    "eval_bits_decoder": ("... of the decoder", "bits_decoder"),
    "eval_psnr": ("PSNR in dB", "psnr"),
    "eval_ssim": ("SSIM", "ssim"),
    "eval_perplexity": ("codebook perplexity", "perplexity"),
    "eval_codes_used": ("share of codes in use", "codes_used"),
}


def write(run: Path, template: str, facts: dict[str, Any], rows: list[dict[str, Any]], config: Any) -> None:
    """Fill model_cards/<template>.md into run/README.md.

    Args:
        facts: the values in the template: parameters, seconds, images, images_per_second, train_images, ...
        rows: the rows of metrics.csv; the last held-out figures become the card's results.
    """
    figures: dict[str, float] = {}
    for row in rows:
        figures.update({key: value for key, value in row.items() if key in LABELS})
    data: DataConfig = config.data
    name = (config.hub.repo_id or run.resolve().name).split("/")[-1]
    results = [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=hub_id(data.name) or Path(data.name).name,
            dataset_name=Path(data.name).name,
            dataset_split=data.eval_split or f"{data.eval_fraction:.0%} of {data.split}, held out by hash",
            dataset_revision=data.revision,
            metric_type=LABELS[key][1],
            metric_name=LABELS[key][0],
            metric_value=round(value, 5),
        )
        for key, value in figures.items()
    ]
    card_data = ModelCardData(
        model_name=name,
        library_name="diffusers",
        license="other",
        license_name="follows-the-training-data",
        tags=["tinyldm", "diffusers", "unconditional-image-generation", template],
        datasets=[data.name] if hub_id(data.name) else None,
        eval_results=results or None,  # none before the first evaluation
    )
    samples = sorted((run / "samples").glob("step-*.png"))
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATES / f"{template}.md"),
        name=name,
        repo_id=config.hub.repo_id or str(run),
        pushed=config.hub.push,
        data=data,
        figures=[(LABELS[key][0], f"{value:.4g}") for key, value in figures.items()],
        remarks=remarks(config.train, facts["best_step"]),
        torch_version=torch.__version__,
        picture=samples[-1].relative_to(run) if samples else None,
        curve=(run / "loss.png").exists(),
        config=parsing.to_yaml(config).strip(),
        train=config.train,
        duration=duration(facts["seconds"]),
        **facts,
    )
    replace_text(run / "README.md", card.content)


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


def hardware(device: torch.device, ranks: int = 1) -> str:
    """The device of a run, as text."""
    if device.type == "cuda":
        return f"{ranks} x {torch.cuda.get_device_name(device)}"
    return f"CPU, {ranks * torch.get_num_threads()} threads ({platform.machine()})"


def duration(seconds: float) -> str:
    """Seconds as `1 h 23 min` or `4 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
