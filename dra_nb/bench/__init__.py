"""The benchmark: protocols, runs, results, statistics and tables."""
