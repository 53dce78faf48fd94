"""What goes in: cohorts, coarse masks, augmentation and batches."""
