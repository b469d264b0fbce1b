"""Runs the doors elsewhere: on Cloud TPU, under Slurm and Kubernetes, in a container.

What lies here is run from a checkout, not installed.
"""
