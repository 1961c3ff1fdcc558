"""Train a latent diffusion model over a first stage:

accelerate launch train_ldm.py --config configs/demo.yaml
accelerate launch train_ldm.py --config configs/celebahq256.yaml --data.name path/or/hub-id --output_dir runs/mine
"""

from tinyldm.config import TrainLDM, parse
from tinyldm.errors import one_line_errors


def main() -> None:
    """Read the config, put the parts together, train, publish."""
    config = parse(TrainLDM, __doc__)

    from tinyldm import hub  # after parsing, so that --help need not wait for torch
    from tinyldm.diffusion_task import DiffusionTask
    from tinyldm.run_folder import RunFolder
    from tinyldm.trainer import Trainer, make_accelerator

    accelerator = make_accelerator(config.train, config.output_dir)
    if config.hub.push:
        hub.check_token()
    run = RunFolder(config) if accelerator.is_main_process else None
    trainer = Trainer(DiffusionTask(config, accelerator), config, accelerator, run)
    trainer.fit()
    if run and config.hub.push:
        print(f"pushed to {hub.push(run.path, config.hub)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
