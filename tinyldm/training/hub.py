"""Publishing a run: what a user loads at the root of the repository, and what shows where it comes from beside it.

    python -m tinyldm.training.hub push runs/faces   # what a training with hub.push does at its end, again

A push is one commit, so that nobody ever sees half of one. Its files are taken aside first, since a training writes on.
"""

import os
import shlex
import shutil
import sys
import threading
import time
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_session
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id
from tqdm.auto import tqdm

from tinyldm.config.parsing import read_yaml
from tinyldm.config.schema import HubConfig
from tinyldm.errors import UserError, one_line_errors, root_cause, why

# Folder of the model in a run -> its place in the repository: what diffusers loads goes to the root.
PLACES = {"pipeline": "", "vqvae": "vqvae", "model": "model"}
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
PAUSES = (10.0, 60.0)  # seconds before the second and third try; the client has tried most requests for 20 s by then
LONGEST_PAUSE = 300.0  # that a Retry-After may ask for
TIMEOUT = 120.0  # seconds without a sign of life; the client by itself would wait for ever
HOPELESS = (401, 402, 403, 404)  # the token, its rights, a full quota (403 as well), a repository that is gone


def check_token(hub: HubConfig) -> None:
    """Make sure, before a night of training, that its pushes can be done.

    Raises:
        UserError: for a repo_id that is none, without a valid token or a network, or with a token that cannot write there.
    """
    try:
        validate_repo_id(hub.repo_id)
        namespace, _ = hub.repo_id.split("/")
    except ValueError as error:
        raise UserError(f"hub.repo_id is {hub.repo_id!r}; give user/name, of letters, digits, dots and dashes") from error
    try:
        get_session().timeout = TIMEOUT
        me = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise UserError("hub.push needs a token: run `hf auth login`, or set HF_TOKEN") from error
    except (HTTPError, OSError) as error:
        raise UserError(f"hub.push: the Hub does not accept this token or cannot be reached ({why(error)})") from error
    mine = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    if namespace not in mine:
        raise UserError(f"hub.repo_id is {hub.repo_id}, but this token is {me['name']}'s and writes to {', '.join(mine)} only")
    token = me.get("auth", {}).get("accessToken", {})
    rights = [right for scope in token.get("fineGrained", {}).get("scoped", []) for right in scope["permissions"]]
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and "repo.write" not in rights):
        raise UserError("hub.push: this token may only read; make one that may write: https://huggingface.co/settings/tokens")


def push(run: Path, hub: HubConfig, message: str) -> str:
    """Upload a run in one commit and return its address; what can get better is tried again.

    The pipeline's files go to the root, so that `DiffusionPipeline.from_pretrained(repo_id)` finds them; a first stage
    stays in vqvae/, the generators of a zero-shot run in model/. Checkpoints and logs stay at home.

    Raises:
        UserError: for a folder that holds no model, or when the upload fails; the run is whole on the disk.
    """
    return _upload(_take_aside(run, hub.repo_id), run, hub, message)


