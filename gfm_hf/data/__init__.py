"""What feeds a training loop: sources of images, crops, masks, plans of an epoch, batches."""
