"""core/cli.py: what all command lines share.

In: a command's main function.  Out: an exit code, and one sentence where the user made a mistake,
or where the machine has no room. Left out on purpose: torch, so that small commands start at once.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Callable

from core.errors import UserError

# What a terminal would obey: control characters, and those that turn the direction of writing.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WAIT_FOR_FIRST = 5.0  # seconds
# What torch says where memory is full: CUDA, two allocators of a CPU, and libraries of CUDA.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")


def run_command(main: Callable[[], None]) -> None:
    """Runs a command. A mistake of the user ends in one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            stream.reconfigure(errors="backslashreplace")  # a console that lacks a character
    try:
        main()
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}; what is complete is kept.")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(
            "the memory is full; lower --slots (writing and judging), or --tokens and --batch-size "
            "(training), or add --recompute. What is complete is kept."
        )
    except KeyboardInterrupt:
        again = shlex.join(["python", *sys.argv])
        print(f"\nstopped; this goes on where it can: {again}", file=sys.stderr)
        sys.exit(130)


def fail(sentence: str) -> None:
    """Prints the one sentence of an error, and ends the command."""
    if os.environ.get("RANK", "0") != "0":
        # The first process may have the same error. It speaks, and torchrun ends this one.
        time.sleep(WAIT_FOR_FIRST)
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python, or torch on one of its devices, says that memory is full."""
    is_its_name = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return is_its_name or any(words in str(error) for words in NO_MEMORY)


def printable(text: str) -> str:
    """A text that a model or a stranger wrote, with everything that a terminal would obey spelt."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


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
