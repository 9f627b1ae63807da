"""From clips and checkpoints to one probability per video that it is fake."""
