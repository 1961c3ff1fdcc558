from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.models import SMALL, scheduler
from tinyldm.config.networks import ProcessConfig, SchedulerConfig, UNetConfig
from tinyldm.config.schema import TrainConfig
from tinyldm.data.batch import UNKNOWN, Condition
from tinyldm.data.columns import LabelColumn
from tinyldm.errors import UserError
from tinyldm.models.denoiser import make_denoiser, switch_on
from tinyldm.process.processes import make_process


def test_the_defaults_have_five_million_parameters():
    with torch.device("meta"):  # counted without initialising weights
        network = make_denoiser(UNetConfig(), 64, 3)
    assert 4.5e6 <= sum(weight.numel() for weight in network.parameters()) <= 5.5e6


def test_the_shape_comes_from_the_data():
    network = make_denoiser(SMALL, 8, 4)
    config = network.unet.config
    assert (config.sample_size, config.in_channels, config.out_channels) == (8, 4, 4)
    assert network(torch.zeros(2, 4, 8, 8), torch.tensor([0, 999])).shape == (2, 4, 8, 8)


def test_labels_change_the_prediction_and_an_unknown_one_has_its_own_vector():
    torch.manual_seed(0)
    network = make_denoiser(SMALL, 8, 3, [LabelColumn("hat", ["none", "cap"]), LabelColumn("kind", ["a", "b", "c"])])
    nn.init.normal_(network.unet.conv_out.weight)
    labels = torch.tensor([[0, 0], [1, 0], [UNKNOWN, 0], [0, 2], [UNKNOWN, UNKNOWN], [0, 0]])
    noise = torch.randn(1, 3, 8, 8).expand(6, -1, -1, -1)
    predicted = network(noise, torch.tensor(500), Condition(labels))
    distances = torch.cdist(predicted.flatten(1), predicted.flatten(1))
    assert distances[0, 5] < 1e-4
    assert (distances[:5, :5] + torch.eye(5)).min() > 1e-3
    assert abs(network.labels(torch.randint(0, 2, (500, 2))).std() - 1) < 0.2


def test_networks_that_diffusers_cannot_build():
    with pytest.raises(UserError, match="halves its input of side 9 1 times, but 9 is not divisible by 2"):
        make_denoiser(SMALL, 9, 3)
    with pytest.raises(UserError, match="section unet"):
        make_denoiser(replace(SMALL, down_block_types=("DownBlock2D", "NoSuchBlock")), 8, 3)
    with pytest.raises(UserError, match="section unet"):
        make_denoiser(replace(SMALL, extra={"time_embedding_type": "sine"}), 8, 3)
    with pytest.raises(UserError, match="attention_head_dim 32 is wider"):
        make_denoiser(replace(SMALL, attention_head_dim=32), 8, 3)


def test_the_default_forward_process_is_that_of_latent_diffusion():
    built, expected = make_process(ProcessConfig(), SchedulerConfig()), scheduler()
    assert torch.equal(built.abar, expected.alphas_cumprod)
    assert built.clip is None and built.scheduler.config.timestep_spacing == "trailing"
    zero = make_process(ProcessConfig(), replace(SchedulerConfig(), rescale_betas_zero_snr=True))
    assert zero.abar[-1] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "none such"}, "none such"),
        ({"extra": {"trained_betas": [0.1, 0.2]}}, "trained_betas must be a list with one entry per timestep"),
    ],
)
def test_forward_processes_that_cannot_be_used(changes, message):
    with pytest.raises(UserError, match=message):
        make_process(ProcessConfig(), replace(SchedulerConfig(), **changes))


def test_xformers_without_cuda_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    switch_on(make_denoiser(SMALL, 8, 3), TrainConfig())  # false: does nothing
    with pytest.raises(UserError, match=r"train.xformers needs CUDA .*set it to false"):
        switch_on(make_denoiser(SMALL, 8, 3), TrainConfig(xformers=True))


def test_xformers_without_the_package_says_what_to_install(monkeypatch):
    network = make_denoiser(SMALL, 8, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def missing() -> None:
        raise ModuleNotFoundError("xformers is not installed")

    monkeypatch.setattr(network.unet, "enable_xformers_memory_efficient_attention", missing)
    with pytest.raises(UserError, match="pip install xformers"):
        switch_on(network, TrainConfig(xformers=True))


def test_gradient_checkpointing_changes_no_gradient():
    x, t, actual = torch.randn(2, 3, 8, 8), torch.tensor([3, 500]), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = make_denoiser(SMALL, 8, 3).train()
        switch_on(network, TrainConfig(gradient_checkpointing=checkpointing))
        assert network.unet.is_gradient_checkpointing == checkpointing
        network(x, t).square().sum().backward()
        actual.append([weight.grad for weight in network.parameters()])
    for one, two in zip(*actual, strict=True):
        torch.testing.assert_close(one, two)
