"""Cluster files, the MLflow server, and what checks them; not part of the installed package."""
