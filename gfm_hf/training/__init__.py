"""What a training loop leans on: teacher, fine-tuning runs, recipes, run folder, panels, energy, probes."""
