"""Options and choices that commands share: one spelling, one help text."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

OWN = "Files of your own"


class Format(StrEnum):
    csv = "csv"
    json = "json"
    table = "table"


class ReportFormat(StrEnum):
    json = "json"
    table = "table"


class BadRowsAre(StrEnum):
    fail = "fail"
    quarantine = "quarantine"


class ListOrder(StrEnum):
    probability = "probability"
    coverage = "coverage"


def _own(*names: str, help: str, metavar: str | None = None):
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=OWN)


Tasks = Annotated[
    list[str], typer.Option("--task", "-t", metavar="NAME", help="Task of the catalogue; may be repeated.")
]
OneTask = Annotated[str, typer.Option("--task", "-t", metavar="NAME", help="Task of the catalogue.")]
MaybeTask = Annotated[str | None, typer.Option("--task", "-t", metavar="NAME", help="Task of the catalogue.")]
MaybeProfile = Annotated[
    str | None, typer.Option("--profile", "-p", metavar="NAME", help="Only this profile.")
]
OneProfile = Annotated[str, typer.Option("--profile", "-p", metavar="NAME", help="Profile of settings.")]
HowToPrint = Annotated[Format, typer.Option("--format", "-f", help="How to print.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]

Source = Annotated[
    Path | None,
    _own(metavar="FILE", help="Ratings of the domain that is known: CSV, TSV, JSON lines or Parquet."),
]
Target = Annotated[Path | None, _own(metavar="FILE", help="Ratings of the domain to recommend in.")]
UserColumn = Annotated[
    list[str],
    _own(metavar="COLUMN", help="Column of the user ids; each of these twice where the two files differ."),
]
ItemColumn = Annotated[list[str], _own(metavar="COLUMN", help="Column of the item ids.")]
RatingColumn = Annotated[list[str], _own(metavar="COLUMN", help="Column of the ratings.")]
TimeColumn = Annotated[list[str], _own(metavar="COLUMN", help="Column of the times.")]
TitleColumn = Annotated[list[str], _own(metavar="COLUMN", help="Column of the items' titles, for readers.")]
Scale = Annotated[tuple[float, float], _own(metavar="LOW HIGH", help="Lowest and highest legal rating.")]
SourceScale = Annotated[
    tuple[float, float] | None,
    _own(metavar="LOW HIGH", help="The same of the source alone, where the two differ."),
]
TargetScale = Annotated[tuple[float, float] | None, _own(metavar="LOW HIGH", help="The same of the target.")]
BadRows = Annotated[BadRowsAre, _own("--on-bad-rows", help="Refuse files with bad rows, or leave those out.")]
