"""What a training loop leans on: teacher, optimizer groups and schedule, run folder, energy, probes."""
