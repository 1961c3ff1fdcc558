"""The classes of the images that are drawn."""

import torch
from diffusers import UNet2DModel

from tinyldm.diffusion.conditioning import condition_for, preview_condition


def network(classes: int | None) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    return UNet2DModel(8, 3, 3, norm_num_groups=4, layers_per_block=1, num_class_embeds=classes, **blocks)


def test_classes_by_their_shares_are_a_function_of_the_seed():
    shares = [0.0, 0.7, 0.0, 0.3, 0.0]
    labels = condition_for(network(5), 0, 4000, shares=shares).labels
    counts = torch.bincount(labels, minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0] and abs(counts[1] / 4000 - 0.7) < 0.03
    assert torch.equal(condition_for(network(5), 130, 20, shares=shares).labels, labels[130:150])
    assert condition_for(network(5), 0, 3, 4, shares).labels.tolist() == [4, 4, 4]  # the class that is asked for
    assert condition_for(network(5), 3, 4).labels.tolist() == [3, 4, 0, 1]
    assert condition_for(network(None), 0, 3, shares=shares).labels is None


def test_previews_show_all_classes_or_a_random_choice_of_them():
    assert preview_condition(network(3), 7).labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    few = preview_condition(network(200), 16).labels
    assert len(few.unique()) == 16 and few.max() > 100 and torch.equal(few, preview_condition(network(200), 16).labels)
    assert preview_condition(network(None), 4).labels is None
