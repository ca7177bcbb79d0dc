"""worlds/open_world.py: which world a run lives in. The one place that knows all worlds.

In: the settings.  Out: a World.
"""

from core.config import Config
from core.errors import UserError
from worlds.checked import checked_world
from worlds.people import people_world, read_eft, read_ift, with_given_prompts
from worlds.toy import toy_world
from worlds.world import World


def open_world(config: Config, *, toy: bool) -> World:
    """The toy, or the files of people. Raises UserError where a file cannot be read."""
    if config.kinds is not None and config.world != "checked":
        raise UserError("--kinds is for --world checked; leave it out, or add that.")
    ift = read_ift(config.ift) if config.ift else None
    eft = read_eft(config.eft, how=config.judge) if config.eft else None
    if toy:
        world = toy_world(config.seed, limit=config.seed_limit, exam=config.exam, ift=ift, eft=eft)
    elif config.world == "checked":
        world = checked_world(config, ift or [], eft or [])
    else:
        world = people_world(config, ift or [], eft or [])
    return with_given_prompts(world, config) if config.prompts else world
