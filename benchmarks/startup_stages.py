"""train_ldm.py with timestamps between its calls, for benchmarks.startup. Imports each module only when it is needed."""

import json
import sys
import time

marks = {"Python and accelerate launch": time.time()}

from tinyldm.config.parsing import parse  # noqa: E402
from tinyldm.config.schema import TrainLDM  # noqa: E402

if __name__ == "__main__":
    *args, _, file = sys.argv[1:]
    config = parse(TrainLDM, "", args)
    marks["reading the config"] = time.time()

    import torch  # noqa: F401

    marks["importing torch"] = time.time()

    from tinyldm.diffusion.latent_task import LatentTask
    from tinyldm.training.accelerator import make_accelerator
    from tinyldm.training.run_folder import RunFolder
    from tinyldm.training.trainer import Trainer

    marks["importing diffusers, datasets and the rest"] = time.time()
    accelerator = make_accelerator(config.train, config.output_dir)
    run = RunFolder(config)
    task = LatentTask(config, accelerator)
    marks["first stage, latents, network"] = time.time()
    trainer = Trainer(task, config, accelerator, run)
    marks["optimizer, averages, trackers"] = time.time()
    after_step = task.after_step

    def noted(*args: object) -> None:
        marks["the first step"] = time.time()
        after_step(*args)

    task.after_step = noted
    trainer.fit()
    with open(file, "w") as out:
        json.dump(marks, out)
