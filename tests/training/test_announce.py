"""What a training prints at its start and end."""

import shlex
import sys

import pytest

import evaluate
import sample
import train_ddpm
import train_ldm
from tests.support.runs import DDPM, DIGITS, EVERY_STEP, run
from tinyldm.config.parsing import parse
from tinyldm.config.schema import Sample, TrainClassifier, TrainConfig, TrainDDPM, TrainLDM, TrainVQ
from tinyldm.training import announce

SHORT = TrainConfig(max_steps=300, logging_steps=50)


def test_the_header_counts_steps_images_and_epochs():
    text = announce.header(TrainDDPM(output_dir="runs/x", train=SHORT), 1234567, "1 x T4", 100, 300, 64, 6400)
    assert "diffusion model on pixels of 1,234,567 parameters" in text and "device 1 x T4, precision no" in text
    assert "300 steps of 64 images: 19,200 images, 3 epochs; 100 are done" in text
    assert "folder runs/x: a row of metrics.csv every 50 steps" in text and "measured over the steps to 150" in text


def test_a_few_images_seen_many_times_are_noted():
    few, enough = (
        announce.header(TrainDDPM(output_dir="runs/x", train=SHORT), 1, "CPU", 0, 300, 64, epoch) for epoch in (11, 6400)
    )
    assert "each of the 11 images is seen 1,745 times" in few and "note" not in enough


def test_a_stream_of_unknown_length_has_no_epochs_and_a_new_run_nothing_done():
    text = announce.header(TrainVQ(output_dir="runs/x", train=SHORT), 5, "CPU", 0, 40, 64, None)
    assert "epochs" not in text and "done" not in text and "time to expect" not in text  # over before the first row


def test_the_time_to_expect():
    assert announce.expectation(7200, 2.0).startswith("about 1 h 0 min to go at 2 images/s")


def test_the_ending_names_the_last_loss_and_the_report():
    rows = [{"step": 1, "eval_loss": 0.5}, {"step": 2, "eval_loss": 0.25}, {"step": 3, "loss": 9.0}]
    text = announce.closing(TrainDDPM(output_dir="runs/x", train=SHORT), 1000, 65, rows)
    assert text.startswith("done: runs/x: 1,000 steps in 1 min 5 s, held-out loss 0.25\n  look: runs/x/report.html\n  next: ")


@pytest.mark.parametrize("schema", [TrainVQ, TrainLDM, TrainDDPM, TrainClassifier])
def test_the_next_commands_are_understood_by_their_scripts(schema, monkeypatch):
    commands = announce.next_commands(schema(output_dir="runs/my run", train=SHORT))
    assert any("'runs/my run'" in command for command in commands)
    for command in commands:
        if "sample.py" in command:
            _, script, *args = shlex.split(command)
            monkeypatch.setattr(sys, "argv", [script, *args])
            assert "runs/my run" in vars(parse(Sample, sample.__doc__)).values() and evaluate and train_ldm


def test_a_shipped_first_stage_leads_to_its_recipe():
    commands = announce.next_commands(TrainVQ(output_dir="runs/demo-vq", train=SHORT))
    assert commands[0] == "python train_ldm.py --config configs/demo.yaml"
    commands = announce.next_commands(TrainVQ(output_dir="runs/mine", train=SHORT))
    assert commands[0] == "python train_ldm.py --config RECIPE --first_stage.path runs/mine"


@pytest.mark.slow
def test_a_training_says_what_it_does_and_what_comes_next(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    length = ["--train.max_steps", 2, "--output_dir", folder]
    run(monkeypatch, train_ddpm, *DIGITS, *EVERY_STEP, *DDPM, *length)
    out, err = capfd.readouterr()
    assert out.index("data: digits") < out.index("training: diffusion model on pixels") < out.index(f"done: {folder}: 2 steps")
    assert out.endswith(f"next: python evaluate.py --model {folder}\n")
    assert err.count("to go at") == 1
