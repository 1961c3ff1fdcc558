# %% [markdown]
# # Lab 3: what a latent costs and what it loses
# Operations are counted by hand in the project's denoisers and held against PyTorch's counter; rate, distortion and
# perception are followed on a normal source, where all are known; and the runs of run_latent.py, which trained four models
# for the same time, are put beside these. The chapter is 3-latent-diffusion.md.

# %%
import json
import math

import matplotlib.pyplot as plt
import torch
from diffusers import UNet2DModel, VQModel
from labkit import HERE, Record
from run_latent import CODES, FACTORS, LATENT_CHANNELS, SIDE, STEPS, VQS, unet_arguments, vq_arguments
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

RESULTS = HERE.parent / "results" / "latent" / "results.json"
record = Record("3-latent-diffusion")
torch.manual_seed(0)


# %% The cost of a network: two operations (multiply, add) for each weight and each place where it is used
def operations(network: nn.Module, *inputs: torch.Tensor) -> dict[str, float]:
    """Of one forward pass, by kind of layer."""
    found = {"convolutions": 0, "linear": 0, "attention": 0}

    def count(layer: nn.Module, seen: tuple, made: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):  # kernel x inputs, for each output channel and place
            found["convolutions"] += 2 * layer.weight[0].numel() * made.numel()
        elif isinstance(layer, nn.Linear):
            found["linear"] += 2 * layer.in_features * made.numel()
        elif type(layer).__name__ == "Attention":  # queries x keys and weights x values: N^2 C each
            found["attention"] += 2 * 2 * (made.shape[2] * made.shape[3]) ** 2 * layer.to_q.out_features

    hooks = [layer.register_forward_hook(count) for layer in network.modules()]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return found


