"""The tables of a run, read from the files of its workdir."""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from langmerge_jax.evaluation.metrics import LOWER_IS_BETTER, TITLES
from langmerge_jax.files import read_json, write_text
from langmerge_jax.reporting.table import Cell, Table

MARKS = {"on par": "=", "worse": "<", "undecided": "?"}


def write_tables(home: pathlib.Path) -> str:
    """Writes `scores.md`, `scores.csv` and `scores.tex`; returns what to print.

    Args:
      home: of a run with `scores.json`, and perhaps `matrix.json`, `comparisons.json`,
        `tuning.json` and `baselines.json`.
    """
    tables = [scores_table(home, metric) for metric in metrics(home)]
    count = len(tables)
    if (home / "matrix.json").exists():
        tables.append(matrix_table(home))
    if (home / "comparisons.json").exists():
        tables.append(comparisons_table(home))
    write_text(home / "scores.md", "\n".join(table.markdown() for table in tables))
    write_text(home / "scores.tex", "\n".join(table.latex() for table in tables))
    lines = io.StringIO()
    writer = csv.DictWriter(lines, ["variant", "language", "metric", "value", "n", "low", "high"])
    writer.writeheader()
    writer.writerows(read_json(home / "scores.json"))
    write_text(home / "scores.csv", lines.getvalue())
    return "\n".join(table.text() for table in [tables[0], *tables[count:]])


def metrics(home: pathlib.Path) -> list[str]:
    """Returns the metrics of a run, first the one that decides."""
    return list(dict.fromkeys(row["metric"] for row in read_json(home / "scores.json")))


def decisive(home: pathlib.Path) -> str:
    """Returns the metric that decides, as it is called in the middle of a sentence."""
    return _named(metrics(home)[0])


def _named(metric: str) -> str:
    title = TITLES[metric]
    # Names that are abbreviations keep their capitals.
    return title if title[1].isupper() else title[0].lower() + title[1:]


def scores_table(home: pathlib.Path, metric: str) -> Table:
    """Returns what each variant scores on each language, with marks of parity if that decides."""
    scores = read_json(home / "scores.json")
    names = variant_names(home)
    marks, margin = {}, None
    if (home / "comparisons.json").exists():
        for row in read_json(home / "comparisons.json"):
            if row["metric"] == metric:
                marks[row["variant"], row["language"]] = MARKS[row["verdict"]]
                margin = row["margin"]
    notes = []
    if metric in LOWER_IS_BETTER:
        notes.append("Lower is better")
    if marks:
        notes.append(f"Against combined, margin {points(margin)}: = on par, < worse, ? undecided")
    rows = _pivot(scores, "variant", metric, marks)
    path = home / "baselines.json"
    beside = read_json(path)["scores"] if path.exists() else []
    # Not a variant, shown below and never marked best.
    beside = _pivot(beside, "variant", metric, {}, best=False)
    return Table(
        f"{TITLES[metric]}, {_sizes(scores, metric)}; all: mean over languages",
        "variant",
        _languages(scores),
        {names.get(name, name): cells for name, cells in (rows | beside).items()},
        notes,
    )


def matrix_table(home: pathlib.Path) -> Table:
    """Returns what each language's adapter scores on each language."""
    matrix, metric = read_json(home / "matrix.json"), metrics(home)[0]
    return Table(
        f"{TITLES[metric]} of each language's adapter on each language, {_sizes(matrix, metric)}",
        "adapter",
        _languages(matrix),
        _pivot(matrix, "adapter", metric, {}),
    )


