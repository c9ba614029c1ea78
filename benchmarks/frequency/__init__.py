"""Which frequency module beats its control? The experiment of docs/frequency.md.

python -m benchmarks.frequency --help
"""
