"""
The lifecycle of integrations: a pure state machine (`machine`, `states`), its commands and its rules.

`machine.Lifecycle.apply` is the one way in which a record changes.
"""
