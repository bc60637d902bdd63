"""Changes to training images, on whole batches."""
