"""The report of a run: what merging keeps, what it saves, and how to serve it. Reads files only."""

import pathlib
from collections.abc import Mapping
from typing import Any

from langmerge_jax.errors import InputError
from langmerge_jax.files import finished_directory, write_text
from langmerge_jax.reporting import tables
from langmerge_jax.reporting.page import Page
from langmerge_jax.reporting.results import Results
from langmerge_jax.reporting.sections import SECTIONS


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `report.html`, which needs no other file, and `report.md` with `figures/` as PNG.

    All tables of the report stand in `report.tex` too, and one by one in `tables/` as CSV.

    Args:
      workdir: of a run that has been evaluated; what else it holds (costs, updates, ranks,
        similarity) is shown if it is there.

    Returns:
      path of `report.html`.

    Raises:
      InputError: if there is nothing to report on.
    """
    for name in ("config.json", "scores.json", "matrix.json"):
        if not (workdir / name).exists():
            raise InputError(
                f"--workdir={workdir}: no {name}; give the workdir of a run that the evaluate or "
                "the experiment door has finished"
            )
    found = Results(workdir)
    sections = [section for make in SECTIONS if (section := make(found)) is not None]
    page = Page(
        title=f"Train once, merge as needed: {', '.join(found.languages)}",
        lead=_lead(found),
        facts=_facts(found),
        sections=sections,
    )
    with finished_directory(workdir / "figures") as folder:
        for figure in page.figures():
            figure.save_png(folder / f"{figure.name}.png")
    with finished_directory(workdir / "tables") as folder:
        for table in page.tables():
            write_text(folder / f"{table.slug()}.csv", table.csv())
    write_text(workdir / "report.tex", "\n".join(table.latex() for table in page.tables()))
    write_text(workdir / "report.md", page.markdown("figures"))
    path = workdir / "report.html"
    write_text(path, page.html())
    return path


def cannot_judge(found: Results) -> str:
    """Returns a sentence on where `combined` scores no better than a baseline; "" if nowhere.

    Whether a merge keeps all of such a model or loses it says little about merging.
    """
    places = []
    for language in ("all", *found.languages):
        if better := found.unbeaten(language):
            where = "all languages together" if language == "all" else language
            rivals = ", ".join(f"{name} {_number(value)}" for name, value in better.items())
            combined = _number(found.score("combined", language)["value"])
            places.append(f"{where} ({combined}; {rivals})")
    if not places:
        return ""
    return (
        "Cannot judge: combined scores no better than what needs no language model on "
        f"{', '.join(places)}; how much of it a merge keeps there shows little about merging."
    )


def _points(row: Mapping[str, Any]) -> str:
    """A difference in words, with its interval."""
    points, low, high = (100 * row[key] for key in ("difference", "low", "high"))
    if points < 0:
        return f"{-points:.1f} points below (95 % interval {-high:.1f} to {-low:.1f})"
    return f"{points:.1f} points above (95 % interval {low:.1f} to {high:.1f})"


def _number(value: float | None) -> str:
    return tables.number(value, 3)


def _lead(found: Results) -> list[str]:
    """The headline, in sentences."""
    merged, base, combined = (found.score(v) for v in (found.chosen, "base", "combined"))
    count = len(found.languages)
    text = (
        f"{count} adapters were trained apart, one a language, and merged by {found.recipe} "
        f"({found.by_choice}), without further training. The {tables.decisive(found.home)} of the "
        f"merge is {_number(merged['value'])} over all languages (95 % interval "
        f"{_number(merged['low'])} to {_number(merged['high'])}, n = {merged['n']}); that of the "
        f"base alone {_number(base['value'])}."
    )
    lines = [text]
    row = found.comparison(found.chosen)
    if row and combined:
        margin = tables.points(row["margin"])
        verdict = {
            "on par": f"That is on par with it, at a margin of {margin}.",
            "worse": f"That is worse than a margin of {margin} allows.",
            "undecided": f"Whether that is within a margin of {margin} is undecided at this n"
            + (f"; about {row['deciding_n']} rows would decide it." if row["deciding_n"] else "."),
        }[row["verdict"]]
        lies = "" if row["low"] is None else f": the merge lies {_points(row)}"
        lines.append(
            f"Trained on all rows together, combined has {_number(combined['value'])}{lies}. "
            f"{verdict}"
        )
    if unknowable := cannot_judge(found):
        lines.append(unknowable)
    for row in (found.costs or {}).get("rows", []):
        if row["what"].startswith("update "):
            lines.append(
                f"{_update_title(found, row['what'].removeprefix('update '))} took "
                f"{row['device_seconds']:.0f} device seconds, retraining combined "
                f"{row['combined_device_seconds']:.0f}: {tables.percent(row['measured_saving'])} "
                f"saved (by token counts {tables.percent(row['predicted_saving'])})."
            )
    return lines


def _update_title(found: Results, name: str) -> str:
    language, warm = (found.updates[name][key] for key in ("language", "warm_start"))
    if language not in found.languages:
        return f"Adding {language}"
    return f"Updating {language}" + ("" if warm is None else " from its live adapter")


def _facts(found: Results) -> list[tuple[str, str]]:
    """The headline, in numbers: (number, what it is)."""
    what = f"merged, {tables.decisive(found.home)} over all languages"
    facts = [(_number(found.score(found.chosen)["value"]), what)]
    if combined := found.score("combined"):
        facts.append((_number(combined["value"]), "combined, trained on all rows together"))
    facts.append((_number(found.score("base")["value"]), "base without adapters"))
    for row in (found.costs or {}).get("rows", []):
        if row["what"].startswith("update "):
            title = _update_title(found, row["what"].removeprefix("update "))
            what = f"{title}: training saved against retraining combined"
            facts.append((tables.percent(row["measured_saving"]), what))
    return facts