def comparisons_table(home: pathlib.Path) -> Table:
    """Returns how each variant compares with `combined`, over all languages."""
    rows = [x for x in read_json(home / "comparisons.json") if x["language"] == "all"]
    names = variant_names(home)
    cells = {}
    for row in rows:
        # The test that decided, or that of parity where none did.
        test = "p_worse" if row["verdict"] == "worse" else "p_par"
        adjusted = row[f"{test}_holm"]
        cells[names.get(row["variant"], row["variant"])] = [
            Cell(_signed(row["difference"])),
            Cell(f"{_signed(row['low'])} to {_signed(row['high'])}"),
            Cell(f"{row[test]:.4f}"),
            Cell("" if adjusted is None else f"{adjusted:.4f}"),
            Cell(row["verdict"] + (f" ({row['deciding_n']})" if row["deciding_n"] else "")),
        ]
    margin = rows[0]["margin"]
    return Table(
        f"Against combined, points of {decisive(home)} over all languages, n = {rows[0]['n']}",
        "variant",
        ["difference", "95 %", "p", "Holm", "verdict"],
        cells,
        [
            f"Margin {points(margin)}. p, Holm: of the verdict, of parity if undecided; one-sided, "
            "raw and adjusted over the recipes. In brackets: the n that would decide"
        ],
    )


def changes_table(home: pathlib.Path) -> Table:
    """Returns what an update changed, from its `changes.json`."""
    changes = read_json(home / "changes.json")["rows"]
    columns = list(dict.fromkeys(row["language"] for row in changes))
    note = [] if columns[-1] == "all" else [f"all: mean without {columns[-1]}, which joins"]
    found = {(row["variant"], row["language"]): row for row in changes}
    cells = {}
    for name in dict.fromkeys(row["variant"] for row in changes):
        rows = [found.get((name, column)) for column in columns]
        cells[name] = [Cell(number(row["after"], 3)) if row else Cell("") for row in rows]
        cells[f"  {name}, change"] = [_change(row) if row else Cell("") for row in rows]
    return Table(
        f"Update {home.name}: {_named(changes[0]['metric'])} after it, and its change in points",
        "variant",
        columns,
        cells,
        ["!: the 95 % interval of the change does not hold 0", *note],
    )


def _change(row: Mapping[str, Any]) -> Cell:
    sure = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    detail = f"{_signed(row['low'])} to {_signed(row['high'])}"
    return Cell(_signed(row["difference"]), mark="!" if sure else "", detail=detail)


def costs_table(home: pathlib.Path) -> Table:
    """Returns what merging saves against retraining `combined`, from `costs.json`."""
    costs = read_json(home / "costs.json")
    priced = costs["dollars_per_device_hour"] > 0
    columns = ["adapters", "combined", "saved", "by tokens", "padded"]
    cells = {}
    for row in costs["rows"]:
        cells[row["what"]] = [
            Cell(f"{row['device_seconds']:.1f}"),
            Cell(f"{row['combined_device_seconds']:.1f}"),
            Cell(f"{100 * row['measured_saving']:.1f} %"),
            Cell(f"{100 * row['predicted_saving']:.1f} %"),
            Cell(f"{100 * row['padded_saving']:.1f} %"),
        ]
        if priced:
            cells[row["what"]] += [
                Cell(f"{row['dollars']:.2f}"),
                Cell(f"{row['combined_dollars']:.2f}"),
            ]
    return Table(
        f"Device seconds of training, {costs['devices']} x {costs['device']}",
        "",
        columns + (["$ adapters", "$ combined"] if priced else []),
        cells,
        [
            "saved: measured, without loading and compiling. by tokens: as token counts predict; "
            "padded: as they do with padding. What is left, neither explains"
        ],
    )


def schedule_table(home: pathlib.Path) -> Table:
    """Returns how long setting up takes by number of devices, from `costs.json`."""
    costs = read_json(home / "costs.json")
    scheduled, combined = costs["scheduled_seconds"], costs["alone_seconds"]["combined"]
    cells = {
        "adapters": [Cell(f"{seconds:.1f}") for seconds in scheduled.values()],
        "shorter than combined": [
            Cell(f"{100 * (1 - seconds / combined):.1f} %") for seconds in scheduled.values()
        ],
    }
    notes = [
        "scheduled, not measured: warm steps of each training alone, times their number; "
        f"combined: {combined:.1f}"
    ]
    if measured := costs.get("measured"):
        name = f"measured, by {measured['by']}"
        cells[name] = [
            Cell(f"{measured['seconds']:.1f}" if number == str(measured["at_once"]) else "")
            for number in scheduled
        ]
        notes.append(
            f"{name}: by the clock from the first start to the last adapter, with loading and "
            f"compiling, each on {measured['devices']} x {measured['device']}"
        )
    return Table(
        f"Seconds until every language is trained, each on {costs['devices']} x {costs['device']}",
        "languages at a time",
        list(scheduled),
        cells,
        notes,
    )