class BackgroundPush:
    """Pushes a run that goes on training, one push at a time, in a thread. Training neither waits for it nor dies of it."""

    def __init__(self, run: Path, hub: HubConfig):
        self.run, self.hub = run, hub
        self.thread: threading.Thread | None = None
        for left in run.glob(f"{ASIDE}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)

    def start(self, message: str) -> None:
        """Push what is on the disk now, unless the push before is still going on."""
        if self.thread and self.thread.is_alive():
            return _say(f"{message}: not pushed, the push before it is still going on")
        try:
            aside = _take_aside(self.run, self.hub.repo_id)
        except UserError as error:
            return _say(f"{message}: {error}; training goes on")
        # A daemon, so that a network that hangs does not keep the interpreter from ending.
        self.thread = threading.Thread(target=self._push, args=(aside, message), name="hub-push", daemon=True)
        self.thread.start()

    def finish(self, message: str) -> str:
        """Push the final state, in the foreground, and return its address.

        Raises:
            UserError: when that fails, with what repeats it.
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
            _say(f"{message}: {error}; training goes on")
        finally:
            logging.set_verbosity(verbosity)


def _take_aside(run: Path, repo_id: str) -> Path:
    """What is to be pushed, laid out as in the repository, in a new folder inside the run.

    Raises:
        UserError: for a folder that is no run or holds no model, or where that cannot be written.
    """
    config = read_yaml(run / "config.yaml")
    model = next((name for name in PLACES if (run / name).is_dir()), None)
    if not ({"output_dir", "data", "train", "hub"} <= config.keys() and model):
        raise UserError(f"{run} is not a run, or holds no model yet: there is no {'/ and no '.join(PLACES)}/")
    aside = run / f"{ASIDE}{os.getpid()}-{time.time_ns()}"
    try:
        shutil.copytree(run / model, aside / PLACES[model], copy_function=_link, dirs_exist_ok=True)
        for file in (file for pattern in BESIDE for file in run.glob(pattern)):
            shutil.copy2(file, aside)
        for picture in sorted((run / "samples").glob("step-*.png"))[-1:]:
            (aside / "samples").mkdir()
            shutil.copy2(picture, aside / "samples")
        # The card's examples name the run's own place where it was trained without hub.push.
        before = config["hub"]["repo_id"] or str(Path(config["output_dir"]))
        card = (run / "README.md").read_text()
        for old, new in (('"{}/pipeline"', '"{}"'), ('"{}"', '"{}"'), ("--first_stage.path {}`", "--first_stage.path {}`")):
            card = card.replace(old.format(before), new.format(repo_id))
        (aside / "README.md").write_text(card)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"{run} cannot be pushed: {why(error)}") from error
    return aside


def _link(source: str, target: str) -> None:
    """Weights need not be copied: a save replaces the model's folder and never writes into its files."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _upload(aside: Path, run: Path, hub: HubConfig, message: str) -> str:
    """Commit a folder as it is, in up to three tries, and delete it.

    Raises:
        UserError: when the last one fails, or one that cannot get better.
    """
    try:
        for pause in (*PAUSES, None):
            try:
                get_session().timeout = TIMEOUT
                api = HfApi()
                api.create_repo(hub.repo_id, private=hub.private, exist_ok=True)
                files = sorted(file for file in aside.rglob("*") if file.is_file())
                operations = [CommitOperationAdd(file.relative_to(aside).as_posix(), file) for file in files]
                return str(api.create_commit(hub.repo_id, operations, commit_message=message).repo_url)
            except Exception as error:  # of httpx2, of hf_xet, OSError, RuntimeError, ValueError: no training dies of any
                response = getattr(root_cause(error), "response", None)
                asked = response.headers.get("Retry-After", "") if response is not None else ""
                wait = max(pause or 0.0, float(asked) if asked.isdigit() else 0.0)
                failed = f"the push to {hub.repo_id} failed ({why(error)})"
                if pause is None or wait > LONGEST_PAUSE or (response is not None and response.status_code in HOPELESS):
                    raise UserError(f"{failed}; the run is whole in {run}") from error
                _say(f"{failed}; trying again in {wait:.0f} s")
                time.sleep(wait)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def push_command(run: str, repo_id: str | None = None, private: bool | None = None) -> None:
    """Push a run, again or for the first time.

    Args:
        run: the run folder.
        repo_id: user/name, where that is not the run's hub.repo_id.
        private: create it as a private one, where that is not the run's hub.private.
    """
    before = read_yaml(Path(run) / "config.yaml").get("hub") or {}
    hub = HubConfig(True, repo_id or before.get("repo_id"), before.get("private", False) if private is None else private)
    if not hub.repo_id:
        raise UserError(f"{run} names no repository: give --repo_id user/name")
    check_token(hub)
    print(f"pushed to {push(Path(run), hub, f'Push {Path(run).resolve().name}')}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    with one_line_errors():
        auto_cli({"push": push_command}, prog="python -m tinyldm.training.hub")
