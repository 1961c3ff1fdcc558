"""The client side of the Hub in tests: settings that point to a HubServer, and a small finished run to push."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
from diffusers import DDIMScheduler, LDMPipeline
from huggingface_hub import constants, hf_api
from PIL import Image
from pytest import MonkeyPatch

from tests.support import models
from tests.support.hub_server import HubServer
from tinyldm.config import parsing
from tinyldm.config.schema import HubConfig, TrainConfig, TrainLDM
from tinyldm.training import model_card as report

TOKEN = "hf_sEcReTtOkEnOfTeStS"
HUB = HubConfig(push=True, repo_id="me/faces")


def connect(patch: MonkeyPatch, server: HubServer) -> None:
    """Libraries read HF_ENDPOINT on import, so patch the values derived from it. Also removes pauses between retries."""
    huggingface_hub.close_session()
    patch.setenv("HF_TOKEN", TOKEN)
    patch.setattr(hf_api.api, "endpoint", server.url)
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        patch.setattr(constants, name, value)
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_ENDPOINT": server.url,
        "HUB_DATASETS_URL": server.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "STREAMING_READ_RETRY_INTERVAL": 0,
    }.items():
        patch.setattr(datasets.config, name, value)
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        patch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """Environment for a script that uses the server."""
    return {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


def finished_run(path: Path, hub: HubConfig = HUB) -> Path:
    """The run folder of a tiny model, without training it."""
    config = TrainLDM(output_dir=str(path), hub=hub, train=TrainConfig(max_steps=20))
    sampler = DDIMScheduler.from_config(models.scheduler().config)
    LDMPipeline(vqvae=models.vq_model(), unet=models.unet(), scheduler=sampler).save_pretrained(path / "pipeline")
    for name in ("samples/step-0000010.png", "samples/step-0000020.png", "loss.png"):
        (path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(path / name)
    for name in ("checkpoints/step-20/optimizers.pt", "logs/events", ".lock"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("stays at home")
    (path / "config.yaml").write_text(parsing.to_yaml(config))
    (path / "metrics.csv").write_text("step,eval_loss\n10,0.5\n20,0.25\n")
    done = {
        "steps": 20,
        "images": 160,
        "images_per_step": 8,
        "seconds": 61.0,
        "images_per_second": 2.6,
        "parameters": 12345,
        "best_step": 20,
        "hardware": "CPU, 2 threads",
    }
    model = {"parameters": 12345, "best_step": 20}
    data = {"train_images": 60, "corrupt": 0, "eval_images": 12, "shape": "3 x 8 x 8", "first_stage": "me/vq"}
    objective = {"scaling_factor": 1.5, "prediction_type": "v_prediction", "loss": "simple", "snr_gamma": 5.0}
    data["timesteps"] = 1000
    report.write(path, "ldm", {**done, **model, **data, **objective}, [{"step": 20, "eval_loss": 0.25}], config)
    return path
