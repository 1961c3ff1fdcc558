"""Publishing a run and using it, with the real client over HTTP. test_hub_faults.py tests errors."""

import csv
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from diffusers import DiffusionPipeline, LDMPipeline
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import sample
import train_ldm
import train_vq
from tests.support import models, sources
from tests.support.hub_server import HubServer, user
from tests.support.published import HUB, TOKEN, environment, finished_run
from tests.support.runs import DATA, EVERY_STEP, LDM, ROOT, VQ, run
from tinyldm.config import parsing
from tinyldm.config.paths import shareable
from tinyldm.config.schema import DataConfig, FirstStageConfig, HubConfig, SamplerSettings
from tinyldm.data.sources import Source
from tinyldm.drawing import sampling
from tinyldm.errors import UserError
from tinyldm.first_stage.autoencoder import FirstStage, load_first_stage
from tinyldm.first_stage.latent_store import LatentStore, open_store
from tinyldm.models.loading import load_model
from tinyldm.training import hub

AT_ROOT = {"README.md", "config.yaml", "metrics.csv", "loss.png"}
PIPELINE = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("unet", "vqvae") for name in ("config.json", "diffusion_pytorch_model.safetensors")),
}
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


def published(server: HubServer, path: str, hub_config: HubConfig = HUB):
    """A run, after its push."""
    folder = finished_run(path, hub_config)
    hub.push(folder, HUB, "Step 20")
    return folder


# --------------------------------------------------------------------------------------------------- what is published


def test_the_pipeline_goes_to_the_root_and_checkpoints_are_not_pushed(server, tmp_path):
    folder = finished_run(tmp_path / "run")
    assert hub.push(folder, HUB, "Step 20") == f"{server.url}/me/faces"
    pushed = server.files("me/faces")
    assert set(pushed) == PIPELINE | AT_ROOT | {"samples/step-0000020.png"}
    for name, content in pushed.items():
        if name == "config.yaml":  # without paths of this machine
            assert yaml.safe_load(content) == shareable(parsing.read_yaml(folder / name))
        else:
            assert content == (folder / ("pipeline" if name in PIPELINE else "") / name).read_bytes(), name
    assert server.history("me/faces") == ["Step 20"]
    assert not list(folder.glob(".pushing*"))


def test_a_first_stage_keeps_its_subfolder(server, tmp_path):
    folder = finished_run(tmp_path / "run")
    (folder / "pipeline" / "vqvae").rename(folder / "vqvae")
    shutil.rmtree(folder / "pipeline")
    hub.push(folder, HUB, "x")
    vqvae = {"vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors"}
    assert set(server.files("me/faces")) == vqvae | AT_ROOT | {"samples/step-0000020.png"}


def test_pushing_the_same_again_makes_no_second_commit(server, tmp_path):
    folder = published(server, tmp_path / "run")
    assert hub.push(folder, HUB, "again") == f"{server.url}/me/faces"
    assert server.history("me/faces") == ["Step 20"]


def test_the_card_is_valid_and_has_the_numbers_of_the_run(server, tmp_path):
    published(server, tmp_path / "run")
    card = ModelCard.load("me/faces")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("loss", 0.25, "toyfaces")
    assert "12,345 parameters" in card.text and "20 of 8 images: 160 images seen" in card.text
    assert 'DiffusionPipeline.from_pretrained("me/faces")' in card.text


@pytest.mark.parametrize("repo_id", [None, "me/old"])
def test_the_card_of_a_local_run_is_updated_for_the_hub(server, tmp_path, repo_id):
    """A run trained without hub.push, or for another repository, and then pushed with the command."""
    published(server, tmp_path / "pipeline", HubConfig(push=False, repo_id=repo_id))
    card = server.files("me/faces")["README.md"].decode()
    assert 'from_pretrained("me/faces")' in card
    assert f'from_pretrained("{tmp_path}' not in card and 'from_pretrained("me/old' not in card


@pytest.mark.slow
def test_the_push_command(server, tmp_path):
    folder = finished_run(tmp_path / "run", HubConfig())
    command = [sys.executable, "-m", "tinyldm.training.hub", "push", folder]
    ours = environment(server, tmp_path / "home")

    def push_again(*args):
        return subprocess.run([*command, *args], capture_output=True, text=True, cwd=ROOT, env=ours)

    refused = push_again()
    assert refused.returncode == 2
    assert refused.stderr == f"error: {folder} names no repository: give --repo_id user/name\n"
    done = push_again("--repo_id", "lab/faces", "--private", "true")
    assert (done.returncode, done.stdout) == (0, f"pushed to {server.url}/lab/faces\n")
    assert server.private == {"lab/faces"}
    assert server.history("lab/faces") == ["Push run"]


