"""worlds/open_world.py: which world a run lives in. The one place that knows all worlds.

In: the settings.  Out: a World.
"""

from core.config import Config
from worlds.checked import checked_world
from worlds.people import people_world, read_eft, read_ift
from worlds.toy import toy_world
from worlds.world import World


def open_world(config: Config, *, toy: bool) -> World:
    """The toy, or the files of people. Raises UserError where a file cannot be read."""
    ift = read_ift(config.ift) if config.ift else None
    eft = read_eft(config.eft, how=config.judge) if config.eft else None
    if toy:
        return toy_world(config.seed, limit=config.seed_limit, exam=config.exam, ift=ift, eft=eft)
    make = checked_world if config.world == "checked" else people_world
    return make(config, ift or [], eft or [])
