"""Names of folders and of Hub repositories, and a Hub that does not answer."""

import pytest

from tests.support.models import vq_model
from tinyldm import remote
from tinyldm.config.schema import FirstStageConfig
from tinyldm.errors import NoAnswer, UserError
from tinyldm.first_stage.autoencoder import load_first_stage
from tinyldm.models.loading import load_model


@pytest.fixture
def silent(monkeypatch):
    """A Hub that does not answer, and a list of the requests that it gets."""
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    class Session:
        def head(self, *args, **options):
            asked.append(args)
            raise OSError("Name or service not known")

        def __getattr__(self, name):
            return self.head

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    remote._no_answer.cache_clear()
    yield asked
    remote._no_answer.cache_clear()


@pytest.mark.parametrize("name", ["runs/faces", "pretrained/toyfaces64", "/a/b", "./a", "../a", "~/a", "a/b/c", "here/model"])
def test_paths_are_no_hub_ids(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert not remote.may_be_hub_id(name)
    assert remote.may_be_hub_id("CompVis/ldm-celebahq-256") and remote.may_be_hub_id("gpt2")


def test_a_missing_run_is_not_looked_for_on_the_hub(silent):
    with pytest.raises(UserError, match=r"runs/none is not a folder; train it first: python train_vq\.py .*runs/none"):
        load_first_stage(FirstStageConfig("runs/none"))
    with pytest.raises(UserError, match="runs/none does not exist: train it first"):
        load_model("runs/none")
    assert not silent


def test_a_hub_that_does_not_answer_is_asked_once(silent, capfd):
    for _ in range(2):
        with pytest.raises(UserError, match=r"no folder me/unheard-of, and the Hub does not answer .Name or") as caught:
            load_model("me/unheard-of")
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="the Hub does not answer"):
            load_first_stage(FirstStageConfig("me/first-stage"))
    assert len(silent) == 1 and capfd.readouterr().err.count("\n") <= 1


def test_an_existing_folder_never_asks_the_hub(silent, tmp_path):
    vq_model().save_pretrained(tmp_path / "vqvae")
    assert load_first_stage(FirstStageConfig(str(tmp_path))).channels == 3
    (tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="damaged or incomplete"):
        load_first_stage(FirstStageConfig(str(tmp_path)))
    assert not silent


def test_the_setting_is_restored(silent):
    from huggingface_hub import constants

    with pytest.raises(NoAnswer), remote.from_hub("me/faces") as on_disk:
        assert on_disk and constants.HF_HUB_OFFLINE
        raise ValueError("not in the cache")
    assert not constants.HF_HUB_OFFLINE
