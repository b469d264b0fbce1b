"""Writes the report of a run: what merging keeps, what it saves, how to serve it.

  python -m langmerge_jax.report --workdir=runs/demo

reads what the other doors left in the workdir and writes report.html, one file that needs no
other, report.md and figures/*.png.
"""

import pathlib

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run that has been evaluated.")


def main() -> None:
    if _WORKDIR.value is None:
        raise InputError("--workdir is missing; give the workdir of a run, such as runs/demo")
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.reporting.report import write_report

    print(f"report: {write_report(pathlib.Path(_WORKDIR.value))}")


if __name__ == "__main__":
    cli.run(main)
