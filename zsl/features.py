"""`python -m zsl features --images FOLDER --backbone NAME --out features.npz`: extract features of FOLDER/CLASS/image.

The networks come from tinyldm/metrics/features.py. Images are first oriented and cropped to their central square.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.auto import tqdm

from tinyldm.data.images import MAX_CORRUPT, to_square
from tinyldm.data.layout import natural, walk
from tinyldm.errors import UserError
from tinyldm.files import refuse_existing
from tinyldm.limits import open_image
from tinyldm.metrics import features as networks
from tinyldm.training.accelerator import default_device
from zsl.config import Features
from zsl.data import write_npz

SIDE = 299  # side of the squares: the largest input size among the networks


def run(config: Features) -> str:
    """Extract the features and describe the file."""
    root = Path(config.images).expanduser()
    if not root.is_dir():
        raise UserError(f"images {root} is not a folder")
    refuse_existing(Path(config.out), config.overwrite, root)
    folders = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    names = sorted((folder.name for folder in folders if images_in(folder)), key=natural)
    if empty := [folder.name for folder in folders if folder.name not in names]:
        print(f"without images, so not classes: {', '.join(sorted(empty, key=natural))}", file=sys.stderr)
    files = [(file, number) for number, name in enumerate(names, 1) for file in images_in(root / name)]
    if not files:
        raise UserError(f"{root} holds no images in subfolders; use one per class, such as {root / 'tulip' / '1.jpg'}")
    unseen = [name.strip() for name in config.unseen.split(",") if name.strip()]
    if missing := [name for name in unseen if name not in names]:
        raise UserError(f"unseen names {missing[0]!r}, which is not a subfolder of {root}")
    device = default_device(config.device)
    network = networks.load(config.backbone, device)
    embedded, labels, ids, corrupt = [], [], [], []
    with tqdm(total=len(files), unit="image", desc="features", dynamic_ncols=True) as bar:
        for start in range(0, len(files), config.batch_size):
            batch = []
            for file, number in files[start : start + config.batch_size]:
                try:
                    with open_image(file, 2 * SIDE) as image:
                        batch.append(to_square(image, SIDE))
                except Exception as error:  # Pillow raises many types for damaged files
                    corrupt.append(f"{file} ({error})")
                    continue
                labels.append(number)
                ids.append(file.relative_to(root).as_posix())
            if batch:
                embedded.append(network.embed(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2))["features"])
            bar.update(min(config.batch_size, len(files) - start))
    for line in corrupt:
        print(f"skipped, cannot be read: {line}", file=sys.stderr)
    if len(corrupt) > MAX_CORRUPT * len(files):
        raise UserError(f"{len(corrupt)} of {len(files)} images in {root} cannot be read; remove them. Nothing is written")
    arrays = {
        "features": np.concatenate(embedded).astype(np.float32),
        "labels": np.array(labels),
        "class_names": np.array(names),
        "image_ids": np.array(ids),
        "unseen_classes": np.array([names.index(name) + 1 for name in unseen], np.int64),
    }
    write_npz(Path(config.out), arrays)
    hint = "" if unseen else "; no class is unseen yet: name some with --unseen"
    size = f"{arrays['features'].shape[1]} features ({config.backbone})"
    return f"{config.out}: {len(labels):,} images of {len(names)} classes, {size}{hint}"


def images_in(folder: Path) -> list[Path]:
    """Image files in a folder and its subfolders, sorted."""
    files = [folder / name for name in walk(folder)[0]]
    return [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
