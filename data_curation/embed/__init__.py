"""Stage 1: embed images, and measure what the later stages compare: hashes, keypoints, quality."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see run.py, imported here and not above for the sake of the decoding processes."""
    from data_curation.embed.run import main as run

    return run(argv)
