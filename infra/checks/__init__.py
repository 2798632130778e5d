"""Offline checks of the files in infra/, one topic a module; infra/check.py runs them all."""
