"""What is pushed, and what is not. The protocol itself is tested with the Hub server of tests/support (a later piece)."""

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from tinyldm import hub
from tinyldm.config import HubConfig
from tinyldm.errors import UserError


class FakeApi:
    """Records what would be committed."""

    created: dict
    files: dict

    def create_repo(self, repo_id, private, exist_ok):
        FakeApi.created = {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}

    def create_commit(self, repo_id, operations, commit_message):
        FakeApi.files = {operation.path_in_repo: operation.path_or_fileobj for operation in operations}
        return type("Commit", (), {"repo_url": f"https://hub/{repo_id}"})


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    return FakeApi


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_the_pipeline_goes_to_the_root_and_checkpoints_stay_at_home(tmp_path, fake):
    touch(
        tmp_path,
        "pipeline/model_index.json",
        "pipeline/unet/config.json",
        "README.md",
        "config.yaml",
        "metrics.csv",
        "loss.png",
    )
    touch(
        tmp_path, "samples/step-0000010.png", "samples/step-0000020.png", "checkpoints/step-20/optimizers.pt", "logs/x", ".lock"
    )
    assert hub.push(tmp_path, HubConfig(push=True, repo_id="me/faces", private=True)) == "https://hub/me/faces"
    assert fake.created == {"repo_id": "me/faces", "private": True, "exist_ok": True}
    expected = {"model_index.json", "unet/config.json", "README.md", "config.yaml", "metrics.csv", "loss.png"}
    assert set(fake.files) == expected | {"samples/step-0000020.png"}
    assert fake.files["unet/config.json"] == str(tmp_path / "pipeline/unet/config.json")


def test_a_first_stage_stays_in_its_folder(tmp_path, fake):
    touch(
        tmp_path, "vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors", "README.md", "checkpoints/step-1/state.json"
    )
    hub.push(tmp_path, HubConfig(push=True, repo_id="me/vq"))
    assert set(fake.files) == {"vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors", "README.md"}


def test_a_failed_push_says_that_the_run_is_whole(tmp_path, fake, monkeypatch):
    touch(tmp_path, "vqvae/config.json")

    def fail(self, *args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(FakeApi, "create_commit", fail)
    with pytest.raises(UserError, match=r"the push to me/vq failed \(no route\); the run is whole"):
        hub.push(tmp_path, HubConfig(push=True, repo_id="me/vq"))


def test_a_missing_token_is_told_before_training(fake, monkeypatch):
    def whoami(self):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(FakeApi, "whoami", whoami, raising=False)
    with pytest.raises(UserError, match="hf auth login"):
        hub.check_token()
