"""What a run prints at its end: what each profile is worth, in a few lines or in full."""

from collections.abc import Sequence

from pipeline.cli.terminal import print_table, short


def print_outcome(tasks: Sequence[str], sources: Sequence, full: bool) -> None:
    """A few lines and a narrow table of each profile, or all tables; where the rest is."""
    from assets.state.store import Store

    if full:
        _print_tables(tasks, sources)
    for source in sources:
        _print_headlines(source, tasks)
    page = Store().report("report") / "report.html"
    print(f"all tables and figures: {short(page)}" + ("" if full else " (here: --tables)"))


def _print_headlines(source, tasks: Sequence[str]) -> None:
    from assets.report.forest import forest_frame, sentences, short_table

    frame = forest_frame(source)
    frame = frame[frame["task"].isin(tasks)]
    if len(frame):
        print_table(short_table(frame, source.names), f"Profile {source.profile.name}")
    else:  # nothing simple was run to set models beside
        _print_table2(source, tasks)
    for sentence in sentences(source, frame):
        print(sentence)


def _print_tables(tasks: Sequence[str], sources: Sequence) -> None:
    from assets.report.table1 import table1_of_tasks
    from assets.report.verdict import verdict_of_tasks
    from assets.settings.catalog import load_catalog
    from assets.state.store import Store

    for table in table1_of_tasks(Store(), load_catalog(), tasks):
        print_table(table, "Table 1: data statistics")
    for source in sources:
        _print_table2(source, tasks)
    for source in sources:
        for table in verdict_of_tasks(source, tasks):
            print_table(table, f"Verdict, profile {source.profile.name}. {table.caption}".rstrip(". "))


def _print_table2(source, tasks: Sequence[str]) -> None:
    from assets.report.table2 import table2_of_tasks

    for table in table2_of_tasks(source, tasks):
        print_table(table, f"Table 2, profile {source.profile.name}: {table.caption}")
