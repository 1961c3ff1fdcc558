"""Publishes a run on the Hub: the model at the root of the repository, its report and figures beside it.

    python -m tinyldm.training.hub push runs/faces                    # the push that a training with hub.push does at its end
    python -m tinyldm.training.hub export runs/faces ~/faces --half true      # the same files in a folder, at half the size

A push is one commit, so nobody ever sees half of it. Its files are copied aside first, since a training changes them.
"""

import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_session
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from tinyldm.config.parsing import dump, read_yaml
from tinyldm.config.paths import shareable
from tinyldm.config.schema import HubConfig
from tinyldm.errors import UserError, boundary, one_line_errors, root_cause, why, without_secrets
from tinyldm.files import link_or_copy, open_to_others, refuse_links
from tinyldm.training import model_card

# Folder of the model in a run -> its place in the repository: what diffusers loads goes to the root.
PLACES = {"pipeline": "", "vqvae": "vqvae", "classifier": "classifier", "model": "model"}
BESIDE = (
    "config.yaml",
    "metrics.csv",
    "loss.png",
    "evaluation.json",
    "results.csv",
    "curve.png",
    "curve.csv",
    "features-*.png",
)
ASIDE = ".pushing-"
PAUSES = (10.0, 60.0)  # seconds before the second and third try; the client retries most requests for 20 s before
LONGEST_PAUSE = 300.0  # seconds; a longer Retry-After is a failure
TIMEOUT = 120.0  # seconds without a byte; the client itself would wait forever
HOPELESS = (401, 402, 403, 404)  # statuses that a second try cannot change: the token, its rights, the quota, no repository


def check_token(hub: HubConfig) -> None:
    """Checks, before training starts, that the token can push to the repository.

    Raises:
        UserError: for an invalid repo_id, without a valid token or a network, or with a token that cannot write there.
    """
    repo_id = without_secrets(hub.repo_id or "")
    try:
        validate_repo_id(repo_id)
        namespace, _ = repo_id.split("/")
    except ValueError as error:
        raise UserError(f"hub.repo_id is {repo_id!r}; give user/name, of letters, digits, dots and dashes") from error
    try:
        get_session().timeout = TIMEOUT
        me = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise UserError("hub.push needs a token: run `hf auth login`, or set HF_TOKEN") from error
    except Exception as error:  # of the network, or for a token that no header can hold
        raise UserError(f"hub.push: the Hub does not accept this token or cannot be reached ({why(error)})") from error
    mine = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    if namespace not in mine:
        raise UserError(f"hub.repo_id is {repo_id}, but this token is {me['name']}'s and writes to {', '.join(mine)} only")
    token = me.get("auth", {}).get("accessToken", {})
    rights = [right for scope in token.get("fineGrained", {}).get("scoped", []) for right in scope["permissions"]]
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and "repo.write" not in rights):
        raise UserError("hub.push: this token can only read; make one that can write: https://huggingface.co/settings/tokens")


def push(run: Path, hub: HubConfig, message: str) -> str:
    """Upload a run in one commit and return its address. Temporary failures are retried.

    The pipeline's files go to the root, so that `DiffusionPipeline.from_pretrained(repo_id)` finds them; a first stage
    stays in vqvae/, a classifier in classifier/, the generators of a zero-shot run in model/. Checkpoints and logs are not
    uploaded.

    Raises:
        UserError: for a folder without a model, or when the upload fails; the run on the disk is complete.
    """
    return _upload(_copy_aside(run, _repo_id(hub)), run, hub, message)


class BackgroundPush:
    """Pushes a run while it trains, in a thread, one push at a time.

    Training does not wait for the upload, and a failed upload does not stop it."""

    def __init__(self, run: Path, hub: HubConfig):
        self.run, self.hub = run, hub
        self.thread: threading.Thread | None = None
        for leftover in run.glob(f"{ASIDE}[0-9]*"):  # from a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)

    def start(self, message: str) -> None:
        """Push what is on the disk now, unless the last push is still running."""
        if self.thread and self.thread.is_alive():
            return _print(f"{message}: not pushed, the last push is still running")
        try:
            aside = _copy_aside(self.run, _repo_id(self.hub))
        except UserError as error:
            return _print(f"{message}: {error}; training continues")
        # A daemon, so that a network that hangs does not keep the interpreter from ending.
        self.thread = threading.Thread(target=self._push, args=(aside, message), name="hub-push", daemon=True)
        self.thread.start()

    def finish(self, message: str) -> str:
        """Push the final state, in the foreground, and return its address.

        Raises:
            UserError: when that fails, with the command that repeats it.
        """
        if self.thread:
            self.thread.join()
        try:
            return push(self.run, self.hub, message)
        except UserError as error:
            raise UserError(
                f"{error}: `python -m tinyldm.training.hub push {shlex.quote(str(self.run))}` repeats the push"
            ) from error

    def _push(self, aside: Path, message: str) -> None:
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the client's warnings and bars would run into the training's bar
        try:
            with disable_progress_bars():
                _upload(aside, self.run, self.hub, message)
        except UserError as error:
            _print(f"{message}: {error}; training continues")
        finally:
            logging.set_verbosity(verbosity)


def _repo_id(hub: HubConfig) -> str:
    if not hub.repo_id:
        raise UserError("hub.repo_id is missing; give user/name")
    return hub.repo_id


