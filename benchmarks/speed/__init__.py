"""The package's speed and memory against TRL, transformers and the machine; `python benchmarks/speed --help`."""