def test_export_writes_what_a_push_uploads(server, tmp_path, capsys):
    folder = published(server, tmp_path / "run")
    hub.export_command(str(folder), str(tmp_path / "same"))
    pushed, same = server.files("me/faces"), tmp_path / "same"
    assert {path.relative_to(same).as_posix() for path in same.rglob("*") if path.is_file()} == set(pushed)
    assert all((same / name).read_bytes() == content for name, content in pushed.items() if name != "README.md")
    assert f'from_pretrained("{same}")' in (same / "README.md").read_text()

    before, half = (folder / UNET).read_bytes(), tmp_path / "half"
    hub.export_command(str(folder), str(half), half=True)
    ours, theirs = load_file(folder / UNET), load_file(half / UNET[len("pipeline/") :])
    assert all(torch.equal(weight.half(), theirs[name]) for name, weight in ours.items())
    assert (folder / UNET).read_bytes() == before and not list(folder.glob(".pushing*"))
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"exported to {half}: 0.")
    drawn = [
        sampling.sample(load_model(str(model)), 2, 2, 0, SamplerSettings(num_inference_steps=2)) for model in (folder, half)
    ]
    first, second = (torch.cat(list(batches)).float() for batches in drawn)
    assert 0 < (first - second).abs().max() <= 4

    with pytest.raises(UserError, match=r"half exists already: choose another folder"):
        hub.export_command(str(folder), str(half))
    save_file({**ours, "conv_in.bias": torch.full_like(ours["conv_in.bias"], 1e5)}, folder / UNET)
    with pytest.raises(UserError, match=r"unet/.*safetensors has weights over 65,504"):
        hub.export_command(str(folder), str(tmp_path / "large"), half=True)
    assert not (tmp_path / "large").exists() and not list(folder.glob(".pushing*"))


