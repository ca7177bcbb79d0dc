"""Variants of the method, and scripts that run many settings over many seeds."""
