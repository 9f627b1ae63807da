"""Mutation fuzzing of everything that the programs read: see benchmarks/fuzz.py."""
