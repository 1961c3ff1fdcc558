"""Which length of the averaged weights is best? Measures several for a run that kept snapshots (train.ema_snapshot_steps):

python -m tinyldm.ema runs/faces64 --features efficientnet-lite0
python -m tinyldm.ema runs/faces64 --scheduler dpm-solver++ --num_inference_steps 20 --widths [0.03,0.05,0.08] --export best
python -m tinyldm.ema runs/faces64 --metric loss

The length is relative: a width of 0.05 is the standard deviation of the steps that are averaged, divided by all steps (Karras
et al. 2024). All averages draw from the same seeds. The curve is ema.png in the run, its numbers are ema.json; those of the
loss are ema-loss.png and ema-loss.json. What has been drawn is kept in data.cache_dir, so that an interrupted comparison
resumes. `sample.py --ema WIDTH` draws with one of the averages.
"""

import sys

from tinyldm.config.ema import read
from tinyldm.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        sys.argv[0] = "python -m tinyldm.ema"  # what --help calls the program
        config = read(__doc__, sys.argv[1:])

        from tinyldm.evaluation.ema_lengths import compare  # after parsing, so that --help does not import torch

        print(compare(config))
