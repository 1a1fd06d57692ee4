"""What a model costs and what it has learned: parameters, operations, time, memory, queries, attention."""
