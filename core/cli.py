"""core/cli.py: what all command lines share.

In: a command's main function.  Out: an exit code, and one sentence where the user made a mistake.
"""

import argparse
import sys
from collections.abc import Callable

from core.errors import UserError


def run_command(main: Callable[[], None]) -> None:
    """Runs a command. A mistake of the user ends in one sentence and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def common_arguments(description: str, **texts: str) -> argparse.ArgumentParser:
    """The arguments that sample.py, judge.py and evaluate.py share.

    `texts` are further arguments that take a text, each with its help.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for name, text in texts.items():
        parser.add_argument("--" + name, required=name == "model", help=text)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy [%(default)s]")
    parser.add_argument("--top-p", type=float, default=0.9, help="nucleus [%(default)s]")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="limit of one text [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser
