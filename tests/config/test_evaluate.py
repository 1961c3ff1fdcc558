import pytest

from tinyldm.config import evaluate as evaluate_config
from tinyldm.config.schema import SamplerSettings
from tinyldm.errors import UserError


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "exactly one of --model .* and --images"),
        (["--model", "a", "--images", "b"], "exactly one of --model .* and --images"),
        (["--images", "a", "--metrics", "fid,psnr"], "give some of fid, kid"),
        (["--images", "a", "--metrics", ","], "give some of fid, kid"),
        (["--images", "a", "--metrics", "is", "--features", "dinov2"], "needs --features inception"),
        (["--images", "a", "--num_images", "0"], "num_images is 0"),
        (["--images", "a", "--num_reference", "-1"], "num_reference is -1"),
        (["--images", "a", "--data.resolution", "0"], "data.resolution is 0"),
        (["--images", "a", "--data.eval_split", "train"], "both 'train'"),
        (["--images", "a", "--data.eval_fraction", "1"], "data.eval_fraction is 1"),
        (["--images", "a", "--batch_size", "0"], "batch_size is 0"),
        (["--images", "a", "--eta", "2"], "eta is 2"),
        (["--images", "a", "--seed", "-1"], "seed is -1"),
        (["--images", "a", "--features", "vgg"], "features"),
        (
            ["--model", "a", "--sweep", "guidance=1,2"],
            "write it as guidance_scale=1,1.5,2 with one of: num_inference_steps, eta,",
        ),
        (["--model", "a", "--sweep", "guidance_interval=0,1"], "write it as guidance_scale=1,1.5,2"),
        (["--model", "a", "--sweep", "ema=0.05,0.1"], "write it as guidance_scale=1,1.5,2"),
        (["--model", "a", "--sweep", "1,2"], "write it as guidance_scale=1,1.5,2"),
        (["--model", "a", "--sweep", "guidance_scale=1,two"], "sweep has the guidance_scale two; give a number above 0"),
        (["--model", "a", "--sweep", "guidance_scale=1,"], "sweep has the guidance_scale empty; give a number above 0"),
        (["--model", "a", "--sweep", "guidance_scale=0,1"], "sweep has the guidance_scale 0; give a number above 0"),
        (["--model", "a", "--sweep", "guidance_scale=1,nan"], "sweep has the guidance_scale nan; give a number above 0"),
        (["--model", "a", "--sweep", "num_inference_steps=10,2.5"], "steps 2.5; give a whole number above 0"),
        (["--model", "a", "--sweep", "eta=0.5"], "with one value only: give several"),
        (["--model", "a", "--sweep", "eta=0.5,0.5"], "with one value only: give several"),
        (["--model", "a", "--sweep", "eta=0,1", "--scheduler", "unipc"], "eta only applies to DDIM"),
        (["--images", "a", "--sweep", "eta=0,1"], "give --model, not --images"),
    ],
)
def test_refused_values(args, words):
    with pytest.raises(UserError, match=words) as caught:
        evaluate_config.read("", args)
    assert "\n" not in str(caught.value)


def test_the_data_and_seed_of_a_run_are_defaults(ldm_run, vq_run, tmp_path):
    config = evaluate_config.read("", ["--model", str(ldm_run), "--data.num_workers", "1"])
    assert config.data.resolution == 16 and config.data.eval_fraction == 0.2 and config.data.num_workers == 1
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "config.yaml").write_text("seed: 7\ndata: {name: x, eval_split: test, data_files: {train: [a, b]}}\n")
    config = evaluate_config.read("", ["--model", str(copy), "--data.eval_split", "null"])
    assert (config.split_seed, config.data.name, config.data.eval_split) == (7, "x", None)
    assert config.data.data_files == {"train": ["a", "b"]}
    (copy / "config.yaml").write_text("[")
    with pytest.raises(UserError, match="is not valid YAML"):
        evaluate_config.read("", ["--model", str(copy)])


def test_evaluate_has_the_sampler_settings():
    args = ["--model", "a", "--scheduler", "ddim", "--eta", "1", "--labels", "cat", "--num_inference_steps", "9"]
    config = evaluate_config.read("", args)
    assert isinstance(config, SamplerSettings) and (config.eta, config.labels, config.num_inference_steps) == (1, "cat", 9)
    with pytest.raises(UserError, match="eta only applies to DDIM"):
        evaluate_config.read("", ["--model", "a", "--scheduler", "unipc", "--eta", "1"])


def test_a_sweep_has_settings_for_each_value():
    config = evaluate_config.read("", ["--model", "a", "--eta", "0.5", "--sweep", "num_inference_steps = 20, 5,20"])
    found = list(config.swept)
    assert [(key, value) for key, value, _ in found] == [("num_inference_steps", 20), ("num_inference_steps", 5)]
    assert [(settings.num_inference_steps, settings.eta, settings.sweep) for _, _, settings in found] == [
        (20, 0.5, None),
        (5, 0.5, None),
    ]
    assert not list(evaluate_config.read("", ["--model", "a"]).swept)
