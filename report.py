"""report.py: the command that writes the report of a run, in the middle of it or at its end.

python report.py runs/toy               # writes runs/toy/report.html again
python report.py runs/a runs/b          # several side by side: runs/a/report.html
"""

import sys
from pathlib import Path

from core.cli import run_command
from core.errors import UserError
from measure.page import write_report

USAGE = "usage: python report.py RUN [RUN ...]"


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        raise UserError(f"no run given; {USAGE}")
    for folder in folders:
        if not (folder / "config.json").exists():
            raise UserError(f"no run in {folder}; {USAGE}")
    print(write_report(folders))


if __name__ == "__main__":
    run_command(main)
