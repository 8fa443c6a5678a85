"""What every suite measures with: interleaved rounds, peaks of memory, the machine's description, the results file."""
