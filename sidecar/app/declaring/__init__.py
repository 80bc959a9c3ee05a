"""
Making a registry hold what a file declares: look, compare, apply in batches, and say what came of it.

`target.ChangeTarget` is where the changes go: a registry itself (`registry_target`), or a running sidecar's
admin API (`api_target`). `engine` is the same for both.
"""
