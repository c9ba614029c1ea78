"""Stage 2: keep out near-duplicates of evaluation images, and of each other."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see run.py, imported here and not above for the sake of the worker processes."""
    from data_curation.dedup.run import main as run

    return run(argv)
