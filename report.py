"""report.py: the command that writes the report of a run, in the middle of it or at its end.

python report.py runs/toy               # writes runs/toy/report.html again
python report.py runs/a runs/b          # several side by side: runs/a/report.html
python report.py runs/a --controls runs/b runs/c   # b and c as grey lines in the charts of a
"""

import sys
from pathlib import Path

from core.cli import run_command
from core.errors import UserError
from measure.page import write_report

USAGE = "usage: python report.py RUN [RUN ...] [--controls RUN [RUN ...]]"


def main() -> None:
    arguments = sys.argv[1:]
    end = arguments.index("--controls") if "--controls" in arguments else len(arguments)
    folders = [Path(argument) for argument in arguments[:end]]
    controls = [Path(argument) for argument in arguments[end + 1 :]]
    if not folders:
        raise UserError(f"no run given; {USAGE}")
    if end == len(arguments) - 1:
        raise UserError(f"no run after --controls; {USAGE}")
    for folder in [*folders, *controls]:
        if not (folder / "config.json").exists():
            raise UserError(f"no run in {folder}; {USAGE}")
    print(write_report(folders, controls))


if __name__ == "__main__":
    run_command(main)
