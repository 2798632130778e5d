"""Detectors of adversarial images: a high score says adversarial. Torch alone."""