def _copy_aside(run: Path, repo_id: str) -> Path:
    """A new folder inside the run with the files to push, laid out as in the repository.

    Symbolic links are left out. Paths of this machine lose all but their last part.

    Raises:
        UserError: for a folder that is not a run or has no model, or that cannot be written.
    """
    config = read_yaml(run / "config.yaml")
    refuse_links(*(run / name for name in PLACES))
    model = next((name for name in PLACES if (run / name).is_dir()), None)
    if not ({"output_dir", "data", "train", "hub"} <= config.keys() and model):
        raise UserError(f"{run} is not a run, or has no model yet: there is no {'/ and no '.join(PLACES)}/")
    aside = run / f"{ASIDE}{os.getpid()}-{time.time_ns()}"
    samples = [] if (run / "samples").is_symlink() else sorted((run / "samples").glob("step-*.png"))
    try:
        aside.mkdir()
        for place, _, names in os.walk(run / model):
            for file in _regular(Path(place) / name for name in names):
                _copy(file, aside / PLACES[model] / file.relative_to(run / model), link=True)
        for file in _regular(file for pattern in BESIDE for file in run.glob(pattern)):
            _copy(file, aside / file.name)
        for picture in _regular(samples)[-1:]:
            _copy(picture, aside / "samples" / picture.name)
        card = model_card.render(run, repo_id)
        if card is not None:
            (aside / "README.md").write_text(card)
        elif _regular([run / "README.md"]):
            _copy(run / "README.md", aside / "README.md")
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: nonsense in a JSON file
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"{run} cannot be pushed: {why(error)}") from error
    return aside


def _regular(files: Iterable[Path]) -> list[Path]:
    """The files among these that are no links. A link may lead to anything on this machine."""
    files = list(files)
    for link in (file for file in files if file.is_symlink()):
        _print(f"not pushed: {link} is a symbolic link")
    return [file for file in files if file.is_file() and not file.is_symlink()]


def _copy(source: Path, target: Path, link: bool = False) -> None:
    """Copy or link a file; JSON and YAML without what says something about this machine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in (".json", ".yaml"):
        text = source.read_text()
        values = json.loads(text) if source.suffix == ".json" else yaml.safe_load(text)
        cleaned = shareable(values)
        if isinstance(values, dict) and "columns" in values:
            cleaned["columns"] = values["columns"]  # names of labels, which may look like paths
        if cleaned != values:
            target.write_text(json.dumps(cleaned, indent=2) if source.suffix == ".json" else dump(cleaned))
            return
    # A save replaces the model's folder and never writes into its files, so links to them stay as they are.
    link_or_copy(source, target) if link else shutil.copy2(source, target)


def _upload(aside: Path, run: Path, hub: HubConfig, message: str) -> str:
    """Commit a folder as it is, in up to three tries, and delete it.

    Raises:
        UserError: when the last try fails, or one that a retry cannot help.
    """
    repo_id, pauses = _repo_id(hub), iter(PAUSES)
    try:
        while True:
            try:
                get_session().timeout = TIMEOUT
                api = HfApi()
                api.create_repo(repo_id, private=hub.private, exist_ok=True)
                files = sorted(file for file in aside.rglob("*") if file.is_file())
                operations = [CommitOperationAdd(file.relative_to(aside).as_posix(), file) for file in files]
                return str(api.create_commit(repo_id, operations, commit_message=message).repo_url)
            except Exception as error:  # httpx2, hf_xet, OSError, RuntimeError, ValueError: none may end a training
                response, pause = getattr(root_cause(error), "response", None), next(pauses, None)
                retry_after = response.headers.get("Retry-After", "") if response is not None else ""
                wait = max(pause or 0.0, float(retry_after) if retry_after.isdigit() else 0.0)
                failed = f"the push to {repo_id} failed ({why(error)})"
                if pause is None or wait > LONGEST_PAUSE or (response is not None and response.status_code in HOPELESS):
                    raise UserError(f"{failed}; the run is complete in {run}") from error
                _print(f"{failed}; trying again in {wait:.0f} s")
                time.sleep(wait)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def push_command(run: str, repo_id: str | None = None, private: bool | None = None) -> None:
    """Push a run, again or for the first time.

    Args:
        run: the run folder.
        repo_id: user/name, instead of the run's hub.repo_id.
        private: whether to create it as a private repository, instead of the run's hub.private.
    """
    before = read_yaml(Path(run) / "config.yaml").get("hub") or {}
    hub = HubConfig(True, repo_id or before.get("repo_id"), before.get("private", False) if private is None else private)
    if not hub.repo_id:
        raise UserError(f"{run} names no repository: give --repo_id user/name")
    check_token(hub)
    print(f"pushed to {push(Path(run), hub, f'Push {Path(run).resolve().name}')}")


def export_command(run: str, folder: str, half: bool = False) -> None:
    """Write the files that a push uploads to a new folder. It is a model for sample.py and for diffusers.

    Args:
        run: the run folder.
        folder: the folder to make. Its card names it as the place of the model.
        half: save the weights in float16, half the size.
    """
    target = Path(folder).expanduser()
    if target.exists():
        raise UserError(f"{folder} exists already: choose another folder, or delete it")
    aside = _copy_aside(Path(run), folder)
    try:
        if half:
            _halve(aside)
        with boundary(f"{folder} cannot be written", "choose another folder"):
            shutil.copytree(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"exported to {folder}: {size / 1e6:.1f} MB")


def _halve(folder: Path) -> None:
    """Save the weights below a folder in float16.

    Raises:
        UserError: for a weight that is too large for it.
    """
    for file in folder.rglob("*.safetensors"):
        weights = {name: w.half() if w.dtype == torch.float32 else w for name, w in load_file(file).items()}
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise UserError(f"{file.relative_to(folder)} has weights over 65,504, too large for float16: leave out --half")
        file.unlink()  # it may be a link to the run's
        save_file(weights, file, {"format": "pt"})
        open_to_others(file)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    with one_line_errors():
        auto_cli({"push": push_command, "export": export_command}, prog="python -m tinyldm.training.hub")
