"""Play with a model in the browser: draw, interpolate, change images, enlarge them, read the run's report.

python -m tinyldm.app runs/demo                                # opens a page on this machine only
python -m tinyldm.app runs/faces64 --then runs/faces256          # draws through a super-resolution stage
python -m tinyldm.app user/faces --space faces-space           # writes a Hugging Face Space for a model on the Hub

Each picture comes with the command of sample.py that draws the same. The page needs gradio: docs/app.md.
"""

import sys
from importlib.util import find_spec

from tinyldm.config.app import read
from tinyldm.errors import UserError, one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        sys.argv[0] = "python -m tinyldm.app"  # what --help calls the program
        config = read(__doc__, sys.argv[1:])

        if config.space is not None:
            from tinyldm.app.space import write

            print(write(config.space, config.run))
        elif find_spec("gradio") is None:
            raise UserError("the page needs gradio, which is not installed: pip install 'gradio>=6.31,<7'")
        else:
            from tinyldm.app.page import serve  # after parsing, so that --help imports neither torch nor gradio

            serve(config.run, config.then, config.device)