def ranks_table(home: pathlib.Path) -> Table:
    """Returns what the chosen merge scores at smaller ranks, from `ranks.json`."""
    metric = metrics(home)[0]
    rows = [row for row in read_json(home / "ranks.json")["rows"] if row["metric"] == metric]
    columns = list(dict.fromkeys(row["language"] for row in rows))
    cells: dict[str, list[Cell]] = {}
    for row in sorted(rows, key=lambda row: -(row["rank"] or math.inf)):
        name = "folded" if row["rank"] is None else f"rank {row['rank']}"
        kept = cells.setdefault(name, [Cell(f"{100 * row['energy']:.1f} %")])
        kept.append(_value(row))
    return Table(
        f"{TITLES[metric]} of {rows[0]['recipe']} by output rank, and folded into the base",
        "",
        ["energy", *columns],
        cells,
        ["energy: share of the squared singular values that is kept"],
    )


def similarity_table(home: pathlib.Path) -> Table:
    """Returns the cosines between the adapters, from `similarity.json`."""
    found = read_json(home / "similarity.json")
    names = found["languages"]
    return Table(
        "Cosine between the adapters' deltas",
        "",
        names,
        {
            name: [Cell("-" if x is None else f"{x:.2f}") for x in row]
            for name, row in zip(names, found["cosines"], strict=True)
        },
    )


def number(value: float | None, digits: int) -> str:
    """Returns a number as text; a dash for one that is not defined."""
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(share: float | None) -> str:
    """A share as points with its sign."""
    return "–" if share is None else f"{100 * share:+.1f}"


def percent(share: float) -> str:
    """Returns a share as whole per cent."""
    return f"{100 * share:.0f} %"


def points(share: float) -> str:
    """Returns a share in words: 0.01 is "1 point"."""
    return f"{100 * share:g} point" + ("s" if share != 0.01 else "")


def variant_names(home: pathlib.Path) -> dict[str, str]:
    """Returns {variant: name to show} where they differ: which recipe `tuned` is."""
    path = home / "tuning.json"
    return {"tuned": f"tuned {read_json(path)['chosen']}"} if path.exists() else {}


def _languages(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["language"] for row in rows))


def _sizes(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """How many rows a metric is a score of, in each language."""
    sizes = {r["n"] for r in rows if r["language"] != "all" and r["metric"] == metric}
    return f"n = {' to '.join(map(str, sorted({min(sizes), max(sizes)})))} a language"


def _value(row: Mapping[str, Any], *, best: bool = False, mark: str = "") -> Cell:
    interval = f"{number(row['low'], 3)}–{number(row['high'], 3)}"
    return Cell(number(row["value"], 4), best, mark, interval)


def _pivot(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    metric: str,
    marks: Mapping[tuple[str, str], str],
    *,
    best: bool = True,
) -> dict[str, list[Cell]]:
    """One line of cells for each name, a cell for each language."""
    rows = [row for row in rows if row["metric"] == metric]
    # As shown: two rows that print alike are marked alike.
    shown: dict[str, set[str]] = {}
    for row in rows:
        if row["value"] is not None:
            shown.setdefault(row["language"], set()).add(number(row["value"], 4))
    pick = min if metric in LOWER_IS_BETTER else max
    tops = {language: pick(texts, key=float) for language, texts in shown.items()}
    found: dict[str, list[Cell]] = {}
    for row in rows:
        name, language = row[key], row["language"]
        top = best and number(row["value"], 4) == tops.get(language)
        cell = _value(row, best=top, mark=marks.get((name, language), ""))
        found.setdefault(name, []).append(cell)
    return found
