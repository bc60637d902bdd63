"""Images in: sources, splits, preprocessing, augmentation, batches. Never imports nn."""
