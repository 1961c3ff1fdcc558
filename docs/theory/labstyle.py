"""One style for the figures of all labs: readable in small, by colour-blind readers, and on light and dark pages."""

import matplotlib
from cycler import cycler

# Okabe & Ito (2008): told apart with each common kind of colour blindness. The labs write C0 to C5.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
# The page shows through around the axes, so what stands there is of a grey with nearly equal contrast on white and on black.
PAPER, INK = "white", "#797979"
DOTS_PER_INCH = 120

STYLE = {
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.labelcolor": "black",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
}


def use() -> None:
    matplotlib.rcParams.update(STYLE)
