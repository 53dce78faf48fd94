"""What it is worth: predictions, metrics, statistics, figures and the report."""
