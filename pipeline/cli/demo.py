"""`diffcdr demo`: what the product is worth, on synthetic data."""

from pipeline.cli import options
from pipeline.cli.home import check_tracking, opened_instance, sources
from pipeline.cli.terminal import called, errors_in_one_line, log_to_terminal


def demo(debug: options.Debug = False) -> None:
    """Try it in minutes on synthetic data: train, register a champion, show what it is worth.

    Example: diffcdr demo
    """
    log_to_terminal()
    with errors_in_one_line(debug):
        from assets.state.store import Store
        from pipeline import demo as demonstration

        check_tracking()
        with opened_instance() as instance:
            registered = demonstration.run(instance)
        (source,) = sources([demonstration.PROFILE])
        page = Store().report("report") / "report.html"
        for line in demonstration.ending(source, registered, page, called()):
            print(line)
