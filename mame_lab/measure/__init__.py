"""What a model costs and what merging loses: speed, multiply-adds, memory, fidelity, accuracy, in one Result."""
