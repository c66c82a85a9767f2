"""What a broadcast costs here, and what it costs elsewhere: `python -m benchmarks --list`."""
