"""Finding the weights: plan, loop, optimizer, schedule, progress."""
