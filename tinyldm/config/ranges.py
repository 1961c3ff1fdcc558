"""Number ranges as types. jsonargparse refuses a value outside its range; `expected` says in words what to give."""

import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from jsonargparse.typing import restricted_number_type

from tinyldm.limits import LAYERS

INFINITY = float("inf")
WIDEST_EMA = 0.28  # relative width; the plain mean of all steps has 12^(-1/2) = 0.289

if TYPE_CHECKING:  # type checkers see plain numbers, so that code can pass plain numbers
    PositiveInt = int
    NonNegativeInt = int
    AtLeast20 = int
    Seed = int
    Threads = int
    Timesteps = int
    Layers = int
    DiscriminatorLayers = int
    Pictures = int
    PositiveFloat = float
    NonNegativeFloat = float
    UnitInterval = float
    OpenUnitInterval = float
    BelowOne = float
    EMAWidth = float
    Strength = float
else:  # jsonargparse's own float ranges include infinity; these do not
    PositiveInt = restricted_number_type("PositiveInt", int, (">", 0))
    NonNegativeInt = restricted_number_type("NonNegativeInt", int, (">=", 0))
    AtLeast20 = restricted_number_type("AtLeast20", int, (">=", 20))
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])  # the seeds after it also fit torch's 64 bits
    Threads = restricted_number_type("Threads", int, [(">=", 0), ("<=", 256)])
    Layers = restricted_number_type("Layers", int, [(">", 0), ("<=", LAYERS)])
    DiscriminatorLayers = restricted_number_type("DiscriminatorLayers", int, [(">=", 0), ("<=", 12)])
    Pictures = restricted_number_type("Pictures", int, [(">", 0), ("<=", 1000)])
    Timesteps = restricted_number_type("Timesteps", int, [(">=", 2), ("<=", 100_000)])
    PositiveFloat = restricted_number_type("FinitePositiveFloat", float, [(">", 0), ("<", INFINITY)])
    NonNegativeFloat = restricted_number_type("FiniteNonNegativeFloat", float, [(">=", 0), ("<", INFINITY)])
    UnitInterval = restricted_number_type("ClosedUnitInterval", float, [(">=", 0), ("<=", 1)])
    OpenUnitInterval = restricted_number_type("OpenUnitInterval", float, [(">", 0), ("<", 1)])
    BelowOne = restricted_number_type("BelowOne", float, [(">=", 0), ("<", 1)])
    Strength = restricted_number_type("Strength", float, [(">", 0), ("<=", 1)])
    EMAWidth = restricted_number_type("EMAWidth", float, [(">", 0), ("<=", WIDEST_EMA)])

WORDS: dict[Any, tuple[str, str]] = {  # one of them, several of them
    PositiveInt: ("a whole number above 0", "whole numbers above 0"),
    NonNegativeInt: ("a whole number of at least 0", "whole numbers of at least 0"),
    Seed: ("a whole number of at least 0, below 2^63", "whole numbers of at least 0, below 2^63"),
    Threads: ("a whole number from 0 to 256", "whole numbers from 0 to 256"),
    Timesteps: ("a whole number from 2 to 100,000", "whole numbers from 2 to 100,000"),
    Layers: (f"a whole number from 1 to {LAYERS}", f"whole numbers from 1 to {LAYERS}"),
    DiscriminatorLayers: ("a whole number from 0 to 12", "whole numbers from 0 to 12"),
    Pictures: ("a whole number from 1 to 1,000", "whole numbers from 1 to 1,000"),
    AtLeast20: ("a whole number of at least 20", "whole numbers of at least 20"),
    PositiveFloat: ("a number above 0", "numbers above 0"),
    NonNegativeFloat: ("a number of at least 0", "numbers of at least 0"),
    Strength: ("a number above 0, up to 1", "numbers above 0, up to 1"),
    UnitInterval: ("a number from 0 to 1", "numbers from 0 to 1"),
    OpenUnitInterval: ("a number between 0 and 1, both excluded", "numbers between 0 and 1, both excluded"),
    BelowOne: ("a number from 0 to 1, 1 excluded", "numbers from 0 to 1, 1 excluded"),
    EMAWidth: (f"a number above 0 and at most {WIDEST_EMA}", f"numbers above 0 and at most {WIDEST_EMA}"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
}


def expected(kind: Any) -> str:
    """What a value of this type looks like, in words that follow "give"."""
    if kind in WORDS:
        return WORDS[kind][0]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if get_origin(kind) in (Union, types.UnionType):
        given = " or ".join(expected(argument) for argument in arguments if argument is not type(None))
        return f"{given}, or null" if type(None) in arguments else given
    if get_origin(kind) in (list, tuple):
        many = "" if get_origin(kind) is list or Ellipsis in arguments else f"{len(arguments)} "
        return f"a list of {many}{WORDS.get(arguments[0], ('', expected(arguments[0])))[1]}"
    return "a mapping such as {name: value}" if kind is dict or get_origin(kind) is dict else str(kind)


def plain(value: Any) -> Any:
    """The value with each number of a range type as a plain int or float, which YAML can write."""
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, float) else value
