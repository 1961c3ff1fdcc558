"""Reading recipes and command lines: precedence, round trips through YAML, and refused input."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from tinyldm.config.networks import UNetConfig
from tinyldm.config.parsing import parse, read_recipe, read_yaml, to_dict, to_yaml
from tinyldm.config.schema import TRAININGS, Sample, SamplerSettings, TrainClassifier, TrainDDPM, TrainLDM, TrainVQ
from tinyldm.data.sources import hub_id
from tinyldm.errors import UserError

ROOT = Path(__file__).parents[2]
REQUIRED = {TrainVQ: ["--output_dir", "out", "--train.max_steps", "5"], Sample: ["--model", "a"]}
REQUIRED[TrainLDM] = REQUIRED[TrainDDPM] = REQUIRED[TrainVQ]
REQUIRED[TrainClassifier] = [*REQUIRED[TrainVQ], "--data.label_columns", "label"]


def parsed(*args: str, schema=TrainLDM):
    return parse(schema, "A test.", [*REQUIRED[schema], *args])


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_recipe_names_its_script_first_and_fits_its_schema(file):
    values = read_recipe(file)
    assert next(iter(values)) == "script"
    assert parse(TRAININGS[values["script"]], "", ["--config", str(file)]).script == values["script"]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_no_recipe_downloads_its_data_in_each_epoch(file):
    values = read_recipe(file)
    config = parse(TRAININGS[values["script"]], "", ["--config", str(file)])
    keeps_latents = isinstance(config, TrainLDM | TrainClassifier) and config.first_stage.keep_latents
    assert not hub_id(config.data.name) or "../shared" in config.data.name or keeps_latents or not config.data.streaming


@pytest.mark.parametrize("card", sorted((ROOT / "configs/hardware").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_card_changes_only_the_batches_of_a_recipe(card):
    recipe = ["--config", str(ROOT / "configs/celebahq256.yaml")]
    plain, ours = (parse(TrainLDM, "", [*recipe, *more]) for more in ([], ["--config", str(card)]))
    times = ours.train.batch_size * ours.train.gradient_accumulation_steps / plain.train.batch_size
    assert ours.train.learning_rate == pytest.approx(plain.train.learning_rate * times**0.5, rel=0.01)
    assert ours.train.lr_warmup_steps == plain.train.lr_warmup_steps / times
    assert replace(ours, train=plain.train) == plain and f"configs/hardware/{card.name}" in card.read_text()


def test_a_recipe_is_refused_by_another_script():
    demo = "configs/demo.yaml is a recipe for train_ldm.py: python train_ldm.py --config configs/demo.yaml"
    for schema in (TrainVQ, TrainDDPM, Sample):
        with pytest.raises(UserError) as caught:
            parse(schema, "", ["--config", "configs/demo.yaml"])
        assert str(caught.value) == demo


def test_a_recipe_for_an_unknown_script(tmp_path):
    (tmp_path / "recipe.yaml").write_text("script: train_gan\n")
    with pytest.raises(UserError, match="script is train_gan; give one of train_vq, train_ldm, train_ddpm, train_classifier"):
        parsed("--config", str(tmp_path / "recipe.yaml"))
    (tmp_path / "recipe.yaml").write_text("seed: 4\n")
    assert (config := parsed("--config", str(tmp_path / "recipe.yaml"))).seed == 4 and config.script == "train_ldm"


# ------------------------------------------------------------------------------------------------------------- reading


def test_the_command_line_overrides_yaml_and_yaml_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3\ndata: {name: faces, resolution: 64}\ntrain: {learning_rate: 1e-3}\nunet: {dropout: 0.1}\n")
    config = parsed("--config", str(recipe), "--data.resolution", "32", "--unet.block_out_channels", "[32,32,64,64]")
    assert (config.seed, config.data.name, config.data.resolution, config.data.split) == (3, "faces", 32, "train")
    assert (config.train.learning_rate, config.train.batch_size, config.train.max_steps) == (0.001, 64, 5)
    assert (config.unet.dropout, config.unet.block_out_channels) == (0.1, (32, 32, 64, 64))
    assert isinstance(config, TrainLDM) and isinstance(config.unet, UNetConfig)


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("a.parquet", "a.parquet"),
        ('["a", "b"]', ["a", "b"]),
        ('{"train": ["a", "b"], "test": "c"}', {"train": ["a", "b"], "test": "c"}),
    ],
)
def test_data_files_have_the_forms_of_datasets(written, files):
    assert parsed("--data.data_files", written).data.data_files == files


@pytest.mark.parametrize("schema", [TrainVQ, TrainLDM, Sample])
def test_a_written_config_can_be_read(schema, tmp_path):
    changes = {
        TrainVQ: ["--seed", "7", "--data.eval_split", "valid", "--loss.perceptual", "none", "--vq.norm_num_groups", "16"],
        TrainLDM: ["--train.learning_rate", "1.2345678901234567e-05", "--unet.add_attention", "false", "--hub.repo_id", "a/b"],
        Sample: ["--interpolate", "[3, 4]", "--scheduler", "ddim", "--eta", "0.1"],
    }
    config = parsed(*changes[schema], schema=schema)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = parse(schema, "", ["--config", str(tmp_path / "config.yaml")])
    assert again == config
    assert read_yaml(tmp_path / "config.yaml") == to_dict(config)
    assert list(read_yaml(tmp_path / "config.yaml")) == [item.name for item in fields(schema)]


def test_the_output_of_print_config_can_be_read(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--data.resolution", "32", "--print_config")
    assert caught.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse(TrainLDM, "", ["--config", str(tmp_path / "printed.yaml")]) == parsed("--data.resolution", "32")


def test_words_that_yaml_reads_as_something_else(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train: {mixed_precision: no, log_with: null}\ntrain.batch_size: 8\n")
    train = parsed("--config", str(tmp_path / "recipe.yaml")).train
    assert (train.mixed_precision, train.log_with, train.batch_size) == ("no", "none", 8)
    (tmp_path / "recipe.yaml").write_text("loss: {perceptual: null}\n")
    assert parsed("--config", str(tmp_path / "recipe.yaml"), schema=TrainVQ).loss.perceptual == "none"


def test_numbers_are_plain_ones():
    config = parsed("--train.batch_size", "8", "--train.learning_rate", "1", "--unet.block_out_channels", "[32,32,32,32]")
    assert type(config.train.batch_size) is int and type(config.train.learning_rate) is float
    assert {type(width) for width in config.unet.block_out_channels} == {int}


def test_sample_has_the_sampler_settings():
    config = parsed("--scheduler", "ddim", "--eta", "0.5", "--labels", "3", schema=Sample)
    assert isinstance(config, SamplerSettings)
    assert (config.scheduler, config.num_inference_steps, config.eta, config.labels) == ("ddim", 50, 0.5, "3")


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--train.batchsize 3", "there is no key train.batchsize: did you mean train.batch_size?"),
        ("--train.max_step 3", "there is no key train.max_step: did you mean train.max_steps?"),
        ("--data.nmae=x", "there is no key data.nmae: did you mean data.name?"),
        ("--dta.name x", "there is no key dta.name: did you mean data.name?"),
        ("--batch-size 3", "there is no key batch-size: did you mean train.batch_size?"),
        ("--max_step 3", "there is no key max_step: did you mean train.max_steps?"),
        ("--unet.learning_rate 1", "there is no key unet.learning_rate: did you mean train.learning_rate?"),
        ("--verbose", "there is no key verbose; --help all explains every key"),
        ("extra", "unexpected argument 'extra': keys are given as --key value"),
        ("--train.batch_size", "train.batch_size has no value that fits; give a whole number above 0"),
        ("--train.batch_size=", "train.batch_size is empty; give a whole number above 0"),
        ("--train.batch_size many", "train.batch_size is many; give a whole number above 0"),
        ("--train.batch_size 1.5", "train.batch_size is 1.5; give a whole number above 0"),
        ("--train.max_steps x", "train.max_steps is x; give a whole number above 0, or null"),
        ("--data.streaming perhaps", "data.streaming is perhaps; give true or false"),
        ("--data.channels 2", "data.channels is 2; give one of 1, 3"),
        (
            "--train.lr_scheduler cosin",
            "train.lr_scheduler is cosin; give one of constant, constant_with_warmup, linear, cosine, ",
        ),
        ("--unet.block_out_channels 64", "unet.block_out_channels is 64; give a list of whole numbers above 0"),
        ("--unet.block_out_channels [64,0]", "unet.block_out_channels contains 0; give a list of whole numbers above 0"),
        (
            "--scheduler.prediction_type v-prediction",
            "scheduler.prediction_type is v-prediction; give one of epsilon, v_",
        ),
        ("--scheduler.beta_schedule sigmoid", "scheduler.beta_schedule is sigmoid"),  # which the shipped DDIMScheduler lacks
        ("--train 3", "train is a section: give its keys, such as --train.max_steps"),
        ("--script train_vq", "script is train_vq; give train_ldm"),
        ("--config missing.yaml", "the recipe missing.yaml cannot be read: No such file or directory"),
        ("--config", "--config names no file"),
    ],
)
def test_bad_command_lines(args, words):
    with pytest.raises(UserError) as caught:
        parsed(*args.split())
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_missing_required_keys():
    with pytest.raises(UserError, match="output_dir must be given: add --output_dir VALUE"):
        parse(TrainLDM, "", [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"trian: {max_steps: 3}", "there is no key trian: did you mean train?"),
        (b"train: {batchsize: 3}", "there is no key train.batchsize: did you mean train.batch_size?"),
        (b"batch_size: 3", "there is no key batch_size: did you mean train.batch_size?"),
        (
            b"unet: {freq_shift: 1}",
            "there is no key unet.freq_shift; other arguments of diffusers' UNet2DModel go into unet.extra",
        ),
        (b"3: 4", "there is no key 3"),
        (b"train: {batch_size: many}", "train.batch_size is many; give a whole number above 0"),
        (b"train: {learning_rate: .nan}", "train.learning_rate is nan; give a number above 0"),
        (b"seed: {a: 3}", "seed has no value that fits; give a whole number of at least 0"),
        (b"output_dir: 3", "output_dir is 3; give text"),
        (b"train: 3", "train is 3, but it is a section; give its keys, as in train: {max_steps: ...}"),
        (b"train:", "train is empty, but it is a section"),
        (b"unet: [64, 64]", "unet is [64, 64], but it is a section"),
        (b"train: {batch_size: [1,", "is not valid YAML (while parsing"),
        (b"- 1\n- 2", "is not a mapping; write keys and values"),
        (b"", "is empty; write keys and values"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_bad_recipes(text, words, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(text)
    with pytest.raises(UserError) as caught:
        parsed("--config", str(tmp_path / "bad.yaml"))
    assert words.lower() in str(caught.value).lower() and "\n" not in str(caught.value)


ABOVE_0 = [
    "data.resolution", "data.shuffle_buffer", "train.batch_size", "train.gradient_accumulation_steps",
    "train.logging_steps", "train.eval_steps", "train.sample_steps", "train.checkpointing_steps",
    "train.checkpoints_total_limit", "train.num_eval_images", "train.learning_rate", "train.max_steps", "train.num_epochs",
    "train.max_grad_norm", "train.metrics_steps", "hub.push_steps", "diffusion.snr_gamma", "diffusion.preview_steps",
    "unet.norm_num_groups",
]  # fmt: skip
RANGES = [
    *[(TrainLDM, key, value, "number above 0") for key in ABOVE_0 for value in ("0", "nan")],
    *[
        (TrainLDM, f"train.{key}", value, "1 excluded")
        for key in ("ema_decay", "adam_beta1", "adam_beta2")
        for value in ("1", "nan")
    ],
    *[(TrainLDM, "data.eval_fraction", value, "between 0 and 1, both excluded") for value in ("0", "1", "nan")],
    *[(TrainLDM, "train.learning_rate", value, "above 0") for value in ("inf", "-1")],
    (TrainLDM, "train.lr_warmup_steps", "-1", "at least 0"),
    (TrainLDM, "train.adam_weight_decay", "-1", "at least 0"),
    (TrainLDM, "train.num_metrics_images", "19", "at least 20"),
    *[
        (schema, "seed", value, "at least 0, below 2^63")
        for schema in (TrainVQ, Sample)
        for value in ("-1", str(2**64), "1e400")
    ],
    *[(TrainLDM, "data.num_workers", value, "from 0 to 256") for value in ("-1", "5000", "nan")],
    *[(TrainDDPM, "scheduler.num_train_timesteps", value, "from 2 to 100,000") for value in ("1", "0", "1000000000", "nan")],
    *[(TrainVQ, "vq.layers_per_block", value, "from 1 to 64") for value in ("0", "1000000000")],
    (TrainVQ, "loss.discriminator_layers", "1000000", "from 0 to 12"),
    (TrainDDPM, "diffusion.preview_images", "1000000", "from 1 to 1,000"),
    (TrainLDM, "scheduler.beta_end", "1.5", "between 0 and 1"),
    (TrainVQ, "vq.norm_num_groups", "0", "above 0"),
    (TrainVQ, "loss.adversarial_weight", "nan", "at least 0"),
    *[(Sample, key, "0", "above 0") for key in ("num_images", "batch_size", "num_inference_steps")],
    *[(Sample, "eta", value, "from 0 to 1") for value in ("1.5", "nan")],
]


@pytest.mark.parametrize(("schema", "key", "value", "words"), RANGES)
def test_values_outside_their_range(schema, key, value, words):
    with pytest.raises(UserError) as caught:
        parsed(f"--{key}={value}", schema=schema)
    message = str(caught.value)
    assert message.startswith(f"{key} is {value}; give a") and words in message and "\n" not in message


CONTRADICTIONS = [
    (TrainLDM, "train.batch_size 1000000000", "a step of 1,000,000,000 images .* train.batch_size"),
    (TrainDDPM, "train.gradient_accumulation_steps 100000 data.resolution 512", "train.gradient_accumulation_steps"),
    (TrainVQ, "data.resolution 100000", "px takes too much memory"),
    (TrainLDM, "train.max_steps null", "set train.max_steps or train.num_epochs"),
    (TrainLDM, "train.lr_scheduler piecewise_constant", "train.lr_step_rules"),
    (TrainLDM, "train.lr_step_rules 1:10,0.1", "piecewise_constant"),
    (TrainLDM, "train.lr_scheduler piecewise_constant train.lr_step_rules 1:10", "write it as"),
    (TrainLDM, "train.best_by eval_fd", "train.metrics_steps"),
    (TrainLDM, "data.eval_split train", "data.split and data.eval_split.*data.eval_split to null"),
    (TrainLDM, "hub.push true", "hub.repo_id"),
    (TrainLDM, "resume latest overwrite true", "resume and overwrite"),
    (TrainLDM, "unet.block_out_channels [64,64]", "unet.block_out_channels.*2, 4 and 4"),
    (TrainLDM, "unet.block_out_channels [64,64,128,120]", "unet.norm_num_groups 32 does not divide the width 120"),
    (TrainLDM, "scheduler.rescale_betas_zero_snr true scheduler.prediction_type epsilon", "scheduler.prediction_type to v"),
    (TrainLDM, "scheduler.beta_start 0.5", "scheduler.beta_start 0.5 is above scheduler.beta_end"),
    (TrainLDM, "diffusion.preview_steps 2000", "diffusion.preview_steps.*1000"),
    (TrainLDM, "diffusion.loss bound scheduler.variance_type learned_range diffusion.snr_gamma null", "use train_ddpm.py"),
    (TrainLDM, "data.label_columns [a,b,a]", "names a column twice: a, b, a"),
    (Sample, "guidance_interval [0.5,0.2]", "give its start first"),
    (TrainDDPM, "diffusion.loss hybrid", "needs the loss hybrid or bound"),
    (TrainVQ, "vq.up_block_types [UpDecoderBlock2D]", "vq.up_block_types.*3, 3 and 1"),
    (TrainVQ, "vq.norm_num_groups 48", "vq.norm_num_groups 48 does not divide the width 128"),
    (TrainVQ, "data.resolution 70", "data.resolution 70 .* 4"),
    (TrainVQ, "train.mixed_precision fp16", "train.mixed_precision to bf16 or no"),
    (TrainClassifier, "data.label_columns null", "data.label_columns is null: name the columns"),
    (TrainClassifier, "train.metrics_steps 5", "train.metrics_steps measures images, and a classifier draws none"),
    (Sample, "classifier runs/c", "classifier needs labels: say what to draw"),
    (Sample, "classifier runs/c labels a=1 guidance_model runs/d", "are for a guide, not for a classifier"),
    (Sample, "classifier runs/c labels a=1 guidance_rescale 0.5", "are for a guide, not for a classifier"),
    (Sample, "eta 0.5 scheduler euler", "eta only applies to DDIM, not euler"),
    (
        TrainLDM,
        "train.compile reduce-overhead train.gradient_accumulation_steps 2",
        "reduce-overhead cannot accumulate gradients",
    ),
    (TrainLDM, "data.augment 0.1", "set first_stage.keep_latents to false"),
    (TrainVQ, "data.augment 0.1", "data.augment is for diffusion models"),
    (TrainClassifier, "data.label_columns a data.augment 0.1", "data.augment is for models that draw"),
    (TrainLDM, "condition.low_resolution 256", "condition.low_resolution 256 is not below data.resolution 256"),
    (Sample, "mask 1,2,3,4", "mask says which part of an image to draw: give --image too"),
    (Sample, "image a.png mask 1,2,3,4 strength 0.7", "strength is for variations"),
    (Sample, "image a.png invert b.png", "image and invert are two different things to do"),
    (Sample, "then runs/b strip true", "strip and interpolate show one model drawing from noise"),
    (
        TrainLDM,
        "process.kind flow process.prediction epsilon",
        "process.prediction epsilon does not work with process.kind flow",
    ),
    (
        TrainLDM,
        "process.kind ve process.sigma_min 5 process.sigma_max 1",
        "process.sigma_min 5 is not below process.sigma_max 1",
    ),
    (TrainLDM, "process.kind edm process.shift 2", "process.shift is for flow, not for process.kind edm: remove it"),
    (TrainLDM, "process.prediction epsilon", "for the processes in continuous time.* set scheduler.prediction_type"),
    (TrainLDM, "process.kind flow process.log_snr [0,1]", "process.log_snr is for process.times normal"),
    (TrainDDPM, "process.kind edm diffusion.loss hybrid", "diffusion.loss hybrid needs process.kind vp, not edm"),
    (TrainDDPM, "process.kind edm scheduler.variance_type learned_range", "learned_range needs process.kind vp, not edm"),
    (TrainLDM, "diffusion.loss likelihood diffusion.snr_gamma null", "likelihood is for processes in continuous time; vp has"),
    (TrainLDM, "process.kind flow diffusion.loss likelihood diffusion.snr_gamma 5", "likelihood has its own weights"),
    (TrainLDM, "process.kind flow diffusion.loss likelihood", "uniform in log SNR: set process.times log-snr"),
]


@pytest.mark.parametrize(("schema", "changes", "words"), CONTRADICTIONS)
def test_values_that_contradict_each_other(schema, changes, words):
    pairs = changes.split()
    with pytest.raises(UserError, match=words) as caught:
        parsed(*[f"--{word}" if i % 2 == 0 else word for i, word in enumerate(pairs)], schema=schema)
    assert "\n" not in str(caught.value)


def test_epochs_instead_of_steps():
    assert parse(TrainLDM, "", ["--output_dir", "o", "--train.num_epochs", "0.5"]).train.num_epochs == 0.5


def test_a_damaged_run_config(tmp_path):
    (tmp_path / "a_file").write_text("no mapping")
    for name, words in (("config.yaml", "is missing: .* is not a run folder"), ("a_file/config.yaml", "is missing")):
        with pytest.raises(UserError, match=words):
            read_yaml(tmp_path / name)
    for content, words in ((b"a: [", "not valid YAML"), (b"\xff\xff", "not valid YAML"), (b"words", "holds no keys")):
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--train.batchsize 4", "did you mean train.batch_size?"),
        ("--data.resolutoin 4", "did you mean data.resolution?"),
        ("--train.lr 1", "there is no key train.lr; --help all"),
    ],
)
def test_misspelt_keys(args, words):
    with pytest.raises(UserError) as caught:
        parsed(*args.split())
    assert words in str(caught.value)


def test_an_unknown_sampler_lists_the_samplers():
    with pytest.raises(UserError, match=r"scheduler is pndm; give one of ddim, ddpm, .*, langevin, or null"):
        parsed("--scheduler", "pndm", schema=Sample)
