"""Benchmarks: one script per claim of docs/benchmarks.md. Each measures both sides of its comparison in one run."""
