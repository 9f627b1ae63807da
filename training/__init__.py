"""Networks, checkpoints and (from them) everything that trains a classifier on crops."""