unets, decoders = {}, {}
record.number("denoising_steps", STEPS)
for name, factor in FACTORS.items():
    channels, side = (3, SIDE) if factor == 1 else (LATENT_CHANNELS, SIDE // factor)
    extra = {"resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": True, "freq_shift": 0}
    unet = UNet2DModel(sample_size=side, in_channels=channels, out_channels=channels, **unet_arguments(name), **extra)
    inputs = torch.zeros(1, channels, side, side), torch.tensor([1])
    unets[name] = operations(unet, *inputs)
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # of fused ones it counts none
        unet(*inputs)
    total = sum(unets[name].values())
    record.number(f"{name}_operations", total / 1e6, counter.get_total_flops() / 1e6, 0.001 * total / 1e6)
    record.number(f"{name}_parameters", sum(p.numel() for p in unet.parameters()) / 1e6)
    record.number(f"{name}_numbers", inputs[0].numel())
    if factor == 1:
        record.number(f"{name}_rate", 3 * 8)
        record.number(f"{name}_bits", 8 * inputs[0].numel())
    else:
        record.number(f"{name}_fewer", 3 * SIDE**2 / inputs[0].numel())
        record.number(f"{name}_places", factor**2)
        vq = VQModel(sample_size=SIDE, **vq_arguments(name)).decoder
        decoders[name] = sum(operations(vq, inputs[0]).values())
        record.number(f"{name}_decoder", decoders[name] / 1e6)
        record.number(f"{name}_rate", (SIDE // factor) ** 2 * math.log2(CODES) / SIDE**2, math.log2(CODES) / factor**2, 1e-12)
        record.number(f"{name}_bits", (SIDE // factor) ** 2 * math.log2(CODES))
    image = STEPS * total + decoders.get(name, 0)
    record.number(f"{name}_image", image / 1e9)
    record.number(f"{name}_saving", STEPS * sum(unets["pixels"].values()) / image)

# %% The same network on a smaller input: convolutions fall as f^2, attention as f^4
same = UNet2DModel(sample_size=SIDE, in_channels=3, out_channels=3, **unet_arguments("pixels"))
one, half = (operations(same, torch.zeros(1, 3, side, side), torch.tensor([1])) for side in (SIDE, SIDE // 2))
record.number("ratio_convolutions", one["convolutions"] / half["convolutions"], 4, 1e-9)
record.number("ratio_attention", one["attention"] / half["attention"], 16, 1e-9)
share = record.number("share_attention", one["attention"] / sum(one.values()))
record.number("share_attention_256", 8**4 * share / (8**4 * share + 8**2 * (1 - share)))

# %% Rate, distortion and perception of a normal source x ~ N(0, 1) at R bits
# The best code in the mean square: z = x + noise with I(x; z) = R, and E[x | z]. It lacks variance; scaled up it has it.
rates, count = torch.linspace(0.05, 4, 80), 400_000
record.number("sampled", count)
lowest, perfect = 2 ** (-2 * rates), 2 - 2 * (1 - 2 ** (-2 * rates)).sqrt()  # D(R), and D(R) at perfect perception
for rate in (0.5, 1.0, 2.0):
    x = torch.randn(count)
    d = 2 ** (-2 * rate)
    z = x + math.sqrt(d / (1 - d)) * torch.randn(count)
    mean = (1 - d) * z
    scaled, drawn = mean / math.sqrt(1 - d), mean + math.sqrt(d) * torch.randn(count)
    name = f"{rate:g}".replace(".", "_")
    record.number(f"distortion_{name}", (x - mean).square().mean(), d, 0.005, machine=0.004 * d)
    record.number(f"variance_{name}", mean.var(), 1 - d, 0.01, machine=0.002)
    record.number(f"perfect_{name}", (x - scaled).square().mean(), 2 - 2 * math.sqrt(1 - d), 0.005, machine=0.004 * d)
    record.number(f"perfect_variance_{name}", scaled.var(), 1, 0.01, machine=0.003)
    record.number(f"posterior_{name}", (x - drawn).square().mean(), 2 * d, 0.01, machine=0.008 * d)  # a sample of p(x | z)
record.number("decibels", 10 * math.log10(2))
assert (perfect <= 2 * lowest).all()  # whatever the rate, perfect perception at most doubles the error
record.number("price_low", (perfect / lowest)[0])
record.number("price_high", (perfect / lowest)[-1])

# %% The runs
figure, axes = plt.subplot_mosaic([[0, 2], [1, 2]], figsize=(9, 6.6), layout="constrained", width_ratios=(1, 1.2))
axes[0].semilogy(rates, lowest, label="least error, D(R)")
axes[0].semilogy(rates, perfect, label="least error with the right distribution")
axes[0].semilogy(rates, 2 * lowest, ":", color="0.5", label="2 D(R)")
axes[0].set(xlabel="bits per number", ylabel="mean squared error", title="The right look costs at most twice the error")
axes[0].legend()
names = list(FACTORS)
axes[1].bar(names, [STEPS * sum(unets[name].values()) / 1e9 for name in names], label=f"{STEPS} denoising steps")
axes[1].bar(names, [decoders.get(name, 0) / 1e9 for name in names], color="C1", label="decoder, once")
axes[1].set(ylabel="billion operations per image", title="Cost falls more slowly than places")
axes[1].legend()
FIGURES = ("fd", "fd_error", "anchor_fd", "precision", "recall", "seconds_per_image", "images_per_second", "steps")
FIGURES += ("again_fd", "again_psnr", "again_ssim")
if record.waits(RESULTS, "make theory-runs (about an hour on one core)"):
    axes[2].text(0.5, 0.5, "the runs are not there yet", ha="center", transform=axes[2].transAxes)
    axes[2].set_axis_off()
else:
    results = json.loads(RESULTS.read_text())
    record.number("minutes", results["minutes"])
    record.number("first_stage_minutes", results["minutes"] * results["first_stage_share"])
    record.number("samples", results["num_images"])
    runs = results["runs"]
    for name, run in runs.items():
        for key, value in run.items():
            if key in FIGURES:
                record.number(f"run_{name}_{key}", value)
        record.number(f"run_{name}_faster", runs["pixels"]["seconds_per_image"] / run["seconds_per_image"])
        if name in VQS:
            entropy = (SIDE // FACTORS[name]) ** 2 * math.log2(run["perplexity"]) / SIDE**2
            record.number(f"run_{name}_used_rate", entropy)
            record.number(f"run_{name}_lost_first_stage", run["again_fd"] - run["anchor_fd"])
        record.number(f"run_{name}_lost_denoiser", run["fd"] - run.get("again_fd", run["anchor_fd"]))
    order = sorted(runs, key=lambda name: runs[name]["fd"])
    record.number("best_factor", FACTORS[order[0]])
    record.number("best_margin", runs[order[1]]["fd"] - runs[order[0]]["fd"])
    # What the chapter says of the tables
    lost = {part: [record.numbers.get(f"run_{name}_lost_{part}", {"value": 0})["value"] for name in names]
            for part in ("denoiser", "first_stage")}  # fmt: skip
    assert lost["denoiser"] == sorted(lost["denoiser"], reverse=True) and lost["first_stage"] == sorted(lost["first_stage"])
    assert lost["denoiser"][-1] < runs["f8"]["fd_error"]  # a sample over f = 8 is as good as what its decoder draws
    assert set(order[:2]) == {"f2", "f4"} and runs["f4"]["fd"] - runs["f2"]["fd"] < runs["f2"]["fd_error"]
    rows = [plt.imread(RESULTS.parent / f"{kind}-{name}.png") for name in names for kind in ("again", "samples")]
    axes[2].imshow(torch.cat([torch.from_numpy(row[::2, ::2, :3].copy()) for row in rows]))
    places = [(i + 0.5) * rows[0].shape[0] / 2 for i in range(len(rows))]
    labels = [f"{name}: {kind}" for name in names for kind in ("data" if name == "pixels" else "decoded data", "samples")]
    axes[2].set_yticks(places, labels)
    axes[2].set(xticks=[], title="Pixels: sharp, misshapen. f8: shaped, blurred")
record.figure(figure)
record.save()
