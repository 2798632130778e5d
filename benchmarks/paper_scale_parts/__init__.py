"""The parts of benchmarks/paper_scale.py: a file each for what its name says.

At run time they import torch, NumPy and the parts of the package that need no more than those.
"""
