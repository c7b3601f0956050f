"""From a share of the multiply-adds, or a speed-up, to the numbers of a schedule."""
