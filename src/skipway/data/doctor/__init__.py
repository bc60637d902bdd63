"""What is wrong with a data set, told before the first epoch."""
