"""[host] The search for a schedule under a hardware budget: see `run.tune`.

Optuna, of the extra [tune], is imported by `study`, `sampling` and what imports them, on use.
"""
