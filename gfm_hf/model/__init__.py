"""What travels with every checkpoint: configuration, trunk, decoders, losses, models, image processor."""