def test_only_a_run_with_a_model_is_pushed(server, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        hub.push_command(str(tmp_path), "me/faces")
    (tmp_path / "config.yaml").write_text("output_dir: x\n")
    with pytest.raises(UserError, match="is not a run, or has no model yet"):
        hub.push_command(str(tmp_path), "me/faces")
    assert not server.commits


# ------------------------------------------------------------------------------------------- what works from the Hub


def test_diffusers_loads_the_same_weights(server, tmp_path):
    folder = published(server, tmp_path / "run")
    theirs, ours = DiffusionPipeline.from_pretrained("me/faces"), DiffusionPipeline.from_pretrained(folder / "pipeline")
    assert type(theirs) is LDMPipeline and theirs.scheduler.config == ours.scheduler.config
    for part in ("unet", "vqvae"):
        one, two = getattr(theirs, part).state_dict(), getattr(ours, part).state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_first_stage_is_found_in_a_run_a_pipeline_or_a_subfolder(server, tmp_path):
    published(server, tmp_path / "run")
    model = models.vq_model()
    model.save_pretrained(tmp_path / "plain")
    HfApi().create_repo("me/plain")
    files = [CommitOperationAdd(file.name, file) for file in (tmp_path / "plain").iterdir()]
    HfApi().create_commit("me/plain", files, commit_message="x")
    for config in (FirstStageConfig("me/faces"), FirstStageConfig("me/faces", "vqvae"), FirstStageConfig("me/plain")):
        assert load_first_stage(config).fingerprint() == FirstStage(model).fingerprint()
    with pytest.raises(UserError, match=r"first_stage.path me/faces cannot be loaded.*: Entry not found"):
        load_first_stage(FirstStageConfig("me/faces", "vae"))


def test_a_parquet_data_set_is_streamed(server, tmp_path):
    pictures = [sources.picture(number) for number in range(12)]
    shards = sources.parquet(tmp_path / "set", [pictures[:9], pictures[9:]])
    HfApi().create_repo("me/set", repo_type="dataset")
    files = [CommitOperationAdd(f"data/{file.name}", file) for file in shards.iterdir()]
    HfApi().create_commit("me/set", files, commit_message="x", repo_type="dataset")
    assert sources.in_order(sources.whole("me/set")) == list(range(12))


def test_latents_of_an_older_commit_are_not_used(server, tmp_path, capfd):
    def push(number: int) -> None:
        shards = sources.parquet(tmp_path / f"set{number}", [[sources.picture(number + i) for i in range(6)]])
        files = [CommitOperationAdd(f"data/{file.name}", file) for file in shards.iterdir()]
        HfApi().create_commit("me/set", files, commit_message="x", repo_type="dataset")

    HfApi().create_repo("me/set", repo_type="dataset")
    stage, stores = FirstStage(models.vq_model()), tmp_path / "cache" / "latents"
    data = DataConfig("me/set", resolution=8, cache_dir=str(tmp_path / "cache"))

    def kept(source: Source) -> LatentStore:
        return open_store(data, source, "train", 0, stage, Accelerator(cpu=True), False)

    push(0)
    first = kept(sources.whole("me/set"))
    push(100)
    second = kept(source := sources.whole("me/set"))
    assert not np.array_equal(second.shards[0], first.shards[0])
    assert "do not fit (commit: " in capfd.readouterr().err
    kept(source)
    assert "something else" not in capfd.readouterr().err
    server.fail("GET", "/api/datasets/me/set", status=503, times=99)
    kept(source)
    assert "the Hub does not answer about the last commit of 'me/set': using the latents of" in capfd.readouterr().out
    assert len(list(stores.iterdir())) == 2
    data = replace(data, revision="v1")
    server.faults.clear()
    server.fail("GET", "/revision/v1", status=503, times=99)  # and not the stream's own request, which names the commit
    kept(source)
    assert "taking the latents" not in capfd.readouterr().out and len(list(stores.iterdir())) == 3


@pytest.mark.slow
def test_train_push_train_from_it_push_and_sample_from_it(server, small_faces, tmp_path, monkeypatch):
    """End to end: push a first stage while it trains, train a denoiser on it from the Hub, then sample from the Hub."""
    pushed = ["--hub.push", "true", "--hub.push_steps", 2, "--train.max_steps", 4]
    run(monkeypatch, train_vq, "--output_dir", tmp_path / "vq", *DATA, *EVERY_STEP, *VQ, *pushed, "--hub.repo_id", "me/vq")
    assert server.history("me/vq") == ["Step 2", "Step 4, the last"]

    data = ["--data.name", small_faces, "--data.eval_fraction", 0.2, "--data.resolution", 16, "--data.cache_dir", tmp_path]
    args = [*data, *EVERY_STEP, *LDM, "--first_stage.path", "me/vq", "--hub.repo_id", "me/faces"]
    run(monkeypatch, train_ldm, "--output_dir", tmp_path / "ldm", *args, *pushed)
    assert server.history("me/faces") == ["Step 2", "Step 4, the last"]
    with (tmp_path / "ldm" / "metrics.csv").open(newline="") as file:
        held_out = float(list(csv.DictReader(file))[-1]["eval_loss"])
    assert ModelCard.load("me/faces").data.eval_results[0].metric_value == round(held_out, 5)

    for name, model in (("hub", "me/faces"), ("disk", tmp_path / "ldm")):
        few = ["--num_images", 2, "--num_inference_steps", 3, "--output_dir", tmp_path / name]
        run(monkeypatch, sample, "--model", model, *few)
    pictures = [np.asarray(Image.open(tmp_path / name / "grid.png")) for name in ("hub", "disk")]
    assert np.array_equal(*pictures)
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        assert TOKEN.encode() not in file.read_bytes(), file


# ------------------------------------------------------------------------------------------- the check before training


def test_a_token_that_may_write_there_passes(server):
    hub.check_token(HubConfig(True, "me/faces"))
    hub.check_token(HubConfig(True, "lab/faces"))
    writes = {"scoped": [{"entity": {"type": "user", "name": "me"}, "permissions": ["repo.content.read", "repo.write"]}]}
    server.tokens[TOKEN] = user("me", role="fineGrained", fineGrained=writes)
    hub.check_token(HubConfig(True, "me/faces"))
    assert not server.commits  # the check changes nothing


@pytest.mark.parametrize(
    ("repo_id", "who", "words"),
    [
        ("faces", user("me"), "hub.repo_id is 'faces'; give user/name"),
        ("me/fa ces", user("me"), "hub.repo_id is 'me/fa ces'; give user/name"),
        ("you/faces", user("me", "lab"), "this token is me's and writes to me, lab only"),
        ("me/faces", user("me", role="read"), "this token can only read"),
        ("me/faces", user("me", role="fineGrained", fineGrained={"scoped": []}), "this token can only read"),
        ("me/faces", None, "does not accept this token.*Invalid user token"),
    ],
)
def test_impossible_pushes_are_reported_before_training(server, repo_id, who, words):
    server.tokens = {TOKEN: who} if who else {}
    with pytest.raises(UserError, match=words):
        hub.check_token(HubConfig(True, repo_id))


def test_a_missing_token_or_hub_is_reported_before_training(server, monkeypatch):
    server.fail("GET", "/whoami", status=500, message=f"odd token {TOKEN}")
    with pytest.raises(UserError, match=r"cannot be reached \(500: odd token \*\*\*\)"):
        hub.check_token(HUB)
    server.fail("GET", "/whoami", cut=0)
    with pytest.raises(UserError, match=r"cannot be reached \(.+\)"):
        hub.check_token(HUB)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="hf auth login"):
        hub.check_token(HUB)


@pytest.mark.parametrize("token", ["tökén", "hf_\u20ac", "a\nb"])
def test_a_token_that_no_header_can_hold(token, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=r"hub.push: the Hub does not accept this token") as caught:
        hub.check_token(HubConfig(True, "me/faces"))
    assert "\n" not in str(caught.value) and token not in str(caught.value)
