"""What can be chosen for a run, to be known without loading PyTorch."""

# Frames looked at, spread over the clip.
FRAMES = 32
# PyTorch's names of the classifiers' number formats.
PRECISIONS = ("float32", "float16", "bfloat16")
