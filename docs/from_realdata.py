"""Takes a finished run on real rows into the documentation: its numbers and docs/realdata.md.

  .venv-test/bin/python -m docs.from_realdata runs/realdata_sentiment MINUTES CPU_MINUTES

after the command of configs/realdata_sentiment.py, with the time it took by the clock and of the
CPU. Copies scores to docs/realdata/, no rows, and writes the tables of docs/realdata.md from them.
tests/test_docs.py checks that the two agree.
"""

import pathlib
import sys

from benchmarks.machine import describe_machine
from docs.from_demo import as_code, fill
from langmerge_jax.files import read_json, write_json, write_text
from langmerge_jax.reporting import tables
from langmerge_jax.reporting.report import cannot_judge
from langmerge_jax.reporting.results import Results

ROOT = pathlib.Path(__file__).resolve().parents[1]
REALDATA = ROOT / "docs" / "realdata"
PAGE = ROOT / "docs" / "realdata.md"
KEPT = (
    *("config.json", "scores.json", "matrix.json", "comparisons.json", "tuning.json"),
    *("baselines.json", "costs.json"),
)


def blocks(folder: pathlib.Path) -> dict[str, str]:
    """Returns the page's generated parts by name."""
    machine, found = read_json(folder / "machine.json"), Results(folder)
    return {
        "machine": f"Run on: {machine['cpu']}, {machine['cores']} cores that other work shared, "
        f"Python {machine['python']}, jax {machine['jax']}. It took {machine['minutes']:.0f} "
        f"minutes by the clock and {machine['cpu_minutes']:.0f} minutes of CPU time.",
        "verdict": cannot_judge(found)
        or "combined scores above every baseline, over all languages and on each.",
        "scores": as_code(tables.scores_table(folder, found.metric).text()),
        "matrix": as_code(tables.matrix_table(folder).text()),
    }


def main(workdir: pathlib.Path, minutes: float, cpu_minutes: float) -> None:
    for name in KEPT:
        write_json(REALDATA / name, read_json(workdir / name))
    took = {"minutes": minutes, "cpu_minutes": cpu_minutes}
    write_json(REALDATA / "machine.json", describe_machine() | took)
    page = fill(PAGE.read_text(encoding="utf-8"), blocks(REALDATA), PAGE.name)
    write_text(PAGE, page)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:]))
