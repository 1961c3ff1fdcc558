"""The metadata of a card are what the Hub accepts, and say no more about licences than is known."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id

from tests.support.published import finished_run
from tests.support.runs import ROOT
from tinyldm.config import parsing
from tinyldm.config.schema import ConditionConfig, DataConfig, FirstStageConfig, TrainClassifier, TrainConfig, TrainLDM, TrainVQ
from tinyldm.training import model_card

EXAMPLE = ROOT / "pretrained/toyfaces64"
SHORT = TrainConfig(max_steps=1)


def recipe(schema=TrainLDM, **sections):
    return parsing.to_dict(schema(output_dir="runs/x", train=SHORT, **sections))


@pytest.fixture
def first_stage(tmp_path) -> FirstStageConfig:
    """A first stage that was trained on toyfaces."""
    (tmp_path / "vq").mkdir()
    (tmp_path / "vq/config.yaml").write_text(yaml.safe_dump(recipe(TrainVQ)))
    return FirstStageConfig(path=str(tmp_path / "vq"))


def check(file: Path) -> dict:
    """The metadata, after the checks that https://huggingface.co/docs/hub/model-cards names."""
    data = metadata_load(file)
    assert ModelCard(file.read_text(), ignore_metadata_errors=False).data.to_dict() == data  # results are read and written back
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] in (
        *("unconditional-image-generation", "image-to-image", "image-classification"),
    )
    assert data["license"] in ("apache-2.0", "cc-by-4.0", "other")
    assert (data["license"] == "other") == ("license_name" in data)
    assert re.fullmatch(r"[a-z0-9.-]+", data.get("license_name", "x"))
    assert data.get("license_link", "https://").startswith("https://")
    for name in (*data.get("datasets", []), *data.get("base_model", [])):
        validate_repo_id(name)
    for result in data["model-index"][0]["results"]:
        assert result["task"]["type"] == data["pipeline_tag"] and result["dataset"]["type"] and result["metrics"][0]["type"]
    return data


def test_a_first_stage_from_the_hub_is_a_base_model(tmp_path):
    data = check(finished_run(tmp_path / "run") / "README.md")
    assert data["base_model"] == ["CompVis/ldm-celebahq-256"] and "datasets" not in data
    assert data["license"] == "other"  # its data are not known here


def test_a_data_set_of_the_hub_is_named_and_linked():
    config = recipe(data=DataConfig(name="korexyz/celeba-hq-256x256"))
    assert model_card.licence(config)["license_link"] == "https://huggingface.co/datasets/korexyz/celeba-hq-256x256"


def test_drawn_data_have_their_own_licence_if_all_models_were_trained_on_them(first_stage, tmp_path):
    assert model_card.licence(recipe(first_stage=first_stage)) == {"license": "apache-2.0"}
    assert model_card.licence(recipe(TrainVQ, data=DataConfig(name="digits"))) == {"license": "cc-by-4.0"}
    assert model_card.licence(recipe(first_stage=first_stage, data=DataConfig(name="digits")))["license"] == "other"
    assert model_card.licence(recipe(first_stage=first_stage, init_from="me/faces"))["license"] == "other"


def test_the_task_follows_what_goes_in():
    assert model_card.task(recipe()) == "unconditional-image-generation"
    assert model_card.task(recipe(condition=ConditionConfig(low_resolution=16))) == "image-to-image"
    assert model_card.task(recipe(TrainVQ)) == "image-to-image"
    assert model_card.task(recipe(TrainClassifier)) == "image-classification"


def test_the_card_of_the_model_that_comes_with_the_repository_is_what_is_rendered_today():
    """After a change of the templates write it anew: model_card.render(Path("pretrained/toyfaces64"), the same as text)."""
    assert (EXAMPLE / "README.md").read_text() == model_card.render(EXAMPLE, "pretrained/toyfaces64")
    assert check(EXAMPLE / "README.md")["license"] == "apache-2.0"


def test_the_recipe_is_folded_and_a_class_is_drawn():
    text = (EXAMPLE / "README.md").read_text()
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "script: train_ldm" in folded and "script: train_ldm" not in text.replace(folded, "")
    assert "pipeline(labels={'skin': 'dark'}, " in text


def test_a_card_says_of_how_many_images_its_distances_are():
    config = TrainLDM(output_dir="runs/x", train=SHORT)
    assert "256 images" in model_card.remarks(config, {"fd_guided": 50.0}, None)
    assert model_card.remarks(config, {"eval_loss": 0.1}, None) == ""
