"""Publishing a run: what a user loads at the root of the repository, and what shows where it comes from beside it."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from tinyldm.config import HubConfig
from tinyldm.errors import UserError

BESIDE = ("README.md", "config.yaml", "metrics.csv", "loss.png")


def check_token() -> None:
    """Make sure, before a night of training, that the push at its end can be done.

    Raises:
        UserError: without a valid token or a network.
    """
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise UserError("hub.push needs a token: run `hf auth login`, or set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"hub.push: the Hub does not accept this token or cannot be reached ({error})") from error


def push(run: Path, hub: HubConfig) -> str:
    """Upload a run in one commit and return its address.

    The pipeline's files go to the root, so that `DiffusionPipeline.from_pretrained(repo_id)` finds them; a first stage
    stays in vqvae/. Checkpoints and logs stay at home.

    Raises:
        UserError: when the upload fails; the run is whole on the disk.
    """
    model = run / "pipeline" if (run / "pipeline").is_dir() else run
    parts = model.rglob("*") if model != run else (run / "vqvae").rglob("*")
    files = {str(file.relative_to(model)): file for file in parts if file.is_file()}
    files |= {name: run / name for name in BESIDE if (run / name).exists()}
    files |= {f"samples/{file.name}": file for file in sorted((run / "samples").glob("step-*.png"))[-1:]}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in sorted(files.items())]
    api = HfApi()
    try:
        api.create_repo(hub.repo_id, private=hub.private, exist_ok=True)
        return str(api.create_commit(hub.repo_id, operations, commit_message=f"Upload {run.name}").repo_url)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"the push to {hub.repo_id} failed ({error}); the run is whole in {run}") from error
