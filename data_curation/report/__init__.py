"""Stage 4: one page that shows what was chosen, what was not, and why."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see run.py."""
    from data_curation.report.run import main as run

    return run(argv)
