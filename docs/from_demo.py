"""Takes a finished demo into the documentation: its numbers, README's tables, the picture.

  .venv-test/bin/python -m docs.from_demo runs/demo MINUTES GIGABYTES

after `make demo`, with the time it took and the memory of its largest process. Copies what the
report is made of to docs/demo/, writes README's tables from it, and has Chromium take a picture of
the report. tests/test_docs.py checks that README and docs/demo/ agree.
"""

import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from PIL import Image

from benchmarks.machine import describe_machine
from langmerge_jax.files import read_json, write_json, write_text
from langmerge_jax.reporting import tables

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEMO = ROOT / "docs" / "demo"
KEPT = (
    *("config.json", "scores.json", "matrix.json", "comparisons.json", "tuning.json"),
    *("baselines.json", "costs.json", "ranks.json", "routing.json", "similarity.json"),
    *(f"updates/{name}/changes.json" for name in ("en", "en-warm", "es")),
)


def blocks(demo: pathlib.Path) -> dict[str, str]:
    """Returns README's generated parts by name."""
    machine = read_json(demo / "machine.json")
    mean = {
        row["variant"]: row["value"]
        for row in read_json(demo / "scores.json")
        if (row["language"], row["metric"]) == ("all", "macro_f1")
    }
    rows = read_json(demo / "config.json")["demo"]["corpus"]["rows"]
    above, below = (100 * abs(mean["tuned"] - mean[x]) for x in ("base", "combined"))
    changes = [tables.changes_table(path.parent) for path in sorted(demo.glob("updates/*/*.json"))]
    return {
        "machine": f"Printed on: {machine['cpu']}, {machine['cores']} cores, "
        f"Python {machine['python']}, jax {machine['jax']}. There `make demo` took "
        f"{machine['demo_minutes']:.1f} minutes with installation, and its largest process "
        f"{machine['demo_gigabytes']:.1f} GB of memory.",
        "gaps": "The five adapters were trained apart, each on its language alone. The tuned "
        f"merge, its recipe and lambda chosen on {rows['validation']} validation rows a language, "
        f"lies {above:.1f} points above the base and {below:.1f} below `combined`, which was "
        "trained on all rows together. Over three seeds: [docs/demo.md](docs/demo.md).",
        "scores": as_code(tables.scores_table(demo, "macro_f1").text()),
        "costs": as_code(
            f"{tables.costs_table(demo).text()}\n{tables.schedule_table(demo).text()}"
        ),
        "changes": as_code("\n".join(table.text() for table in changes)),
    }


def fill(text: str, parts: dict[str, str], page: str = "README.md") -> str:
    """Returns a text with what stands between `<!-- demo: NAME -->` and `<!-- end -->` replaced.

    Args:
      text: of the page.
      parts: {NAME: what is to stand there}.
      page: what the page is called.
    """
    for name, part in parts.items():
        pattern = rf"(<!-- demo: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda m, p=part: f"{m[1]}{p}\n{m[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            sys.exit(f"{page} has {count} places for {name!r}; there is to be one")
    return text


def as_code(text: str) -> str:
    """Returns a text as a block of code."""
    return f"```\n{text.rstrip()}\n```"


def picture(page: pathlib.Path, path: pathlib.Path, width: int = 1280, height: int = 1120) -> None:
    """Has Chromium show a page and writes what it shows as PNG, in few colours."""
    browser = shutil.which("chromium") or sys.exit("the picture needs chromium on the path")
    with tempfile.TemporaryDirectory() as folder:
        shot = pathlib.Path(folder) / "page.png"
        subprocess.run(
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                f"--user-data-dir={folder}/profile",
                "--blink-settings=preferredColorScheme=1",
                f"--window-size={width},{height}",
                f"--screenshot={shot}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(shot) as image:
            data = io.BytesIO()
            image.convert("RGB").quantize(64).save(data, "PNG", optimize=True)
    path.write_bytes(data.getvalue())


def main(workdir: pathlib.Path, minutes: float, gigabytes: float) -> None:
    for name in KEPT:
        value = json.loads((workdir / name).read_text(encoding="utf-8"))
        write_json(DEMO / name, value)
    took = {"demo_minutes": minutes, "demo_gigabytes": gigabytes}
    write_json(DEMO / "machine.json", describe_machine() | took)
    readme = ROOT / "README.md"
    write_text(readme, fill(readme.read_text(encoding="utf-8"), blocks(DEMO)))
    picture(workdir / "report.html", ROOT / "docs" / "report.png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:]))
