"""What every room stands on: records, files, checkpoints, the prompt format, settings, a run directory."""
