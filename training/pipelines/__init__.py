"""The programs: training and evaluation."""
