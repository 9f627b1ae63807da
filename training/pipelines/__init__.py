"""Training, evaluation and calibration: the entry points and what they are made of."""
