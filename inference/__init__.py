"""From videos and checkpoints to the probability that each video is fake."""
