"""Train a first stage, a VQ autoencoder, on any images:

python train_vq.py --config configs/demo-vq.yaml
accelerate launch train_vq.py --config configs/faces64-vq.yaml --data.name path/or/hub-id --output_dir runs/my-vq
"""

from tinyldm.config import TrainVQ, parse
from tinyldm.errors import one_line_errors


def main() -> None:
    """Read the config, put the parts together, train, publish."""
    config = parse(TrainVQ, __doc__)

    from tinyldm import hub  # after parsing, so that --help need not wait for torch
    from tinyldm.run_folder import RunFolder
    from tinyldm.trainer import Trainer, make_accelerator
    from tinyldm.vq_task import VQTask

    accelerator = make_accelerator(config.train, config.output_dir)
    if config.hub.push:
        hub.check_token()
    run = RunFolder(config) if accelerator.is_main_process else None
    trainer = Trainer(VQTask(config, accelerator), config, accelerator, run)
    trainer.fit()
    if run and config.hub.push:
        print(f"pushed to {hub.push(run.path, config.hub)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
