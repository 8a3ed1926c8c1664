"""The speed benchmark: `python -m experiments.bench`. What it measures and how to read it: docs/speed.md."""
