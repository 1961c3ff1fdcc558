"""Compare a model, or a set of images, with real images:

python evaluate.py --model runs/faces64 --num_images 1000
python evaluate.py --model runs/faces64-labels --num_images 512 --sweep guidance_scale=1,1.5,2,3
python evaluate.py --images pictures/ --data.name path/to/images --data.resolution 64 --features efficientnet-lite0
"""

from tinyldm.config.evaluate import read
from tinyldm.errors import one_line_errors


def main() -> None:
    """Draw or read the images, compute their features, compare them, and print the result."""
    config = read(__doc__)

    from tinyldm.evaluation import evaluate as evaluation  # after parsing, so that --help does not import torch

    print(evaluation.evaluate(config))


if __name__ == "__main__":
    with one_line_errors():
        main()
