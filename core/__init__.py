"""What every room stands on: records, files, checkpoints, chat, settings, a run directory."""
