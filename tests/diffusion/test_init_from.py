"""Fine-tuning starts from the weights of a trained model, as far as they fit."""

from dataclasses import replace

import pytest
import torch

import train_ldm
from tests.support import models
from tests.support.runs import run
from tinyldm.data.columns import LabelColumn
from tinyldm.diffusion.init_from import start_from
from tinyldm.errors import UserError
from tinyldm.models.denoiser import Denoiser, make_denoiser
from tinyldm.models.export import save_pipeline
from tinyldm.models.loading import load_model
from tinyldm.models.model import Model
from tinyldm.process.continuous import ContinuousProcess

HAIR = LabelColumn("hair", ["long", "bald", "green"])  # in another order than models.labels, and one more


@pytest.fixture
def base(tmp_path) -> str:
    denoiser = make_denoiser(models.SMALL, 8, 3, [LabelColumn("hair", ["bald", "short", "long"])])
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.normal_()
    process = models.process()
    save_pipeline(tmp_path / "base", "DDPMPipeline", Model(denoiser.eval(), process, None, scale=2.0), process.sampler())
    return str(tmp_path / "base")


def test_all_weights_of_the_same_network_are_taken(base):
    denoiser = make_denoiser(models.SMALL, 8, 3, [LabelColumn("hair", ["bald", "short", "long"])])
    notes = start_from(denoiser, base, models.process(), None)
    expected = load_model(base).denoiser.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in denoiser.state_dict().items() if name != "labels.rows")
    assert len(notes) == 2 and "weights taken" in notes[0] and "new" not in notes[0] and "3 of 3 values taken" in notes[1]


def test_labels_are_found_by_their_names(base):
    denoiser = make_denoiser(models.SMALL, 8, 3, [HAIR, LabelColumn("hat", ["none", "cap"])])
    fresh = denoiser.labels.vectors[0][3].clone()
    notes = start_from(denoiser, base, models.process(), None)
    theirs = load_model(base).labels.vectors[0]
    assert torch.equal(denoiser.labels.vectors[0][[0, 1, 2]], theirs[[0, 3, 1]])  # unknown, long, bald
    assert torch.equal(denoiser.labels.vectors[0][3], fresh)
    assert "2 of 5 values taken" in notes[1]


def test_channels_that_the_base_lacks_start_from_0(base):
    denoiser = make_denoiser(models.SMALL, 8, 3, low_resolution=(4, 3, 0.5))
    notes = start_from(denoiser, base, models.process(), None)
    weight = denoiser.unet.conv_in.weight
    assert torch.equal(weight[:, :3], load_model(base).unet.conv_in.weight) and weight[:, 3:].abs().max() == 0
    assert "a part of conv_in.weight" in notes[0]


def test_dropout_may_be_added(base):
    denoiser = make_denoiser(replace(models.SMALL, dropout=0.1), 8, 3)
    assert "weights taken" in start_from(denoiser, base, models.process(), None)[0]
    assert torch.equal(denoiser.unet.conv_in.weight, load_model(base).unet.conv_in.weight)


def test_another_process_and_other_latents_are_said(base, tmp_path):
    denoiser = make_denoiser(models.SMALL, 8, 3)
    notes = start_from(denoiser, base, ContinuousProcess("flow"), models.vq_model())
    assert notes[1] == "its labels are left out: hair"
    assert "its process is another one (scaled_linear" in notes[2] and "it predicts v_prediction" in notes[2]
    assert "other latents or on pixels" in notes[3]


def test_another_architecture_is_refused_with_what_to_set(base):
    other = Denoiser(models.unet())
    with pytest.raises(UserError, match=r"has another architecture: set unet.resnet_time_scale_shift to scale_shift"):
        start_from(other, base, models.process(), None)


@pytest.mark.slow
def test_a_training_starts_from_a_run(ldm_args, ldm_run, tmp_path, monkeypatch, capsys):
    arguments = ["--output_dir", tmp_path / "run", *ldm_args, "--init_from", ldm_run, "--train.max_steps", 1]
    # The same command starts a run and resumes it: there is nothing to resume from yet.
    first = ["--train.learning_rate", 1e-9, "--train.checkpointing_steps", 1, "--resume", "latest"]
    run(monkeypatch, train_ldm, *arguments, *first)
    tuned, base = (load_model(str(path)).unet.state_dict() for path in (tmp_path / "run", ldm_run))
    assert all(torch.allclose(tuned[name], base[name], atol=1e-6) for name in base)
    assert "starts from" in capsys.readouterr().out and "| fine-tuned from |" in (tmp_path / "run/README.md").read_text()
    run(monkeypatch, train_ldm, *arguments[:-1], 2, "--init_from", "gone", "--resume", "latest")  # the base is not needed again
