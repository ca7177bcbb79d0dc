"""worlds/open_world.py: which world a run lives in.

In: the settings.  Out: a World. This is the one place that knows all worlds.
"""

from core.config import Config
from core.files import read_texts
from worlds.people import people_world, read_ift
from worlds.toy import toy_world
from worlds.world import World


def open_world(config: Config, *, toy: bool) -> World:
    """The toy, or the files of people. Raises UserError where a file cannot be read."""
    if not toy:
        return people_world(config)
    ift = read_ift(config.ift) if config.ift else None
    eft = read_texts(config.eft, "prompt", "response", "verdict") if config.eft else None
    limit = config.seed_limit
    return toy_world(config.seed, limit=limit, exam=config.exam, ift=ift, eft=eft)
