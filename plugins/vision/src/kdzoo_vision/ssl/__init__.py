"""Learning without labels: backbones with tokens, projection heads, schedules, probes and the task's hooks."""
