"""Weights that are published as a pickle: read as tensors only, and only if they have the hash known to us."""

import hashlib
from pathlib import Path

import torch


def pinned_weights(url: str, sha256: str) -> dict[str, torch.Tensor]:
    """The state dict at a URL. The file is kept in the folder of torch.hub.

    Raises:
        ValueError: if the kept file has another hash.
        OSError, RuntimeError: if it cannot be downloaded, or the download has another hash.
        pickle.UnpicklingError: if it holds more than tensors.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), sha256)
    with file.open("rb") as opened:
        if (found := hashlib.file_digest(opened, "sha256").hexdigest()) != sha256:
            raise ValueError(f"{file} has the SHA-256 {found[:8]}..., not {sha256[:8]}...; delete it")
    return torch.load(file, map_location="cpu", weights_only=True)
